"""Cityscapes: leftImg8bit and gtFine; 34 label ids become 19 training classes, others 255.

Objects come from the `_instanceIds` pictures: a value of 1000 * id + n is object n, a smaller value
is the id alone; for a class that has objects it marks a group of uncounted ones, kept as crowd.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.data.config import DataConfig, SplitPlace
from pixelwise.data.images import list_images
from pixelwise.data.packed import Strings
from pixelwise.data.readers.pairing import pictures_of
from pixelwise.data.readers.pixels import PixelSource, encode_objects, make_instances
from pixelwise.data.readers.tables import LabelTable
from pixelwise.data.sample import Instances
from pixelwise.data.source import Color, ImageFiles
from pixelwise.errors import DataError
from pixelwise.types import IGNORE

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
COLORS: tuple[Color, ...] = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
    (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
TRAIN_ID: dict[int, int] = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
THINGS = tuple(range(11, 19))


def open_split(place: SplitPlace, config: DataConfig) -> PixelSource:
    """Open one split: leftImg8bit/train with gtFine/train (or gtCoarse).

    Raises:
        DataError: no pictures or no labels.
    """
    pictures = place.images or place.main
    labels = place.annotations or _label_folder(pictures)
    pictures, images = pictures_of(pictures)
    by_stem = {path.stem: str(path.relative_to(labels)) for path in list_images(labels)}
    with_train_ids = not any(stem.endswith("_labelIds") for stem in by_stem)
    kind = "labelTrainIds" if with_train_ids else "labelIds"
    objects = _names(images, by_stem, "instanceIds")
    return PixelSource(
        format="cityscapes",
        files=ImageFiles.under(pictures, images),
        label_root=str(labels),
        label_names=Strings.of(_names(images, by_stem, kind)),
        table=train_id_table() if with_train_ids else label_id_table(),
        classes=CLASSES,
        colors=config.colors or COLORS,
        things=THINGS,
        object_names=Strings.of(objects) if any(objects) else None,
        read_objects=read_objects,
    )


def label_id_table() -> LabelTable:
    """Label ids → 0..18; every other id, -1 (licence plate) included, → 255."""
    return LabelTable.of(TRAIN_ID, others=IGNORE)


def train_id_table() -> LabelTable:
    """Training ids as they are; 255, and -1 however it is stored, → 255."""
    return LabelTable.of({k: k for k in range(len(CLASSES))}, others=IGNORE)


def read_objects(raw: npt.NDArray[Any], labels: npt.NDArray[np.uint8]) -> Instances:
    """Objects of an `_instanceIds` picture.

    Args:
        raw:    [H, W] values as described above.
        labels: [H, W], unused: the value says the class.
    """
    del labels
    ids: list[int] = []
    classes: list[int] = []
    for value in np.unique(raw).tolist():
        label = TRAIN_ID.get(value // 1000 if value >= 1000 else value)
        if label is not None and label in THINGS:
            ids.append(value)
            classes.append(label)
    crowd = np.array([value < 1000 for value in ids], np.bool_)
    return make_instances(encode_objects(raw, ids), np.array(classes, np.int64), crowd=crowd)


def _label_folder(pictures: Path) -> Path:
    for word in ("gtFine", "gtCoarse"):
        parts = [word if part == "leftImg8bit" else part for part in pictures.parts]
        folder = Path(*parts)
        if folder != pictures and folder.is_dir():
            return folder
    raise DataError(f"{pictures}: no gtFine folder for it; unpack gtFine beside leftImg8bit")


def _names(images: list[Path], by_stem: dict[str, str], kind: str) -> list[str]:
    """The label file of each picture: aachen_000000_000019_gtFine_labelIds.png."""
    names: list[str] = []
    for path in images:
        base = path.stem.removesuffix("_leftImg8bit")
        found = (by_stem.get(f"{base}_{word}_{kind}", "") for word in ("gtFine", "gtCoarse"))
        names.append(next((name for name in found if name), ""))
    return names
