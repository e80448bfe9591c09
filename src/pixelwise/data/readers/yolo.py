"""YOLO segmentation: one text file per picture, one object per line, corners relative to the size.

A line is `class x1 y1 x2 y2 ...` with coordinates in 0..1. One with four numbers after the class
is a box without a mask and is kept as a crowd region. Objects of several parts are joined by such
files into one outline with a bridge of no width; drawn, the bridge covers nothing or one pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pixelwise.data.config import DataConfig, SplitPlace
from pixelwise.data.packed import Strings
from pixelwise.data.readers.coco_problems import box_problems, polygon_problems
from pixelwise.data.readers.pairing import label_folder, pictures_of
from pixelwise.data.sample import Instances
from pixelwise.data.source import Color, ImageFiles, Problem
from pixelwise.errors import DataError
from pixelwise.ops import rle
from pixelwise.types import Size

_CLOSE = 1.01  # tools round coordinates at the border; further out is an error


class _BadLineError(DataError):
    """A line that cannot be understood."""

    def __init__(self, kind: str, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Line:
    """One object of a label file.

    Args:
        number: of the line, from 1.
        label:  class.
        points: [P, 2] xy relative to the picture's size; [2, 2] opposite corners of a box.
        is_box: whether it is a box without a mask.
    """

    number: int
    label: int
    points: npt.NDArray[np.float64]
    is_box: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class YoloSource:
    """Pictures with a text file each; a picture without one has no objects. Args as in `Source`."""

    files: ImageFiles
    label_root: str
    label_names: Strings
    classes: tuple[str, ...]
    class_numbers: tuple[int, ...]
    things: tuple[int, ...]
    colors: tuple[Color, ...] | None = None
    format: str = "yolo-seg"
    has_labels: bool = False
    has_instances: bool = True

    def labels(self, i: int) -> npt.NDArray[np.uint8]:
        """Objects say nothing about pixels without one."""
        raise DataError(f"{self.label_root}: has objects, no labels per pixel; use .as_semantic()")

    def instances(self, i: int, size: Size) -> Instances:
        """The objects of picture i, in the order of the lines."""
        lines = self.lines(i)
        if not lines:
            return Instances.empty(size)
        scale = np.array([size[1], size[0]], np.float64)
        corners = [line.points * scale for line in lines]
        drawn = [
            _rectangle(c) if line.is_box else c for c, line in zip(corners, lines, strict=True)
        ]
        masks = rle.from_polygons([[part.reshape(-1).tolist()] for part in drawn], size)
        boxes = np.stack([np.concatenate([c.min(axis=0), c.max(axis=0)]) for c in corners])
        return Instances(
            masks=masks,
            labels=np.array([line.label for line in lines], np.int64),
            boxes=boxes.astype(np.float32),
            crowd=np.array([line.is_box for line in lines], np.bool_),
            ids=np.array([line.number for line in lines], np.int64),
            areas=rle.areas(masks).astype(np.float64),
        )

    def lines(self, i: int) -> list[Line]:
        """The objects of picture i as written.

        Raises:
            DataError: a line that cannot be understood; names file and line.
        """
        return [self._parse(words, where, number) for words, where, number in self._words(i)]

    def label_files(self, i: int) -> Sequence[Path]:
        """The text file, where there is one."""
        name = self.label_names[i]
        path = Path(self.label_root, name)
        return [path] if name and path.is_file() else []

    def problems(self) -> Iterator[Problem]:
        """Nothing concerns more than one picture."""
        return iter(())

    def picture_problems(self, i: int, size: Size) -> Iterator[Problem]:
        """Lines that cannot be understood, and outlines that cannot be right."""
        scale = np.array([size[1], size[0]], np.float64)
        try:
            for words, where, number in self._words(i):
                yield from self._line_problems(words, where, number, size, scale)
        except DataError as error:
            yield Problem(kind="unreadable label", file=self.label_names[i], detail=str(error))

    def _line_problems(
        self, words: list[str], where: str, number: int, size: Size, scale: npt.NDArray[np.float64]
    ) -> Iterator[Problem]:
        file, name = where.rsplit(":", 1)[0], f"line {number}"
        try:
            line = self._parse(words, where, number)
        except _BadLineError as error:
            yield Problem(kind=error.kind, file=file, detail=f"{name}: {error.reason}")
            return
        corners = line.points * scale
        if line.is_box:
            yield Problem(kind="no mask", file=file, detail=f"{name} is a box only")
            yield from box_problems(corners.reshape(-1).tolist(), size, file, name)
        else:
            yield from polygon_problems(corners, size, file, name)

    def _words(self, i: int) -> Iterator[tuple[list[str], str, int]]:
        """The words of each line that is not blank, where it stands, and its number."""
        for path in self.label_files(i):
            for number, line in enumerate(read_text(path).splitlines(), start=1):
                if line.split():
                    yield line.split(), f"{path}:{number}", number

    def _parse(self, words: list[str], where: str, number: int) -> Line:
        try:
            raw, values = int(float(words[0])), [float(word) for word in words[1:]]
        except ValueError as error:
            step = f"not numbers ({error}); write: class x1 y1 x2 y2 ..."
            raise _BadLineError("broken annotation", where, step) from error
        if raw not in self.class_numbers:
            step = f"class {raw} is not in `names` ({len(self.classes)} classes); add or correct it"
            raise _BadLineError("unknown category", where, step)
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            step = f"{len(values)} numbers after the class; an outline needs three corners or more"
            raise _BadLineError("degenerate polygon", where, step)
        points = np.array(values, np.float64).reshape(-1, 2)
        if not ((points >= 1 - _CLOSE) & (points <= _CLOSE)).all():
            step = "coordinates outside 0..1; divide x by the width and y by the height"
            raise _BadLineError("polygon outside", where, step)
        is_box = len(values) == 4
        if is_box:  # centre and size
            points = np.stack([points[0] - points[1] / 2, points[0] + points[1] / 2])
        label = self.class_numbers.index(raw)
        return Line(number=number, label=label, points=points, is_box=is_box)


def open_split(place: SplitPlace, config: DataConfig) -> YoloSource:
    """Open one split: a folder of pictures, or a text file that lists them; labels mirror it.

    Raises:
        DataError: no pictures, or no names.
    """
    if config.names is None:
        raise DataError(f"{config.file or place.main}: YOLO labels need `names` in data.yaml")
    where = place.images or place.main
    root, images = pictures_of(where)
    is_list = where.suffix == ".txt"
    labels = place.annotations or (None if is_list else label_folder(root, ("labels",)))
    if labels is None and not is_list:
        raise DataError(f"{root}: no folder of labels; YOLO mirrors images/train as labels/train")
    name_of = _mirrored if labels is None or is_list else _below
    names = [name_of(path, root, labels) for path in images]
    classes = tuple(config.names.values())
    return YoloSource(
        files=ImageFiles.under(root, images),
        label_root=str(labels or root),
        label_names=Strings.of(names),
        classes=classes,
        class_numbers=tuple(config.names),
        things=tuple(
            k for k, name in enumerate(classes) if config.things is None or name in config.things
        ),
        colors=config.colors,
    )


def read_text(path: Path) -> str:
    """The content of a label file.

    Raises:
        DataError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error}); export the labels again") from error


def _below(image: Path, root: Path, labels: Path | None) -> str:
    """The same path below the folder of labels."""
    del labels
    return str(image.relative_to(root).with_suffix(".txt"))


def _mirrored(image: Path, root: Path, labels: Path | None) -> str:
    """The last `images` of the path becomes `labels`; or the longest common end below `labels`."""
    del root
    parts = list(image.absolute().with_suffix(".txt").parts)
    if labels is not None:
        ends = (labels.joinpath(*parts[first:]) for first in range(1, len(parts)))
        return str(next((end.absolute() for end in ends if end.is_file()), ""))
    at = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if at:
        parts[at[-1]] = "labels"
    return str(Path(*parts))


def _rectangle(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    (x1, y1), (x2, y2) = corners
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
