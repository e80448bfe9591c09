"""Drawn samples for the tests of transforms and loaders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixelwise.data.sample import Instances, Sample
from pixelwise.ops.rle import encode, tight_boxes
from pixelwise.types import Size

PALETTE = np.array([[40, 40, 40], [230, 30, 30], [30, 230, 30], [30, 30, 230]], np.uint8)
FLAT = {"scale": (1.0, 1.0), "flip": 0.0}  # an AugmentSpec without chance


def instances(masks: np.ndarray, labels: Sequence[int], crowd: Sequence[bool]) -> Instances:
    runs = encode(masks)
    return Instances(
        masks=runs,
        labels=np.array(labels, np.int64),
        boxes=tight_boxes(runs),
        crowd=np.array(crowd, bool),
        ids=np.arange(len(labels)),
    )


def squares(
    size: Size,
    boxes: Sequence[tuple[int, int, int, int]],
    *,
    crowd: Sequence[int] = (),
    index: int = 0,
) -> Sample:
    """Rectangles of class 0, 1, 2, 0, ... on a dark ground; the picture's colour is the class."""
    masks = np.zeros((len(boxes), *size), np.uint8)
    labels = np.zeros(size, np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        masks[i, y1:y2, x1:x2] = 1
        labels[y1:y2, x1:x2] = i % 3 + 1
    classes = [i % 3 for i in range(len(boxes))]
    return Sample(
        image=PALETTE[labels],
        path=Path(f"drawn_{index}.png"),
        index=index,
        labels=labels,
        instances=instances(masks, classes, [i in crowd for i in range(len(boxes))]),
    )


class Drawn:
    """A view of drawn pictures, each with another number of squares."""

    def __init__(self, count: int = 10, size: Size = (40, 50)) -> None:
        self.count, self.drawn_size = count, size

    def __len__(self) -> int:
        return self.count

    def path(self, i: int, /) -> Path:
        return Path(f"drawn_{i}.png")

    def __getitem__(self, i: int, /) -> Sample:
        rng = np.random.default_rng(i)
        boxes = []
        for _ in range(1 + i % 4):
            x, y = int(rng.integers(0, 40)), int(rng.integers(0, 30))
            boxes.append((x, y, x + 8, y + 9))
        return squares(self.drawn_size, boxes, index=i)
