"""`pixelwise models`: which systems and trained models there are."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from pixelwise.spec import Task, WeightsEntry

app = typer.Typer(help="List and describe systems and trained models.", no_args_is_help=True)

_TASKS = ("semantic", "instance")


@app.command("list")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Shell pattern of names, such as '*rcnn*'.")] = "*",
    *,
    task: Annotated[str | None, typer.Option(help="semantic or instance.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only models with weights.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """List the systems that can be trained and the models that come with weights."""
    from pixelwise import catalogue
    from pixelwise.systems import SYSTEMS, list_systems

    wanted = _task(task)
    models = catalogue.entries(pattern, task=wanted)
    systems = [] if pretrained else list_systems(pattern, task=wanted)
    short = {full: name for name, full in catalogue.aliases().items()}
    if json:
        rows = [{"name": name, "task": SYSTEMS[name].task} for name in systems]
        document = {
            "models": [_row(m) | {"alias": short.get(m.name)} for m in models],
            "systems": rows,
        }
        print(json_text.dumps(document, indent=2))
        return 0
    if not models and not systems:
        print(f"nothing matches {pattern!r}; `pixelwise models list` shows everything")
        return 0
    if models:
        print("Trained models (pixelwise predict NAME PICTURES):")
        for model in models:
            alias = f" (short: {short[model.name]})" if model.name in short else ""
            print(f"  {model.name:52} {model.task:9} {_numbers(model)}{alias}")
    if systems:
        print("Systems (pixelwise train, pixelwise.create):")
        for name in systems:
            print(f"  {name:52} {SYSTEMS[name].task}")
    return 0


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
        else:
            print(f"{key:24} {_plain(value)}")
    return 0


def _facts(name: str) -> dict[str, Any]:
    from pixelwise import catalogue
    from pixelwise.checkpoint import read_header
    from pixelwise.systems import SYSTEMS

    if name in SYSTEMS:
        return _system_facts(name)
    entry = catalogue.find(name)
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
    return facts


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
    return asdict(model) | {"metrics": dict(model.metrics)}


def _numbers(model: WeightsEntry) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in model.metrics[:3])


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in cast("list[Any]", value)) or "none"
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return ", ".join(f"{k} {v}" for k, v in pairs) or "none"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _task(text: str | None) -> Task | None:
    from pixelwise.errors import UsageError

    if text is None:
        return None
    if text not in _TASKS:
        raise UsageError(f"--task {text!r}: choose semantic or instance")
    return "semantic" if text == "semantic" else "instance"
