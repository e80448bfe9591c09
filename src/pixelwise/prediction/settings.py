"""The options of prediction: what they are called, their defaults, how they are checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, cast

import torch

from pixelwise.errors import DataError, UsageError
from pixelwise.prediction.augmented import Augmentation, as_augmentation
from pixelwise.prediction.sources import Frame
from pixelwise.spec import Task

STAGES = ("read", "prepare", "network", "decode")

OnError = Literal["raise", "skip"] | Callable[[Frame, DataError], None]


class Options(TypedDict, total=False):
    """How pictures are predicted; every key has a default.

    Args:
        tile:         side of square tiles in pixels of the picture, each predicted on its own; None
            predicts the whole picture at once.
        overlap:      share of a tile that neighbours see too, 0..0.9 (0.25).
        score_thresh: objects scored lower are left out, 0..1 (0.5).
        batch_size:   pictures per forward pass (1); only pictures of equal input size share one.
        tta:          predict several versions of each picture: True, scales, or an `Augmentation`.
        with_probs:   keep the class probabilities of label maps: K x H x W numbers per picture.
        on_error:     a picture that cannot be read stops everything ("raise"), is left out with a
            warning ("skip"), or is handed to a function with its error.
    """

    tile: int | None
    overlap: float
    score_thresh: float
    batch_size: int
    tta: Augmentation | Sequence[float] | bool | None
    with_probs: bool
    on_error: OnError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`Options`, checked and complete."""

    tile: int | None = None
    overlap: float = 0.25
    score_thresh: float = 0.5
    batch_size: int = 1
    tta: Augmentation | None = None
    with_probs: bool = False
    on_error: OnError = "raise"
    keeps_pixels: bool = True


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
    if options.get("with_probs") and task == "instance":
        raise UsageError("with_probs is for label maps, and this model finds objects; leave it out")
    if options.get("with_probs") and options.get("tile") is not None:
        raise UsageError(
            "with_probs keeps whole pictures, which tile exists to avoid: drop one of them"
        )
    values: dict[str, Any] = dict(options)
    values["tta"] = as_augmentation(options.get("tta"), task)
    return Settings(**values)


def _check(options: Options) -> None:
    known = list(Options.__annotations__)
    for key in options:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise UsageError(f"predict has no option {key!r}; {hint}")
    for key, low, high in (("score_thresh", 0.0, 1.0), ("overlap", 0.0, 0.9)):
        value = options.get(key, low)
        if not low <= float(cast("float", value)) <= high:
            raise UsageError(f"{key} must be {low:g}..{high:g}, not {value}")
    if options.get("batch_size", 1) < 1:
        raise UsageError(f"batch_size must be at least 1, not {options.get('batch_size')}")
    tile = options.get("tile")
    if tile is not None and tile < 16:
        raise UsageError(f"tile must be at least 16 pixels, not {tile}")
