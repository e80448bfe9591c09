"""The options that `predict` and `val` share: how a picture is taken apart and refined."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pixelwise.prediction.augmented import Augmentation
    from pixelwise.spec import Task

Tile = Annotated[
    int | None, typer.Option(help="Segment in tiles of this side, pixels of the picture.")
]
Overlap = Annotated[
    float | None, typer.Option(help="Share of a tile its neighbour sees too (default 0.25).")
]
Seams = Annotated[
    str, typer.Option(help="How label maps of tiles are joined: blended, semseg or mmseg.")
]
TTA = Annotated[
    bool, typer.Option("--tta", help="Test-time augmentation: several scales, mirrored.")
]
Scales = Annotated[
    str | None, typer.Option(help="Test-time augmentation with these scales, such as 0.5,0.75,1.")
]
Flip = Annotated[
    bool, typer.Option("--flip/--no-flip", help="Augment with mirror images, or with scales alone.")
]
CRF = Annotated[
    bool, typer.Option("--crf", help="Refine label maps with a dense CRF (DeepLab V2's values).")
]
CRFPreset = Annotated[
    str | None,
    typer.Option(help="The same with deeplabv1, deeplabv2_vgg16 or deeplabv2_resnet101."),
]


def read_augmentation(
    scales: str | None, *, tta: bool, flip: bool, task: Task
) -> Augmentation | None:
    """What --tta, --scales and --no-flip mean together.

    Raises:
        UsageError: scales that are no numbers, or --no-flip of no augmentation.
    """
    from pixelwise.errors import UsageError
    from pixelwise.prediction.augmented import as_augmentation

    if scales is None and not tta:
        if not flip:
            raise UsageError("--no-flip is about test-time augmentation: add --tta or --scales")
        return None
    chosen: list[float] | bool = True
    if scales is not None:
        try:
            chosen = [float(part) for part in scales.split(",")]
        except ValueError:
            raise UsageError(f"--scales {scales!r}: give numbers such as 0.5,0.75,1") from None
    found = as_augmentation(chosen, task)
    return found and replace(found, flip=flip)


def read_crf(preset: str | None, *, crf: bool) -> Any:
    """`crf` of the options: the preset, the default one, or none."""
    return preset or crf or None
