"""What `data check` finds wrong in a COCO json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from pixelwise.data.json_stream import read_json
from pixelwise.data.packed import BOX_ONLY, POLYGONS, PackedInstances
from pixelwise.data.readers.coco import compress_counts
from pixelwise.data.source import Problem
from pixelwise.errors import DataError
from pixelwise.ops import rle
from pixelwise.ops.polygons import is_self_crossing, polygon_area
from pixelwise.types import Size

_SLACK_PX = 1.0  # annotation tools round at the border


def find_problems(file: Path) -> Iterator[Problem]:
    """Ids, categories and malformed entries of the whole file."""
    found = _Inspection(str(file))
    read_json(file, {"images": found.image, "categories": found.category, "annotations": _skip})
    read_json(file, {"images": _skip, "categories": _skip, "annotations": found.annotation})
    yield from found.problems


def find_picture_problems(
    packed: PackedInstances, image: int, size: Size, file: str
) -> Iterator[Problem]:
    """Shapes and boxes of one picture's objects."""
    for a in range(int(packed.image_starts[image]), int(packed.image_starts[image + 1])):
        name = f"annotation {packed.ids[a]}"
        if packed.kind[a] == POLYGONS:
            for part in packed.polygons(a):
                yield from polygon_problems(part, size, file, name)
        elif packed.kind[a] == BOX_ONLY:
            yield Problem(kind="no mask", file=file, detail=f"{name} has a box only")
        box = packed.boxes[a].astype(float)
        if not np.isnan(box[0]):
            yield from box_problems(box.tolist(), size, file, name)
    try:
        areas = rle.areas(packed.instances(image, size).masks)
    except (DataError, ValueError, RuntimeError, IndexError) as error:
        yield Problem(kind="broken annotation", file=file, detail=f"picture {image}: {error}")
        return
    first = int(packed.image_starts[image])
    for n in np.nonzero(areas == 0)[0]:
        yield Problem(kind="empty mask", file=file, detail=f"annotation {packed.ids[first + n]}")


def polygon_problems(points: Any, size: Size, file: str, name: str) -> Iterator[Problem]:
    """What is wrong with one outline.

    Args:
        points: [P, 2] xy in pixels.
        size:   (height, width) of the picture.
        file:   where it is written.
        name:   which one it is, for the message.
    """
    if not np.isfinite(points).all():
        yield Problem(kind="broken annotation", file=file, detail=f"{name}: no finite numbers")
        return
    if is_self_crossing(points):  # a bow tie has no area either, by its sign
        yield Problem(kind="self-crossing polygon", file=file, detail=name)
    elif len(np.unique(points, axis=0)) < 3 or abs(polygon_area(points)) < 1e-6:
        yield Problem(kind="degenerate polygon", file=file, detail=f"{name}: no area")
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < -_SLACK_PX).any() or high[0] > size[1] + _SLACK_PX or high[1] > size[0] + _SLACK_PX:
        reach = ", ".join(f"{value:.0f}" for value in (*low, *high))
        detail = f"{name}: reaches {reach} in a picture of {size[1]}x{size[0]}"
        yield Problem(kind="polygon outside", file=file, detail=detail)


def box_problems(box: list[float], size: Size, file: str, name: str) -> Iterator[Problem]:
    """What is wrong with one xyxy box of a picture of (height, width) `size`."""
    x1, y1, x2, y2 = box
    shown = ", ".join(f"{value:g}" for value in box)
    if x2 <= x1 or y2 <= y1:
        yield Problem(kind="degenerate box", file=file, detail=f"{name}: {shown}")
    elif min(x1, y1) < -_SLACK_PX or x2 > size[1] + _SLACK_PX or y2 > size[0] + _SLACK_PX:
        detail = f"{name}: {shown} in a picture of {size[1]}x{size[0]}"
        yield Problem(kind="box outside", file=file, detail=detail)


class _Inspection:
    """Looks at every entry of the file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.problems: list[Problem] = []
        self.categories: dict[int, str] = {}
        self._images: dict[int, tuple[int, int]] = {}
        self._names: set[str] = set()
        self._ids: set[int] = set()

    def category(self, entry: Any) -> None:
        values = self._mapping(entry, "category", ("id", "name"))
        if values is None:
            return
        if int(values["id"]) in self.categories:
            self._add("duplicate id", f"category {values['id']}")
        if str(values["name"]) in self.categories.values():
            self._add("duplicate id", f"category name {values['name']!r} is used twice")
        self.categories.setdefault(int(values["id"]), str(values["name"]))

    def image(self, entry: Any) -> None:
        values = self._mapping(entry, "image", ("id", "file_name"))
        if values is None:
            return
        if int(values["id"]) in self._images:
            self._add("duplicate id", f"image {values['id']} ({values['file_name']})")
        if str(values["file_name"]) in self._names:
            self._add("duplicate id", f"picture {values['file_name']} is listed twice")
        self._names.add(str(values["file_name"]))
        self._images[int(values["id"])] = (
            int(values.get("height") or 0),
            int(values.get("width") or 0),
        )

    def annotation(self, entry: Any) -> None:
        values = self._mapping(entry, "annotation", ("id", "image_id", "category_id"))
        if values is None:
            return
        name = f"annotation {values['id']}"
        if int(values["id"]) in self._ids:
            self._add("duplicate id", name)
        self._ids.add(int(values["id"]))
        category, image = int(values["category_id"]), int(values["image_id"])
        if category not in self.categories:
            self._add("unknown category", f"{name} has category_id {category}")
        if image not in self._images:
            self._add("unknown image", f"{name} has image_id {image}")
            return
        try:
            self._shape(values.get("segmentation"), self._images[image], name)
        except (TypeError, KeyError, ValueError, IndexError) as error:
            self._add("broken annotation", f"{name}: {type(error).__name__}: {error}")

    def _shape(self, value: Any, size: Size, name: str) -> None:
        if isinstance(value, Mapping):
            shape = cast("Mapping[str, Any]", value)
            height, width = (int(side) for side in shape["size"])
            if size[0] and (height, width) != size:
                self._add("mask size mismatch", f"{name}: {width}x{height} for {size[1]}x{size[0]}")
            compress_counts(shape["counts"], height, width)
            return
        parts: list[Any] = list(value or [])
        if parts and isinstance(parts[0], int | float):
            parts = [parts]
        for part in parts:
            if len(part) < 6 or len(part) % 2:
                self._add("degenerate polygon", f"{name}: {len(part)} numbers, at least 6 needed")
            for number in part:
                float(number)

    def _mapping(self, entry: Any, what: str, keys: tuple[str, ...]) -> Mapping[str, Any] | None:
        """The entry, if it is usable at all."""
        if not isinstance(entry, Mapping):
            self._add("broken annotation", f"{what} {str(entry)[:40]} is no object")
            return None
        values = cast("Mapping[str, Any]", entry)
        for key in keys:
            if key not in values:
                self._add("broken annotation", f"{what} {values.get('id')} has no {key}")
                return None
            try:
                if key.endswith("id"):
                    int(values[key])
            except (TypeError, ValueError):
                self._add("broken annotation", f"{what}: {key} is {values[key]!r}, no number")
                return None
        return values

    def _add(self, kind: str, detail: str) -> None:
        self.problems.append(Problem(kind=kind, file=self._file, detail=detail))


def _skip(_: Any) -> None:
    """Entries that the other pass looks at."""
