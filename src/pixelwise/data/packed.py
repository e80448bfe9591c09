"""Annotations of a whole data set in a handful of flat arrays.

One Python object per annotation would cost gigabytes for a data set of COCO's size, and again in
every worker: touching an object's reference count copies its memory page after a fork. Arrays are
shared untouched, and pickle as fast as memory is copied.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.data.sample import Instances
from pixelwise.ops import rle
from pixelwise.types import IntArray, RunLengths, Size

POLYGONS, RUNS, BOX_ONLY = 0, 1, 2

_FLUSH = 1 << 20  # numbers kept in growing buffers before they are packed
_DECIMALS = 3  # a float32 coordinate below 8192 recovers this many decimals exactly


@dataclass(frozen=True, eq=False)
class Strings:
    """A list of texts in one byte array.

    Args:
        data:   [total] uint8, UTF-8, one after another.
        starts: [n + 1] int64.
    """

    data: npt.NDArray[np.uint8]
    starts: IntArray

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """Pack texts; file names that are not valid UTF-8 survive."""
        parts = [text.encode("utf-8", "surrogateescape") for text in texts]
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), np.uint8), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> str:
        part = self.data[self.starts[i] : self.starts[i + 1]]
        return part.tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class PackedInstances:
    """The objects of many pictures; those of picture i are image_starts[i]..image_starts[i + 1].

    Polygons stay polygons and run lengths stay COCO's compressed text until a picture is read.

    Args:
        image_starts: [images + 1] int64 into the objects.
        labels:       [A] int32.
        boxes:        [A, 4] float32 xyxy as annotated; NaN where there was none.
        areas:        [A] float64 pixels as annotated; NaN where there was none.
        crowd:        [A] bool.
        ids:          [A] int64.
        kind:         [A] uint8: POLYGONS, RUNS or BOX_ONLY.
        part_starts:  [A] int64, first part (polygon, or text of run lengths) of each object.
        part_ends:    [A] int64, one past its last part.
        spans:        [parts, 2] int64, first and count in `points` or `texts`, by the kind.
        points:       [P, 2] float32 xy, or float64 where float32 would change a coordinate.
        texts:        [T] uint8.
    """

    image_starts: IntArray
    labels: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    ids: IntArray
    kind: npt.NDArray[np.uint8]
    part_starts: IntArray
    part_ends: IntArray
    spans: IntArray
    points: npt.NDArray[np.float32] | npt.NDArray[np.float64]
    texts: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes held by all arrays."""
        return sum(getattr(self, name).nbytes for name in self.__dataclass_fields__)

    def polygons(self, annotation: int) -> list[npt.NDArray[np.float64]]:
        """The parts of one object of the kind POLYGONS, each [P, 2] xy as written in the file."""
        return [
            self._points(part)
            for part in range(self.part_starts[annotation], self.part_ends[annotation])
        ]

    def _points(self, part: int) -> npt.NDArray[np.float64]:
        first, length = self.spans[part]
        stored = self.points[first : first + length]
        if stored.dtype == np.float64:
            return stored.astype(np.float64)
        return np.round(stored.astype(np.float64), _DECIMALS)

    def instances(self, image: int, size: Size) -> Instances:
        """The objects of one picture.

        Args:
            image: position of the picture.
            size:  (height, width) of the picture, on which polygons are drawn.
        """
        first, last = int(self.image_starts[image]), int(self.image_starts[image + 1])
        if first == last:
            return Instances.empty(size)
        span = slice(first, last)
        masks = self._masks(first, last, size)
        boxes = self.boxes[span].copy()
        unknown = np.isnan(boxes[:, 0])
        if unknown.any():
            boxes[unknown] = rle.tight_boxes(masks)[unknown]
        areas = self.areas[span].copy()
        unknown = np.isnan(areas)
        if unknown.any():
            areas[unknown] = rle.areas(masks)[unknown]
        return Instances(
            masks=masks,
            labels=self.labels[span].astype(np.int64),
            boxes=boxes,
            # A box can train no mask: it only keeps its region from being background.
            crowd=self.crowd[span] | (self.kind[span] == BOX_ONLY),
            ids=self.ids[span].copy(),
            areas=areas,
        )

    def _masks(self, first: int, last: int, size: Size) -> RunLengths:
        kind = self.kind[first:last]
        parts: list[RunLengths] = []
        order: list[IntArray] = []
        for wanted, make in ((RUNS, self._runs), (POLYGONS, self._drawn), (BOX_ONLY, self._boxes)):
            where = np.nonzero(kind == wanted)[0]
            if len(where):
                parts.append(make(where + first, size))
                order.append(where)
        if len(parts) == 1:
            return parts[0]
        return RunLengths.concat(parts).select(np.argsort(np.concatenate(order)))

    def _runs(self, which: IntArray, size: Size) -> RunLengths:
        records: list[dict[str, Any]] = []
        for part in self.part_starts[which]:
            first, length = self.spans[part]
            text = self.texts[first : first + length].tobytes()
            records.append({"size": list(size), "counts": text})
        return rle.from_coco(records)

    def _drawn(self, which: IntArray, size: Size) -> RunLengths:
        return rle.from_polygons(
            [[part.reshape(-1).tolist() for part in self.polygons(int(i))] for i in which], size
        )

    def _boxes(self, which: IntArray, size: Size) -> RunLengths:
        rectangles: list[list[list[float]]] = []
        for x1, y1, x2, y2 in self.boxes[which].astype(float):
            rectangles.append([[x1, y1, x2, y1, x2, y2, x1, y2]])
        return rle.from_polygons(rectangles, size)


class Packer:
    """Collects annotations one at a time, in any order of pictures, without keeping objects."""

    def __init__(self) -> None:
        self._image = array("q")
        self._label = array("i")
        self._box = array("f")
        self._area = array("d")
        self._crowd = array("b")
        self._id = array("q")
        self._kind = array("b")
        self._parts = array("q", [0])
        self._first = array("q")
        self._length = array("q")
        self._texts = bytearray()
        self._pending = array("d")
        # Grows in place, unlike a list of pieces that must be copied together at the end.
        self._coordinates: array[float] = array("f")
        self._short = True
        self._points = 0

    def __len__(self) -> int:
        return len(self._label)

    def add(
        self,
        image: int,
        label: int,
        *,
        id: int,
        crowd: bool = False,
        box: Sequence[float] | None = None,
        area: float | None = None,
        shape: Sequence[Sequence[float]] | bytes = (),
    ) -> None:
        """Add one object.

        Args:
            image:    position of its picture.
            label:    the class, as `finish` knows it.
            id:       the annotation's own id, -1 if it has none.
            crowd:    a region of uncounted objects.
            box:      xyxy as annotated.
            area:     pixels as annotated.
            shape:    polygons, each x, y, x, y, ..., or COCO's compressed run lengths; empty where
                      the box is all that is known.
        """
        nan = float("nan")
        self._image.append(image)
        self._label.append(label)
        self._box.extend(box if box is not None else (nan, nan, nan, nan))
        self._area.append(nan if area is None else area)
        self._crowd.append(crowd)
        self._id.append(id)
        if isinstance(shape, bytes):
            self._kind.append(RUNS)
            self._first.append(len(self._texts))
            self._length.append(len(shape))
            self._texts += shape
        else:
            self._kind.append(POLYGONS if len(shape) else BOX_ONLY)
            for part in shape:
                self._first.append(self._points)
                self._length.append(len(part) // 2)
                self._points += len(part) // 2
                self._pending.extend(part[: len(part) // 2 * 2])
        self._parts.append(len(self._first))
        if len(self._pending) > _FLUSH:
            self._flush()

    def _flush(self) -> None:
        exact = _from(self._pending, np.float64)
        short = exact.astype(np.float32)
        if not np.array_equal(np.round(short.astype(np.float64), _DECIMALS), exact):
            self._widen()
        self._coordinates.frombytes(short.tobytes() if self._short else exact.tobytes())
        self._pending = array("d")

    def _widen(self) -> None:
        """Go over to float64, once, when a coordinate needs more digits."""
        if self._short:
            stored = _from(self._coordinates, np.float32).astype(np.float64)
            exact = np.round(stored, _DECIMALS)
            self._coordinates = array("d", exact.tobytes())
            self._short = False

    def finish(self, images: int, classes: Sequence[int]) -> PackedInstances:
        """All objects, sorted by picture, those of one picture in the order of the file.

        Args:
            images:  number of pictures.
            classes: the value `add` was given for label 0, 1, ...; objects of other classes are
                     left out, and of objects with the same id all but the first.
        """
        self._flush()
        dtype = np.float32 if self._short else np.float64
        points = _from(self._coordinates, dtype).reshape(-1, 2)
        image = _from(self._image, np.int64)
        labels = _relabel(_from(self._label, np.int32), classes)
        ids = _from(self._id, np.int64)
        kept = (labels >= 0) & _first_of_each(ids)
        order = np.argsort(image, kind="stable")
        order = order[kept[order]]
        parts = np.frombuffer(self._parts, np.int64)
        spans = np.stack([_from(self._first, np.int64), _from(self._length, np.int64)], axis=1)
        return PackedInstances(
            image_starts=np.searchsorted(image[order], np.arange(images + 1)).astype(np.int64),
            labels=labels[order],
            boxes=_from(self._box, np.float32).reshape(-1, 4)[order],
            areas=_from(self._area, np.float64)[order],
            crowd=_from(self._crowd, np.int8)[order].astype(np.bool_),
            ids=np.where(ids < 0, np.arange(len(ids)), ids)[order],
            kind=_from(self._kind, np.int8)[order].astype(np.uint8),
            part_starts=parts[:-1][order],
            part_ends=parts[1:][order],
            spans=spans,
            points=points,
            texts=np.frombuffer(bytes(self._texts), np.uint8),
        )


def _from(values: array[Any], dtype: Any) -> npt.NDArray[Any]:
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)


def _relabel(raw: npt.NDArray[np.int32], classes: Sequence[int]) -> npt.NDArray[np.int32]:
    """Positions in `classes`, -1 for a value that is not there."""
    ranks = np.argsort(np.asarray(classes))
    ordered = np.asarray(classes)[ranks]
    at = np.minimum(np.searchsorted(ordered, raw), len(ordered) - 1)
    return np.where(ordered[at] == raw, ranks[at], -1).astype(np.int32)


def _first_of_each(ids: IntArray) -> npt.NDArray[np.bool_]:
    """True where an id occurs for the first time, and for objects without an id."""
    first = ids < 0
    first[np.unique(ids, return_index=True)[1]] = True
    return first
