"""What a data set gives for one picture: its pixels, and its labels, its objects or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pixelwise.types import IntArray, RunLengths, Size


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """The annotated objects of one picture, in pixels of the picture as `read_image` returns it.

    Args:
        masks:  N masks; `masks.size` is the picture.
        labels: [N] int64, 0..K-1.
        boxes:  [N, 4] float32 xyxy, as annotated, or the tight box of the mask.
        crowd:  [N] bool, regions of uncounted objects, and objects of which only a box is known.
        ids:    [N] int64, the annotation's own id, or its position.
        areas:  [N] float64 pixels as annotated (what COCO's size ranges go by), or None.
    """

    masks: RunLengths
    labels: IntArray
    boxes: npt.NDArray[np.float32]
    crowd: npt.NDArray[np.bool_]
    ids: IntArray
    areas: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> Size:
        """(height, width) of the picture."""
        return self.masks.size

    @classmethod
    def empty(cls, size: Size) -> Instances:
        """No objects, in a picture of this size."""
        return cls(
            masks=RunLengths.empty(size),
            labels=np.zeros(0, np.int64),
            boxes=np.zeros((0, 4), np.float32),
            crowd=np.zeros(0, np.bool_),
            ids=np.zeros(0, np.int64),
        )

    def select(self, index: Sequence[int] | IntArray | npt.NDArray[np.bool_]) -> Instances:
        """The objects at these positions (or where True), in that order."""
        raw = np.asarray(index)
        chosen = np.arange(len(self))[raw if raw.size else raw.astype(np.int64)]
        return Instances(
            masks=self.masks.select(chosen),
            labels=self.labels[chosen],
            boxes=self.boxes[chosen],
            crowd=self.crowd[chosen],
            ids=self.ids[chosen],
            areas=None if self.areas is None else self.areas[chosen],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One annotated picture.

    Args:
        image:     [H, W, C] uint8.
        path:      where the picture was read.
        index:     position in the data set that gave it.
        labels:    [H, W] uint8, 0..K-1 or 255 (ignored), where a class per pixel is known.
        instances: the objects, where the annotation tells them apart.
    """

    image: npt.NDArray[np.uint8]
    path: Path
    index: int
    labels: npt.NDArray[np.uint8] | None = None
    instances: Instances | None = None

    @property
    def size(self) -> Size:
        """(height, width) of the picture."""
        return int(self.image.shape[0]), int(self.image.shape[1])
