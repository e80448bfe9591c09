"""Pictures whose annotation is a label picture each, with an object picture where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.data.images import read_label
from pixelwise.data.packed import Strings
from pixelwise.data.readers.tables import LabelTable
from pixelwise.data.sample import Instances
from pixelwise.data.source import Color, ImageFiles, Problem
from pixelwise.errors import DataError
from pixelwise.ops import rle
from pixelwise.types import IntArray, RunLengths, Size

ReadObjects = Callable[[npt.NDArray[Any], npt.NDArray[np.uint8]], Instances]


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelSource:
    """Pictures with a class per pixel; what `Source` does not name is described here.

    Args:
        label_root:   folder of the label pictures.
        label_names:  n file names under it, empty where a picture has none.
        table:        stored values → labels.
        object_names: n file names of the object pictures, or None.
        read_objects: called with the stored object picture [H, W] and the labels [H, W]; a plain
                      function, so that the source can be sent to a worker.
    """

    format: str
    files: ImageFiles
    label_root: str
    label_names: Strings
    table: LabelTable
    classes: tuple[str, ...]
    colors: tuple[Color, ...] | None = None
    things: tuple[int, ...] = ()
    object_names: Strings | None = None
    read_objects: ReadObjects | None = None
    has_labels: bool = True

    @property
    def has_instances(self) -> bool:
        """Whether there are object pictures."""
        return self.object_names is not None

    def label_path(self, i: int) -> Path:
        """The label picture of picture i.

        Raises:
            DataError: it has none.
        """
        return self._existing(self.label_names, i)

    def labels(self, i: int) -> npt.NDArray[np.uint8]:
        """[H, W] 0..K-1 or 255."""
        path = self.label_path(i)
        return self.table.apply(read_label(path), path)

    def instances(self, i: int, size: Size) -> Instances:
        """The objects of the object picture."""
        if self.object_names is None or self.read_objects is None:
            raise DataError(
                f"{self.label_root}: one class per pixel says nothing about single objects; use "
                f"as_instances(components=True) to take connected pieces as objects"
            )
        labels = self.labels(i)
        raw = read_label(self._existing(self.object_names, i))
        if labels.shape != size or raw.shape[:2] != size:
            path = self.label_path(i)
            raise DataError(label_size_message(path, labels.shape, self.files.path(i), size))
        return self.read_objects(raw, labels)

    def label_files(self, i: int) -> Sequence[Path]:
        """The label picture and the object picture, where they exist."""
        names = [self.label_names[i]] + ([self.object_names[i]] if self.object_names else [])
        return [Path(self.label_root, name) for name in names if name]

    def problems(self) -> Iterator[Problem]:
        """Pictures without labels."""
        for i in range(len(self.files)):
            if not self.label_names[i]:
                yield Problem(kind="missing label", file=str(self.files.path(i)))

    def picture_problems(self, i: int, size: Size) -> Iterator[Problem]:
        """Labels that cannot be read, are of another size, or hold unknown values."""
        for k, path in enumerate(self.label_files(i)):
            try:
                raw = read_label(path)
                unknown = self.table.unknown(raw, path) if k == 0 else []
            except DataError as error:
                yield Problem(kind="unreadable label", file=str(path), detail=str(error))
                continue
            if raw.shape[:2] != size:
                detail = f"labels {raw.shape[1]}x{raw.shape[0]}, picture {size[1]}x{size[0]}"
                yield Problem(kind="label size mismatch", file=str(path), detail=detail)
            if unknown:
                shown = ", ".join(self.table.show(value) for value in unknown[:8])
                more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
                yield Problem(kind="value out of range", file=str(path), detail=shown + more)

    def _existing(self, names: Strings, i: int) -> Path:
        name = names[i]
        if not name:
            raise DataError(
                f"{self.files.path(i)}: no label picture for it under {self.label_root}; "
                f"add one of the same name, or remove the picture"
            )
        return Path(self.label_root, name)


def label_size_message(label: Path, found: tuple[int, ...], image: Path, size: Size) -> str:
    """The message for labels of another size than their picture."""
    return (
        f"{label}: the labels are {found[1]}x{found[0]}, the picture {image} is "
        f"{size[1]}x{size[0]}; export the labels at the size of the picture"
    )


def encode_objects(objects: npt.NDArray[Any], values: Sequence[int]) -> RunLengths:
    """Masks of the pixels that hold each value, without a dense stack.

    Args:
        objects: [H, W] ints.
        values:  the N values to encode, in order; each must occur.

    Returns:
        N masks.
    """
    size = (int(objects.shape[0]), int(objects.shape[1]))
    if not len(values):
        return RunLengths.empty(size)
    flat = objects.T.reshape(-1)  # column by column, as run lengths go
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    first = np.searchsorted(ordered, values, side="left")
    last = np.searchsorted(ordered, values, side="right")
    windows = np.zeros((len(values), 4), np.int64)
    crops: list[npt.NDArray[np.bool_]] = []
    for n, value in enumerate(values):
        at = order[first[n] : last[n]]
        x, y = at // size[0], at % size[0]
        window = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        windows[n] = window
        crop = objects[window[1] : window[3], window[0] : window[2]] == value
        crops.append(crop.T.reshape(-1))
    return rle.encode_columns(np.concatenate(crops), windows, size)


def make_instances(
    masks: RunLengths, labels: IntArray, *, crowd: npt.NDArray[np.bool_] | None = None
) -> Instances:
    """Objects with tight boxes, numbered by position."""
    return Instances(
        masks=masks,
        labels=np.asarray(labels, np.int64),
        boxes=rle.tight_boxes(masks),
        crowd=np.zeros(len(masks), np.bool_) if crowd is None else crowd,
        ids=np.arange(len(masks), dtype=np.int64),
        areas=rle.areas(masks).astype(np.float64),
    )
