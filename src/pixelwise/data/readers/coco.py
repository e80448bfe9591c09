"""COCO instances: polygons, compressed and plain run lengths, crowd regions.

Category ids become labels 0..K-1 in ascending order of the ids, whatever their order in the file.
On loading, an annotation of an unknown picture or category is left out and of a repeated id the
first is kept; `data check` lists them. An object with a box but no mask is kept as a crowd region.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pixelwise.data.config import DataConfig, SplitPlace
from pixelwise.data.json_stream import read_json
from pixelwise.data.packed import PackedInstances, Packer, Strings
from pixelwise.data.sample import Instances
from pixelwise.data.source import Color, ImageFiles, Problem
from pixelwise.errors import DataError
from pixelwise.ops import rle
from pixelwise.types import Size


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoSource:
    """One COCO json. Args as in `Source`; `image_ids` and `category_ids` are the file's own."""

    annotations: Path
    files: ImageFiles
    classes: tuple[str, ...]
    things: tuple[int, ...]
    packed: PackedInstances
    image_ids: npt.NDArray[np.int64]
    category_ids: tuple[int, ...]
    colors: tuple[Color, ...] | None = None
    format: str = "coco"
    has_labels: bool = False
    has_instances: bool = True

    def labels(self, i: int) -> npt.NDArray[np.uint8]:
        """COCO instances say nothing about pixels without an object."""
        raise DataError(f"{self.annotations}: has objects, no labels per pixel; use .as_semantic()")

    def instances(self, i: int, size: Size) -> Instances:
        """The objects of picture i."""
        stated = self.files.stated_size(i)
        if stated is not None and stated != size:
            raise DataError(size_message(self.files.path(i), size, stated, self.annotations))
        try:
            return self.packed.instances(i, size)
        except (ValueError, RuntimeError, IndexError) as error:
            raise DataError(
                f"{self.annotations}: a mask of {self.files.names[i]} cannot be drawn ({error}); "
                f"`pixelwise data check` names the annotation"
            ) from error

    def label_files(self, i: int) -> Sequence[Path]:
        """None: all annotations share one file."""
        return ()

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the ids, categories and shapes in the file."""
        from pixelwise.data.readers.coco_problems import find_problems

        return find_problems(self.annotations)

    def picture_problems(self, i: int, size: Size) -> Iterator[Problem]:
        """Outlines, run lengths and boxes of picture i that cannot be right."""
        from pixelwise.data.readers.coco_problems import find_picture_problems

        return find_picture_problems(self.packed, i, size, f"{self.annotations}")


def size_message(image: Path, actual: Size, stated: Size, annotations: Path) -> str:
    """The message for a picture whose size is not the one it was annotated in."""
    text = (
        f"{image}: the picture is {actual[1]}x{actual[0]}, its annotation in {annotations} is for "
        f"{stated[1]}x{stated[0]}"
    )
    if actual == stated[::-1]:
        return (
            f"{text}; it was annotated before its EXIF rotation: save it upright, or annotate again"
        )
    return f"{text}; use the picture it was annotated on, or correct width and height"


def open_split(place: SplitPlace, config: DataConfig) -> CocoSource:
    """Read one COCO json.

    Raises:
        DataError: no JSON, no COCO, or a class in `names` that it does not have.
    """
    file = place.annotations
    if file is None:
        raise DataError(f"{place.main}: COCO needs a .json file; name it under annotations")
    return _Loading(file, config).run(place.images)


class _Loading:
    """Reads one file; pictures, categories and annotations may come in any order."""

    def __init__(self, file: Path, config: DataConfig) -> None:
        self._file = file
        self._config = config
        self._names: list[str] = []
        self._sizes = array("i")
        self._image_ids = array("q")
        self._position: dict[int, int] = {}
        self._categories: dict[int, str] = {}
        self._packer = Packer()
        self._too_early = False

    def run(self, images: Path | None) -> CocoSource:
        handlers = {"categories": self._category, "images": self._image}
        read_json(self._file, {**handlers, "annotations": self._annotation})
        if self._too_early:  # annotations came before the pictures: only now can they be read
            read_json(
                self._file, {**dict.fromkeys(handlers, _skip), "annotations": self._annotation}
            )
        if not self._categories or not self._position:
            missing = "images" if self._categories else "categories"
            raise DataError(
                f"{self._file}: no {missing}; is it a COCO instances file? "
                f"(results files hold predictions only)"
            )
        ids, classes = self._choose_classes()
        sizes = np.frombuffer(self._sizes, np.int32).reshape(-1, 2).copy()
        root, names = _find_images(self._file, images, self._names)
        config = self._config
        things = tuple(
            k for k, name in enumerate(classes) if config.things is None or name in config.things
        )
        return CocoSource(
            annotations=self._file,
            files=ImageFiles(str(root), Strings.of(names), sizes),
            classes=classes,
            things=things,
            packed=self._packer.finish(len(self._names), ids),
            image_ids=np.array(self._image_ids, np.int64),
            category_ids=ids,
            colors=config.colors,
        )

    def _choose_classes(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        ids = sorted(self._categories)
        if self._config.names is None:
            return tuple(ids), tuple(self._categories[i] for i in ids)
        wanted = tuple(self._config.names.values())
        by_name = {self._categories[i]: i for i in ids}
        unknown = [name for name in wanted if name not in by_name]
        if unknown:
            raise DataError(
                f"{self._config.file}: names holds {unknown[0]!r}, {self._file} does not; "
                f"its categories are {', '.join(list(by_name)[:20])}"
            )
        return tuple(by_name[name] for name in wanted), wanted

    def _category(self, entry: Any) -> None:
        try:
            self._categories.setdefault(int(entry["id"]), str(entry["name"]))
        except (TypeError, KeyError, ValueError) as error:
            self._refuse("category", entry, error)

    def _image(self, entry: Any) -> None:
        try:
            image_id = int(entry["id"])
            if image_id in self._position:
                return
            name = str(entry["file_name"])
            height, width = int(entry.get("height") or 0), int(entry.get("width") or 0)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            self._refuse("image", entry, error)
            return
        self._position[image_id] = len(self._names)
        self._image_ids.append(image_id)
        self._names.append(name)
        self._sizes.extend((height, width))

    def _annotation(self, entry: Any) -> None:
        if not self._position:
            self._too_early = True
            return
        try:
            image = self._position.get(int(entry["image_id"]))
            if image is not None:
                self._add(entry, image)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            self._refuse("annotation", entry, error)

    def _add(self, entry: Mapping[str, Any], image: int) -> None:
        shape = _shape(entry.get("segmentation"), self._sizes[2 * image : 2 * image + 2])
        box = _xyxy(entry.get("bbox"))
        if not shape and box is None:
            return  # nothing to learn from; the check says so
        area = entry.get("area")
        self._packer.add(
            image,
            int(entry["category_id"]),
            id=int(entry.get("id", -1)),
            crowd=bool(entry.get("iscrowd", 0)),
            box=box,
            area=None if area is None else float(area),
            shape=shape,
        )

    def _refuse(self, what: str, entry: Any, error: Exception) -> None:
        if self._config.lenient:
            return  # `find_problems` reads the file by itself and lists it
        number: Any = entry
        if isinstance(entry, Mapping):
            number = cast("Mapping[str, Any]", entry).get("id")
        raise DataError(
            f"{self._file}: {what} {number!r} is not as COCO has it "
            f"({type(error).__name__}: {error}); correct or remove it"
        ) from error


def _skip(_: Any) -> None:
    """Elements that the other pass reads."""


def _xyxy(box: Any) -> tuple[float, float, float, float] | None:
    if not box:
        return None
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height


def _shape(value: Any, size: Sequence[int]) -> list[array[float]] | bytes:
    """Polygons with at least three corners, or COCO's compressed run lengths."""
    if isinstance(value, Mapping):
        shape = cast("Mapping[str, Any]", value)
        height, width = (int(side) for side in shape["size"])
        if size[0] and [height, width] != list(size):
            raise ValueError(
                f"run lengths for {width}x{height} in a picture of {size[1]}x{size[0]}"
            )
        return compress_counts(shape["counts"], height, width)
    if not value:
        return []
    parts = [value] if isinstance(value[0], int | float) else value
    return [array("d", part) for part in parts if len(part) >= 6]


def compress_counts(counts: Any, height: int, width: int) -> bytes:
    """COCO's compressed text of run lengths that come compressed or as a list."""
    if isinstance(counts, str):
        return counts.encode("ascii")
    if isinstance(counts, bytes):
        return counts
    if sum(counts) != height * width:
        raise ValueError(f"run lengths cover {sum(counts)} of {height * width} pixels")
    masks = rle.from_coco([{"size": [height, width], "counts": list(counts)}])
    return str(rle.to_coco(masks)[0]["counts"]).encode("ascii")


def _find_images(file: Path, images: Path | None, names: list[str]) -> tuple[Path, list[str]]:
    """The folder that holds the pictures; the first name decides for all."""
    first = names[0]
    short = Path(first).name
    candidates = [images] if images is not None else list(_usual_folders(file))
    for folder in candidates:
        if (folder / first).is_file():
            return folder, names
        if (folder / short).is_file():
            return folder, [Path(name).name for name in names]
    if images is not None and not images.is_dir():
        raise DataError(
            f"{images}: no such folder of images; check images= or `images` in data.yaml"
        )
    # The first picture may be the one that is missing: go on, and let reading it say so.
    return candidates[0], names


def _usual_folders(file: Path) -> Iterator[Path]:
    stem = file.stem.removeprefix("instances_").removesuffix("_polygons")
    for base in (file.parent, file.parent.parent):
        yield from (base / "images" / stem, base / stem, base / "images", base)
