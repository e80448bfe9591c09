"""The options of prediction: what they are called, their defaults, how they are checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, cast, get_args

import torch

from pixelwise.errors import DataError, UsageError
from pixelwise.ops.crf import DenseCRF
from pixelwise.prediction.augmented import Augmentation, as_augmentation
from pixelwise.prediction.refined import as_crf
from pixelwise.prediction.sliding import Sliding
from pixelwise.prediction.sources import Frame
from pixelwise.spec import Task

STAGES = ("read", "prepare", "network", "decode")

OnError = Literal["raise", "skip"] | Callable[[Frame, DataError], None]
Seams = Literal["blended", "semseg", "mmseg"]


class Options(TypedDict, total=False):
    """How pictures are predicted; every key has a default.

    Args:
        tile:         side of square tiles in pixels of the picture, each predicted on its own; None
            predicts the whole picture at once.
        overlap:      share of a tile that neighbours see too, 0..0.9 (0.25).
        seams:        how the label maps of tiles are joined: "blended" (the default) follows the
            tile that sees a pixel best; "semseg" and "mmseg" are the sliding windows of these
            projects (`Sliding`), on the network's input.
        score_thresh: objects scored lower are left out, 0..1 (0.5).
        batch_size:   pictures per forward pass (1); only pictures of equal input size share one.
        tta:          predict several versions of each picture: True, scales, or an `Augmentation`.
        crf:          refine label maps with a dense CRF on the picture: True (DeepLab V2's values),
            a name of `pixelwise.ops.crf.PRESETS`, or a `DenseCRF`.
        with_probs:   keep the class probabilities of label maps: K x H x W numbers per picture.
        on_error:     a picture that cannot be read stops everything ("raise"), is left out with a
            warning ("skip"), or is handed to a function with its error.
    """

    tile: int | None
    overlap: float | None
    seams: Seams
    score_thresh: float
    batch_size: int
    tta: Augmentation | Sequence[float] | bool | None
    crf: DenseCRF | str | bool | None
    with_probs: bool
    on_error: OnError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`Options`, checked and complete.

    Of `tile` and `sliding` one is set where pictures are taken apart: blended tiles, or the windows
    of another project.
    """

    tile: int | None = None
    overlap: float = 0.25
    sliding: Sliding | None = None
    score_thresh: float = 0.5
    batch_size: int = 1
    tta: Augmentation | None = None
    crf: DenseCRF | None = None
    with_probs: bool = False
    on_error: OnError = "raise"
    keeps_pixels: bool = True

    @property
    def is_whole(self) -> bool:
        """Every picture is one forward pass."""
        return self.tile is None and self.sliding is None and self.tta is None

    @property
    def needs_probs(self) -> bool:
        """The network's probabilities are kept, or refined."""
        return self.with_probs or self.crf is not None


@dataclass
class Clock:
    """Milliseconds by stage."""

    times: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def __call__(self, stage: str, device: torch.device | None = None) -> Generator[None]:
        """Time a block as part of a stage; a GPU `device` is waited for."""
        start = time.perf_counter()
        try:
            yield
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)  # the time of the work, not of its launch
        finally:
            self.times[stage] += 1e3 * (time.perf_counter() - start)

    def shared(self, count: int) -> dict[str, float]:
        """The part of one of `count` pictures."""
        return {stage: spent / count for stage, spent in self.times.items()}


def read_options(options: Options, task: Task) -> Settings:
    """Check the options of a prediction and fill in the defaults.

    Args:
        options: as the user gave them.
        task:    of the model.

    Raises:
        UsageError: unknown, out of range, or two that exclude each other.
    """
    _check(options)
    if task == "instance":
        _refuse_for_objects(options)
    values: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    seams: Seams = values.pop("seams", "blended")
    tile: int | None = options.get("tile")
    if tile is not None and seams != "blended":
        values["sliding"] = Sliding.of(seams, tile, options.get("overlap"))
        values["tile"] = None
    elif tile is not None and options.get("with_probs"):
        raise UsageError(
            "with_probs keeps whole pictures, which tile exists to avoid: drop one of them"
        )
    elif tile is None and seams != "blended":
        raise UsageError(f"seams={seams!r} is about tiles: give their side too, such as tile=713")
    values["tta"] = as_augmentation(options.get("tta"), task)
    values["crf"] = as_crf(options.get("crf"))
    return Settings(**values)


def _refuse_for_objects(options: Options) -> None:
    for key, what in (
        ("with_probs", "keeps the probabilities of label maps"),
        ("crf", "refines label maps"),
    ):
        if options.get(key):
            raise UsageError(f"{key} {what}, and this model finds objects; leave it out")
    if options.get("seams", "blended") != "blended":
        raise UsageError("seams are for label maps, and this model finds objects; leave it out")


def _check(options: Options) -> None:
    known = list(Options.__annotations__)
    for key in options:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise UsageError(f"predict has no option {key!r}; {hint}")
    for key, low, high in (("score_thresh", 0.0, 1.0), ("overlap", 0.0, 0.9)):
        value = options.get(key)
        if value is not None and not low <= float(cast("float", value)) <= high:
            raise UsageError(f"{key} must be {low:g}..{high:g}, not {value}")
    if options.get("batch_size", 1) < 1:
        raise UsageError(f"batch_size must be at least 1, not {options.get('batch_size')}")
    if options.get("seams", "blended") not in get_args(Seams):
        choices = ", ".join(get_args(Seams))
        raise UsageError(f"seams={options.get('seams')!r}; choose one of {choices}")
    tile = options.get("tile")
    if tile is not None and tile < 16:
        raise UsageError(f"tile must be at least 16 pixels, not {tile}")
