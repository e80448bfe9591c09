"""`pixelwise models`: which systems and trained models there are."""

from __future__ import annotations

import json as json_text
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pixelwise.cli import hub, model_card
from pixelwise.cli.models_export import export_to
from pixelwise.cli.models_import import import_model

if TYPE_CHECKING:
    from pixelwise.spec import Task, WeightsEntry

app = typer.Typer(help="List and describe systems and trained models.", no_args_is_help=True)
app.command("card")(model_card.command)
app.command("push")(hub.command)
app.command("import")(import_model)
app.command("export-to")(export_to)

_TASKS = ("semantic", "instance")


@app.command("list")
def list_models(
    pattern: Annotated[
        str | None, typer.Argument(help="Shell pattern of names, such as '*rcnn*'.")
    ] = None,
    *,
    task: Annotated[str | None, typer.Option(help="semantic or instance.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only models with weights.")
    ] = False,
    commercial: Annotated[
        bool,
        typer.Option(
            "--commercial", help="Only models whose weights and data allow commercial use."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """List the systems that can be trained and the models that come with weights.

    Without any filter the checkpoints of other projects are counted, not listed.
    """
    from pixelwise import catalogue
    from pixelwise.systems import SYSTEMS, list_systems

    wanted = _task(task)
    models = catalogue.entries(pattern or "*", task=wanted, commercial=commercial)
    systems = [] if pretrained or commercial else list_systems(pattern or "*", task=wanted)
    if json:
        rows = [{"name": name, "task": SYSTEMS[name].task} for name in systems]
        print(json_text.dumps({"models": [_row(m) for m in models], "systems": rows}, indent=2))
        return 0
    if not models and not systems:
        print(f"nothing matches {pattern or '*'!r}; `pixelwise models list` shows everything")
        return 0
    everything = pattern is None and not (task or pretrained or commercial)
    _print_models([m for m in models if catalogue.is_embedded(m) or not everything])
    if everything:
        _print_counts([m.origin for m in models if not catalogue.is_embedded(m)])
    if systems:
        print("Systems (pixelwise train, pixelwise.create):")
        for name in systems:
            print(f"  {name:52} {SYSTEMS[name].task}")
    return 0


def _print_models(models: Sequence[WeightsEntry]) -> None:
    from pixelwise import catalogue

    if not models:
        return
    short = {full: name for name, full in catalogue.aliases().items()}
    width = max(52, *(len(model.name) for model in models))
    print("Trained models (pixelwise predict NAME PICTURES):")
    print(f"  {'name':{width}} {'task':9} commercial  reported")
    for model in models:
        alias = f" (short: {short[model.name]})" if model.name in short else ""
        print(
            f"  {model.name:{width}} {model.task:9} {model.commercial:10}  {_numbers(model)}{alias}"
        )


def _print_counts(origins: Sequence[str]) -> None:
    if origins:
        print("Published by other projects (pixelwise models list '*.ORIGIN_*'):")
        for origin, count in sorted(Counter(origins).items()):
            print(f"  {origin:20} {count:4}")


@app.command("info")
def describe(
    name: Annotated[str, typer.Argument(help="A model, a system, a checkpoint or a run folder.")],
    *,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Describe a system's settings, or a trained model: classes, licence, numbers, input."""
    facts = _facts(name)
    if json:
        print(json_text.dumps(facts, indent=2, default=str))
        return 0
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            print(f"{key}:")
            for inner, entry in cast("dict[str, Any]", value).items():
                print(f"  {inner:22} {_plain(entry)}")
        elif value not in (None, "", [], (), {}):  # what nobody states takes no line
            print(f"{key:24} {_plain(value)}")
    return 0


def _facts(name: str) -> dict[str, Any]:
    from pixelwise import catalogue
    from pixelwise.checkpoint import read_header
    from pixelwise.systems import SYSTEMS

    if name in SYSTEMS:
        return _system_facts(name)
    entry = catalogue.find(name)
    if entry is not None and not catalogue.is_embedded(entry):
        return _published_facts(entry)
    path = catalogue.find_checkpoint(name)
    header = read_header(path)
    facts = _row(entry) if entry is not None else {"name": name}
    facts |= {
        "file": str(path),
        "size_mb": round(path.stat().st_size / 1e6, 2),
        "system": header["system"],
        "task": header["task"],
        "classes": header["classes"],
        "input": header["input"],
        "config": header["config"],
    }
    if entry is None:
        facts |= {"licence": header["licence"], "metrics": header["metrics"]}
        facts |= {"source": header["source"]} if header.get("source") else {}
    return facts


def _published_facts(entry: WeightsEntry) -> dict[str, Any]:
    """What the catalogue says; nothing is downloaded to describe a model."""
    from pixelwise.published import download_of

    path = download_of(entry)
    return _row(entry) | {"file": str(path), "downloaded": path.is_file()}


def _system_facts(name: str) -> dict[str, Any]:
    import torch

    from pixelwise.systems import SYSTEMS, create

    row = SYSTEMS[name]
    with torch.device("meta"):  # counts parameters without spending memory on them
        parameters = sum(p.numel() for p in create(name).parameters())
    source = (row.system.__doc__ or "").strip().split("\n")[0]
    return {
        "name": name,
        "task": row.task,
        "about": source,
        "parameters": parameters,
        "config": asdict(row.config),
        "input": row.input.to_dict(),
    }


def _row(model: WeightsEntry) -> dict[str, Any]:
    from pixelwise import catalogue

    short = {full: name for name, full in catalogue.aliases().items()}
    return asdict(model) | {"metrics": dict(model.metrics), "alias": short.get(model.name)}


def _numbers(model: WeightsEntry) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in model.metrics[:3])


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        parts = cast("list[Any]", value)
        nested = any(isinstance(v, dict) for v in parts)
        return ("; " if nested else ", ").join(map(_plain if nested else str, parts)) or "none"
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return ", ".join(f"{k} {v}" for k, v in pairs) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _task(text: str | None) -> Task | None:
    from pixelwise.errors import UsageError

    if text is None:
        return None
    if text not in _TASKS:
        raise UsageError(f"--task {text!r}: choose semantic or instance")
    return "semantic" if text == "semantic" else "instance"
