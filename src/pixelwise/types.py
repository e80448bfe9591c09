"""The data contract: what a system receives and what it returns.

Boxes are `xyxy`, absolute pixels, right and bottom exclusive. Labels run 0..K-1 without background;
255 (`IGNORE`) marks pixels that count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORE = 255

Size = tuple[int, int]  # (height, width) in pixels
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Three sizes of one picture on its way through a network, each (height, width).

    Args:
        original: the picture as stored (after its EXIF rotation); predictions are in its pixels.
        content:  the resized picture; it lies at the top left of the network input.
        input:    the network input, content plus padding at the right and the bottom.
    """

    original: Size
    content: Size
    input: Size

    @classmethod
    def same(cls, size: Size) -> ImageSize:
        """A picture that is fed at its own size, without padding."""
        return cls(original=size, content=size, input=size)

    @property
    def scale_yx(self) -> tuple[float, float]:
        """Original pixels times this are content pixels, per axis."""
        return self.content[0] / self.original[0], self.content[1] / self.original[1]


@dataclass(frozen=True, eq=False)
class RunLengths:
    """N binary masks of one picture, each stored as run lengths of its own crop window.

    The form in which annotations and predictions live: memory grows with the outline of an
    instance, never with the picture. Runs go down the columns of the window (as in COCO),
    alternate 0-runs and 1-runs and start with a 0-run, which may be 0. An empty mask has the window
    (0, 0, 0, 0) and no runs. `pixelwise.ops.rle` makes and reads them.

    Args:
        size:    (height, width) of the picture.
        windows: [N, 4] int64 xyxy, the crop of each mask, inside the picture; need not be tight.
        runs:    [total] uint32, the runs of all masks, one after another.
        starts:  [N + 1] int64, mask i owns runs[starts[i]:starts[i + 1]].
    """

    size: Size
    windows: IntArray
    runs: npt.NDArray[np.uint32]
    starts: IntArray

    def __len__(self) -> int:
        return len(self.windows)

    @classmethod
    def empty(cls, size: Size) -> RunLengths:
        """No masks at all, of a picture of this size."""
        return cls(size, np.zeros((0, 4), np.int64), np.zeros(0, np.uint32), np.zeros(1, np.int64))

    def select(self, index: Sequence[int] | IntArray | npt.NDArray[np.bool_]) -> RunLengths:
        """The masks at these positions (or where True), in that order."""
        index = np.asarray(index)
        # An empty list arrives as float64, which cannot index.
        chosen = np.arange(len(self))[index if index.size else index.astype(np.int64)]
        if np.array_equal(chosen, np.arange(len(self))):
            return self
        lengths = np.diff(self.starts)[chosen]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # Neighbours that stay neighbours are one slice: a list of indices would be twice the runs.
        breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
        heads = chosen[np.concatenate([[0], breaks])] if len(chosen) else chosen
        tails = chosen[np.concatenate([breaks, [len(chosen)]]) - 1] if len(chosen) else chosen
        bounds = zip(self.starts[heads].tolist(), self.starts[tails + 1].tolist(), strict=True)
        runs = np.concatenate([self.runs[:0], *(self.runs[a:b] for a, b in bounds)])
        return RunLengths(self.size, self.windows[chosen], runs, starts)

    @classmethod
    def concat(cls, parts: Iterable[RunLengths]) -> RunLengths:
        """All masks of several containers of the same picture, at least one, in order.

        Parts that a generator makes one by one are never held together: the result grows in place.
        """
        size: Size | None = None
        windows: list[IntArray] = []
        lengths: list[IntArray] = []
        runs, filled = np.zeros(0, np.uint32), 0
        for part in parts:
            size = part.size if size is None else size
            windows.append(part.windows)
            lengths.append(np.diff(part.starts))
            end = filled + len(part.runs)
            if end > len(runs):  # a little ahead, so that many small parts are not moved each time
                runs.resize(end + filled // 16, refcheck=False)
            runs[filled:end] = part.runs
            filled = end
        if size is None:
            raise ValueError("no parts to concatenate: their picture's size is unknown")
        runs.resize(filled, refcheck=False)
        starts = np.cumsum(np.concatenate([[0], *lengths])).astype(np.int64)
        return cls(size, np.concatenate(windows), runs, starts)


@dataclass(frozen=True, eq=False)
class MaskCrops:
    """N binary masks of one picture as the pixels of their crop windows, ready for tensor code.

    The form in which training targets travel: dense inside the window, nothing outside.

    Args:
        size:    (height, width) of the picture (the content of the network input).
        windows: [N, 4] int64 xyxy, the crop of each mask, inside the picture.
        pixels:  [total] uint8, 0 or 1; row-major window after window.
    """

    size: Size
    windows: Tensor
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.windows)

    @classmethod
    def empty(cls, size: Size) -> MaskCrops:
        """No masks at all, of a picture of this size."""
        return cls(size, torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.uint8))

    @property
    def areas_of_windows(self) -> Tensor:
        """[N] int64, pixels stored per mask."""
        w = self.windows
        return (w[:, 2] - w[:, 0]) * (w[:, 3] - w[:, 1])

    @property
    def starts(self) -> Tensor:
        """[N + 1] int64, mask i owns pixels[starts[i]:starts[i + 1]]."""
        areas = self.areas_of_windows
        return torch.cat([areas.new_zeros(1), areas.cumsum(0)])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MaskCrops:
        """The same masks on another device."""
        return MaskCrops(
            self.size,
            self.windows.to(device, non_blocking=non_blocking),
            self.pixels.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticTarget:
    """What a semantic system learns from: one label per pixel of the network input.

    Args:
        labels: [H, W] int64, 0..K-1 or 255 (ignored; padding too).
        weights: [H, W] float32 per-pixel loss weights, or None for all ones.
    """

    labels: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SemanticTarget:
        """The same target on another device."""
        weights = self.weights
        return SemanticTarget(
            labels=self.labels.to(device, non_blocking=non_blocking),
            weights=None if weights is None else weights.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceTarget:
    """What an instance system learns from: the objects of one picture, in network-input pixels.

    Args:
        boxes:  [N, 4] float32 xyxy.
        labels: [N] int64, 0..K-1.
        masks:  N masks; `masks.size` is the content, without padding.
        crowd:  [N] bool; regions of uncounted objects: never a positive, never a false positive.
    """

    boxes: Tensor
    labels: Tensor
    masks: MaskCrops
    crowd: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> Size:
        """(height, width) of the picture's content inside the padded network input."""
        return self.masks.size

    @cached_property
    def usable(self) -> Tensor:
        """[N] bool, the objects to learn from: no crowds, no boxes without area."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]  # [N, 2]
        return ~self.crowd & (sides > 0).all(dim=1)

    @cached_property
    def has_crowd(self) -> bool:
        """Whether any is a crowd; a GPU waits for the answer, once."""
        return bool(self.crowd.any())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> InstanceTarget:
        """The same target on another device."""
        return InstanceTarget(
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            masks=self.masks.to(device, non_blocking=non_blocking),
            crowd=self.crowd.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticPrediction:
    """One label per pixel of the original picture.

    Args:
        labels: [H, W] uint8 (K <= 255) or int64, 0..K-1.
        probs:  [K, H, W] float in [0, 1], only when they were asked for.
    """

    labels: Tensor
    probs: Tensor | None = None

    @property
    def size(self) -> Size:
        """(height, width) of the picture."""
        return int(self.labels.shape[0]), int(self.labels.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class InstancePrediction:
    """The objects found in one picture, in original pixels, best first. All tensors are on the CPU.

    Args:
        boxes:       [N, 4] float32 xyxy.
        labels:      [N] int64, 0..K-1.
        scores:      [N] float32, descending, of the detection.
        masks:       N masks; `masks.size` is the original picture.
        mask_scores: [N] float32 used to rank masks, where it differs from `scores`.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: RunLengths
    mask_scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> Size:
        """(height, width) of the picture."""
        return self.masks.size

    def select(self, index: Tensor) -> InstancePrediction:
        """The objects at these positions (or where True), in that order."""
        chosen = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        return replace(
            self,
            boxes=self.boxes[chosen],
            labels=self.labels[chosen],
            scores=self.scores[chosen],
            masks=self.masks.select(chosen.numpy()),
            mask_scores=None if self.mask_scores is None else self.mask_scores[chosen],
        )


Target = SemanticTarget | InstanceTarget
Prediction = SemanticPrediction | InstancePrediction


@runtime_checkable
class System(Protocol):
    """The contract of a segmentation system; every class of `SYSTEMS` is also an `nn.Module`.

    forward: [B, C, H, W] normalised images of any size → a NamedTuple of tensors (`Raw`). Where the
             network needs a multiple of some stride, the system pads inside.
    loss:    the same images and one target per image → scalars, weighted already: their sum is
             what is minimised.
    decode:  `Raw` and one `ImageSize` per image → one prediction per image, in original pixels.
    """

    cfg: Any

    def forward(self, images: Tensor) -> Any: ...  # noqa: D102

    def loss(self, images: Tensor, targets: Sequence[Any]) -> Mapping[str, Tensor]: ...  # noqa: D102

    def decode(self, raw: Any, sizes: Sequence[ImageSize]) -> Sequence[Prediction]: ...  # noqa: D102
