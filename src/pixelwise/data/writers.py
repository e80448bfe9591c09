"""One writer per format that `data convert` can make."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixelwise.data.dataset import Dataset
from pixelwise.data.readers.voc import palette
from pixelwise.data.sample import Instances
from pixelwise.data.source import Color
from pixelwise.errors import DataError
from pixelwise.ops import rle
from pixelwise.ops.polygons import Points, Polygon, join_rings, mask_to_polygons
from pixelwise.types import IGNORE, Size

_DIGITS = 7  # relative coordinates of pictures up to 100,000 pixels stay exact


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture to write.

    Args:
        split: its split.
        name:  its file name below the split's folder.
        size:  (height, width).
        labels, instances: its annotation in the view that the writer asked for.
    """

    split: str
    name: Path
    size: Size
    labels: npt.NDArray[np.uint8] | None
    instances: Instances | None

    @property
    def objects(self) -> Instances:
        """The objects, of which there are none where the view has none."""
        return Instances.empty(self.size) if self.instances is None else self.instances


class Writer(Protocol):
    """Writes a data set picture by picture."""

    def image_path(self, split: str, name: Path) -> Path:
        """Where the picture itself goes."""
        ...

    def write(self, picture: Picture) -> Counter[str]:
        """Write one annotation; returns what the format could not hold."""
        ...

    def finish_split(self, split: str) -> None:
        """Called after the last picture of a split."""
        ...

    def config(self) -> dict[str, Any]:
        """The content of data.yaml."""
        ...


def crops(instances: Instances) -> Iterable[tuple[int, int, npt.NDArray[np.uint8]]]:
    """(left, top, pixels [h, w]) of each object's mask."""
    pixels: npt.NDArray[np.uint8] = rle.decode_crops(instances.masks).pixels.numpy()
    at = 0
    for window in instances.masks.windows:
        x0, y0, x1, y1 = (int(side) for side in window)
        end = at + (y1 - y0) * (x1 - x0)
        yield x0, y0, pixels[at:end].reshape(y1 - y0, x1 - x0)
        at = end


def outlines(instances: Instances) -> Iterable[list[Polygon]]:
    """The polygons of each object's mask."""
    for left, top, crop in crops(instances):
        yield mask_to_polygons(crop, (left, top)) if crop.size else []


class _Base:
    def __init__(self, out: Path, view: Dataset) -> None:
        self.out = out
        self.classes = view.classes
        self.colors = view.colors
        self.splits: list[str] = []

    def image_path(self, split: str, name: Path) -> Path:
        return self.out / "images" / split / name

    def finish_split(self, split: str) -> None:
        self.splits.append(split)

    def _config(self, format: str, places: dict[str, Any]) -> dict[str, Any]:
        # A data set without splits trains on everything; data.yaml knows no other name for that.
        named = {("train" if name == "all" else name): place for name, place in places.items()}
        entries: dict[str, Any] = {"path": ".", "format": format, **named}
        return {**entries, "names": list(self.classes), **self._colors()}

    def _colors(self) -> dict[str, Any]:
        return {} if self.colors is None else {"colors": [list(color) for color in self.colors]}


class CocoWriter(_Base):
    """Polygons where one outline says it all, run lengths for holes and crowd regions."""

    def __init__(self, out: Path, view: Dataset) -> None:
        super().__init__(out, view)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def write(self, picture: Picture) -> Counter[str]:
        """Collect one picture."""
        objects = picture.objects
        number = len(self._images) + 1
        self._images.append(
            {
                "id": number,
                "file_name": picture.name.as_posix(),
                "height": picture.size[0],
                "width": picture.size[1],
            }
        )
        packed, areas = rle.to_coco(objects.masks), rle.areas(objects.masks)
        boxes = rle.tight_boxes(objects.masks).astype(float)
        for n, polygons in enumerate(outlines(objects)):
            is_crowd = bool(objects.crowd[n])
            simple = not is_crowd and polygons and not any(holes for _, holes in polygons)
            x1, y1, x2, y2 = boxes[n].tolist()
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": number,
                    "category_id": int(objects.labels[n]) + 1,
                    "iscrowd": int(is_crowd),
                    "area": int(areas[n]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [ring.reshape(-1).tolist() for ring, _ in polygons]
                    if simple
                    else packed[n],
                }
            )
        return Counter()

    def finish_split(self, split: str) -> None:
        """Write the split's json."""
        super().finish_split(split)
        folder = self.out / "annotations"
        folder.mkdir(exist_ok=True)
        content = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(self.classes)],
        }
        (folder / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
        self._images, self._annotations = [], []

    def config(self) -> dict[str, Any]:
        """One json per split."""
        places = {
            split: {
                "annotations": f"annotations/instances_{split}.json",
                "images": f"images/{split}",
            }
            for split in self.splits
        }
        return self._config("coco", places)


class YoloWriter(_Base):
    """Outlines relative to the size; holes and parts are joined by bridges of no width."""

    def write(self, picture: Picture) -> Counter[str]:
        """Write the text file of one picture, empty where there is no object."""
        lost: Counter[str] = Counter()
        lines: list[str] = []
        scale = np.array([picture.size[1], picture.size[0]], np.float64)
        objects = picture.objects
        for n, polygons in enumerate(outlines(objects)):
            if objects.crowd[n]:
                lost["crowd"] += 1
                continue
            rings = [ring for exterior, holes in polygons for ring in (exterior, *holes)]
            if not rings:
                continue
            lost.update({"bridged": 1} if len(rings) > 1 else {})
            lines.append(f"{int(objects.labels[n])} {_relative(join_rings(rings) / scale)}\n")
        path = (self.out / "labels" / picture.split / picture.name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="ascii")
        return lost

    def config(self) -> dict[str, Any]:
        """As ultralytics has it."""
        return self._config("yolo-seg", {split: f"images/{split}" for split in self.splits})


class IndexWriter(_Base):
    """One palette PNG per picture, the label as index, 255 void."""

    def write(self, picture: Picture) -> Counter[str]:
        """Write the label picture."""
        assert picture.labels is not None
        path = (self.out / "labels" / picture.split / picture.name).with_suffix(".png")
        colors = self.colors or palette(len(self.classes))
        save_index(picture.labels, path, colors)
        return Counter() if picture.instances is None else _lost_by_painting(picture.instances)

    def config(self) -> dict[str, Any]:
        """Folders of pictures and labels."""
        places = {split: f"images/{split}" for split in self.splits}
        return {**self._config("masks", places), "void": [IGNORE], "layout": "index"}


class VocWriter(_Base):
    """Class and object pictures; the background is 0, crowd regions are void."""

    def __init__(self, out: Path, view: Dataset) -> None:
        super().__init__(out, view)
        self._listed: list[str] = []
        self._is_semantic = view.view == "semantic"
        rest = [k for k, name in enumerate(self.classes) if name != "background"]
        if self._is_semantic and len(rest) == len(self.classes):
            order = rest  # every pixel has a class of its own
        else:
            order = [k for k, name in enumerate(self.classes) if name == "background"] + rest
        self._names = [self.classes[k] for k in order]
        if "background" not in self._names and not self._is_semantic:
            self._names = ["background", *self._names]
        self._index = np.array([self._names.index(name) for name in self.classes], np.uint8)

    def image_path(self, split: str, name: Path) -> Path:
        """All pictures in one folder, so those of later splits may need another name."""
        return self.out / "JPEGImages" / f"{split}_{name.name}"

    def write(self, picture: Picture) -> Counter[str]:
        """Write the class picture, and the object picture where objects are known."""
        stem = f"{picture.split}_{picture.name.stem}"
        self._listed.append(stem)
        colors = palette(256)[: len(self._names)]
        if picture.labels is not None:
            translated = np.full(picture.size, IGNORE, np.uint8)
            known = picture.labels != IGNORE
            translated[known] = self._index[picture.labels[known]]
            save_index(translated, self.out / "SegmentationClass" / f"{stem}.png", colors)
            return Counter()
        return self._write_objects(picture, stem, colors)

    def _write_objects(self, picture: Picture, stem: str, colors: Sequence[Color]) -> Counter[str]:
        objects = picture.objects
        areas = rle.areas(objects.masks)
        single = np.nonzero(~objects.crowd)[0]
        if len(single) > 254:
            raise DataError(
                f"{picture.name}: {len(single)} objects; a VOC object picture holds at most 254: "
                f"convert to coco or objects instead"
            )
        order = np.concatenate(
            [np.nonzero(objects.crowd)[0], single[np.argsort(-areas[single], kind="stable")]]
        )
        classes = np.where(objects.crowd, IGNORE, self._index[objects.labels])
        numbers = np.where(objects.crowd, IGNORE, np.cumsum(~objects.crowd))
        masks = objects.masks.select(order)
        painted = rle.paint(masks, classes[order], fill=0)
        counted = rle.paint(masks, numbers[order], fill=0)
        save_index(painted, self.out / "SegmentationClass" / f"{stem}.png", colors)
        save_index(counted, self.out / "SegmentationObject" / f"{stem}.png", palette(256)[:255])
        covered = int(areas.sum()) - int((counted > 0).sum())
        hidden = len(single) - len(np.unique(counted[(counted > 0) & (counted < IGNORE)]))
        lost = {"overlap": covered, "hidden": hidden, "crowd as void": int(objects.crowd.sum())}
        return Counter({kind: count for kind, count in lost.items() if count})

    def finish_split(self, split: str) -> None:
        """Write the list of the split."""
        super().finish_split(split)
        path = self.out / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{stem}\n" for stem in self._listed), encoding="utf-8")
        self._listed = []

    def config(self) -> dict[str, Any]:
        """One list per split; the names in the order of the stored indices."""
        places = {split: f"ImageSets/Segmentation/{split}.txt" for split in self.splits}
        return {
            **self._config("voc", places),
            "names": self._names,
            "colors": [list(color) for color in palette(256)[: len(self._names)]],
        }


class ObjectWriter(_Base):
    """A folder per picture, with one mask file per object: SPLIT/NAME/masks/CLASS_0001.png."""

    def image_path(self, split: str, name: Path) -> Path:
        """In the picture's own folder."""
        return self.out / split / name.stem / "images" / name.name

    def write(self, picture: Picture) -> Counter[str]:
        """Write one file per object; 255 is the object."""
        folder = self.out / picture.split / picture.name.stem / "masks"
        folder.mkdir(parents=True, exist_ok=True)
        objects = picture.objects
        for n, (left, top, crop) in enumerate(crops(objects)):
            if objects.crowd[n]:
                continue
            mask = np.zeros(picture.size, np.uint8)
            mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop * 255
            name = self.classes[int(objects.labels[n])]
            target = folder / name if len(self.classes) > 1 else folder
            target.mkdir(exist_ok=True)
            Image.fromarray(mask).save(target / f"{n + 1:04d}.png", optimize=True)
        crowd = int(objects.crowd.sum())
        return Counter({"crowd": crowd} if crowd else {})

    def config(self) -> dict[str, Any]:
        """A folder per split."""
        places = {split: split for split in self.splits}
        return {**self._config("masks", places), "layout": "object"}


def _lost_by_painting(objects: Instances) -> Counter[str]:
    """What one class per pixel does not say about these objects."""
    covered = rle.paint(objects.masks, np.ones(len(objects), np.int64), fill=0)
    overlap = int(rle.areas(objects.masks).sum()) - int(covered.sum())
    lost = {"identity": len(objects), "overlap": overlap}
    return Counter({kind: count for kind, count in lost.items() if count})


def save_index(labels: npt.NDArray[Any], path: Path, colors: Sequence[Color]) -> None:
    """Write a palette PNG whose indices are the labels.

    Args:
        labels: [H, W] 0..255.
        path:   its folder is made where it is missing.
        colors: of the first indices; 255 is shown in the light grey-yellow of VOC's rim.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    table = [*colors, *[(0, 0, 0)] * (255 - len(colors)), palette(256)[255]]
    image.putpalette([value for color in table for value in color])
    image.save(path, optimize=True)


def _relative(points: Points) -> str:
    return " ".join(f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".") for value in points.reshape(-1))
