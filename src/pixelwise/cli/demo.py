"""`pixelwise demo`: predict, fine-tune and evaluate, on pictures that need no download."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path(
        "runs/demo"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Segment a microscope picture, fine-tune on a drawn data set, evaluate: about two minutes."""
    from pixelwise.demo import run_demo

    made = run_demo(out, quiet=quiet or json)
    if json:
        print(json_text.dumps(asdict(made), default=str, indent=2))
        return 0
    print(f"segmented  {made.objects} nuclei in a real microscope picture")
    print(f"  overlay  {made.overlay}")
    print(f"  json     {made.json}")
    print("fine-tuned on discs, squares and triangles drawn on the spot, val split:")
    for name in ("mask_ap", "mask_ap50", "box_ap"):
        print(f"  {name:10} {made.metrics[name]:.3f}")
    print(f"  report   {made.report}")
    print(f"all in {made.seconds:.0f} s")
    return 0
