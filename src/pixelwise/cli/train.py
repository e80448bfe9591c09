"""`pixelwise train`: train a system as a recipe says."""

from __future__ import annotations

import json as json_text
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pixelwise.train import Run


def command(
    recipe: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a packaged recipe.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it: section.key=value ...")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with the run in this folder.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One batch through everything; estimate memory.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Train a system: `pixelwise train recipe.yaml optim.lr=0.01 run.steps=2000`."""
    from pixelwise.errors import UsageError

    words = list(overrides or [])
    if out is not None:
        words.append(f"out={json_text.dumps(str(out))}")
    if resume is not None:
        changes = words if recipe is None else [recipe, *words]
        run = _go_on(resume, changes, dry_run=dry_run, quiet=quiet)
    elif recipe is None:
        raise UsageError("name a recipe, or a run with --resume FOLDER; see --help")
    else:
        run = _start(recipe, words, dry_run=dry_run, quiet=quiet)
    _show(run, json=json)
    return 0


def _go_on(folder: Path, words: list[str], *, dry_run: bool, quiet: bool) -> Run:
    from pixelwise.errors import UsageError
    from pixelwise.train import resume

    if dry_run:
        raise UsageError("--dry-run starts afresh; leave --resume out")
    return resume(folder, words, quiet=quiet)


def _start(recipe: str, words: list[str], *, dry_run: bool, quiet: bool) -> Run:
    from pixelwise.training.recipe import read

    resolved = read(recipe, words)
    if dry_run:
        from pixelwise.training.dry_run import dry_run as try_out

        return try_out(resolved, quiet=quiet)
    from pixelwise.train import run_recipe

    return run_recipe(resolved, quiet=quiet)


def _show(run: Run, *, json: bool) -> None:
    if int(os.environ.get("RANK", "0")) > 0:
        return  # the first process speaks for all
    if json:
        document = {
            "out": str(run.out),
            "best": str(run.best),
            "last": str(run.last),
            "steps": run.steps,
            "metrics": run.metrics,
            "memory_mb": run.memory,
        }
        print(json_text.dumps(document, indent=2))
        return
    for name, value in run.memory.items():
        print(f"{name:28} {value:10.1f} MB")
    for name, value in run.metrics.items():
        print(f"{name:28} {value:10.4f}")
    if not run.memory:
        print(f"{run.out}: weights/best.safetensors, report.html")
