"""`pixelwise models export-to`: one of our checkpoints as another project's."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer


def export_to(
    origin: Annotated[str, typer.Argument(help="detectron2, mmdet, mmseg or torchvision.")],
    model: Annotated[str, typer.Argument(help="A trained model, a checkpoint or a run folder.")],
    out: Annotated[Path, typer.Argument(help="The file: .pth, or .pkl for detectron2.")],
    *,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Write a model under the names and in the file format of another project.

    It works where the project has this very network. What its configuration must say, because it
    differs from what the project publishes, is printed.
    """
    from pixelwise import catalogue, checkpoint
    from pixelwise.convert.writing import FORMATS, to_origin, write
    from pixelwise.errors import UsageError

    if origin not in FORMATS:
        raise UsageError(f"no file format of {origin!r} is written; choose {', '.join(FORMATS)}")
    loaded = checkpoint.load(catalogue.find_checkpoint(model))
    made = to_origin(loaded.system, name=loaded.name, origin=origin)
    write(out, made.state, origin=origin, classes=loaded.classes)
    if json:
        document = {
            "file": str(out),
            "origin": origin,
            "tensors": len(made.state),
            "zeros": list(made.zeros),
            "settings": made.settings,
            "input": loaded.input.to_dict(),
        }
        print(json_text.dumps(document, indent=2))
        return 0
    spec = loaded.input
    print(f"{out}: {len(made.state)} tensors under the names of {origin}")
    print(f"  it is fed {spec.channel_order}, (value * {spec.scale:g} - {spec.mean}) / {spec.std}")
    if made.zeros:
        print(f"  zeros for a background class that it never reads: {', '.join(made.zeros)}")
    for field, value in made.settings.items():
        print(f"  set in its configuration: {field} = {value}")
    return 0
