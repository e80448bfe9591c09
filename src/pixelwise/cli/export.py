"""`pixelwise export`: a trained model as a file for another runtime."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from pixelwise.export import Dynamic


def command(
    model: Annotated[str, typer.Argument(help="A trained model, a checkpoint or a run folder.")],
    out: Annotated[Path, typer.Argument(help="The file: .onnx or .pt2 (torch.export).")],
    *,
    size: Annotated[str, typer.Option(help="Network input, HEIGHTxWIDTH.")] = "512x512",
    dynamic: Annotated[
        str | None,
        typer.Option(
            help="What stays open: sizes (and batch), sizes32 (multiples of 32), batch or none. "
            "By default what the system allows."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Write a model as .onnx or .pt2 for another runtime and compare the file with it."""
    from pixelwise.cli.bench import read_size
    from pixelwise.export import export, read_passport

    path = export(model, out, size=read_size(size), dynamic=cast("Dynamic | None", dynamic))
    about = read_passport(path)
    if json:
        print(json_text.dumps({"file": str(path), **about}, indent=2))
        return 0
    sides = {
        "sizes": "any batch and size",
        "sizes32": "any batch, sizes in multiples of 32",
        "batch": f"any batch at {size}",
        "none": f"one picture at {size}",
    }[about["dynamic"]]
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {sides}; output equal to the model's")
    return 0
