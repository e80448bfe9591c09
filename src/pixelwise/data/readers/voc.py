"""Pascal VOC: JPEGImages, SegmentationClass, SegmentationObject, and lists in ImageSets.

Classes are the 20 objects after "background" (21 labels), 255 is the rim that counts for nothing.
Other names in data.yaml replace them, in the order of the stored indices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.data.config import DataConfig, SplitPlace
from pixelwise.data.images import is_image_name, list_images
from pixelwise.data.packed import Strings
from pixelwise.data.readers.pairing import pair_by_stem
from pixelwise.data.readers.pixels import PixelSource, encode_objects, make_instances
from pixelwise.data.readers.tables import color_table, index_table
from pixelwise.data.sample import Instances
from pixelwise.data.source import Color, ImageFiles
from pixelwise.errors import DataError
from pixelwise.types import IGNORE

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def palette(count: int = 256) -> tuple[Color, ...]:
    """The colours of VOC: an index's bits, three at a time, spread from the top of R, G and B."""
    colors: list[Color] = []
    for index in range(count):
        channels = [0, 0, 0]
        for step in range(8):
            for channel in range(3):
                channels[channel] |= (index >> (3 * step + channel) & 1) << (7 - step)
        colors.append((channels[0], channels[1], channels[2]))
    return tuple(colors)


def open_split(place: SplitPlace, config: DataConfig) -> PixelSource:
    """Open one split: a list in ImageSets/Segmentation, or a folder for all labelled pictures.

    Raises:
        DataError: no VOC folder there, or no labels.
    """
    root = _find_root(place.main, config.root)
    pictures, labels = root / "JPEGImages", root / "SegmentationClass"
    if not labels.is_dir():
        raise DataError(f"{labels}: no such folder; VOC keeps its label pictures there")
    images = _listed(place.main, pictures) or _labelled(pictures, labels)
    names = config.names or dict(enumerate(CLASSES))
    classes = tuple(names.values())
    colors = config.colors or palette(len(classes))
    objects = root / "SegmentationObject"
    return PixelSource(
        format="voc",
        files=ImageFiles.under(pictures, images),
        label_root=str(root),
        label_names=_below(labels.name, pair_by_stem(images, pictures, labels)),
        table=_table(labels, list(names), colors, config),
        classes=classes,
        colors=colors,
        things=_things(classes, config),
        object_names=_below(objects.name, pair_by_stem(images, pictures, objects))
        if objects.is_dir()
        else None,
        read_objects=read_objects,
    )


def read_objects(raw: npt.NDArray[Any], labels: npt.NDArray[np.uint8]) -> Instances:
    """Objects by their number; each has the class that most of its pixels are labelled with.

    Args:
        raw:    [H, W] object numbers, 0 background, 255 rim; or [H, W, 3] their palette colours.
        labels: [H, W] 0..K-1 or 255.
    """
    numbers = (
        color_table(palette(255), (palette(256)[255],)).apply(raw, Path("the object picture"))
        if raw.ndim == 3
        else raw.astype(np.int64)
    )
    values = [int(v) for v in np.unique(numbers) if v not in (0, IGNORE)]
    pairs = numbers.astype(np.int64) * 256 + labels
    found, counts = np.unique(pairs, return_counts=True)
    classes: list[int] = []
    kept: list[int] = []
    for value in values:
        mine = (found // 256 == value) & (found % 256 != IGNORE)
        if mine.any():
            kept.append(value)
            classes.append(int(found[mine][np.argmax(counts[mine])] % 256))
    return make_instances(encode_objects(numbers, kept), np.array(classes, np.int64))


def _table(labels: Path, values: list[int], colors: tuple[Color, ...], config: DataConfig) -> Any:
    """Index pictures as VOC has them, or the same classes in their colours (as copies often do)."""
    from pixelwise.data.images import read_label

    first = next(iter(list_images(labels)), None)
    if first is not None and read_label(first).ndim == 3:
        return color_table(colors, (palette(256)[255], *config.void_colors))
    return index_table(values, config.void, config.file or str(labels))


def _things(classes: tuple[str, ...], config: DataConfig) -> tuple[int, ...]:
    if config.things is not None:
        return tuple(k for k, name in enumerate(classes) if name in config.things)
    return tuple(k for k, name in enumerate(classes) if name != "background")


def _find_root(place: Path, root: Path) -> Path:
    for candidate in (place, *place.parents[:4], root):
        if (candidate / "JPEGImages").is_dir():
            return candidate
    raise DataError(f"{place}: no JPEGImages folder in it or above; is it a VOC data set?")


def _listed(place: Path, pictures: Path) -> list[Path]:
    """The pictures of a list of ids; ids may be followed by other columns."""
    if place.suffix != ".txt":
        return []
    if not place.is_file():
        raise DataError(f"{place}: no such list; VOC keeps them in ImageSets/Segmentation")
    lines = place.read_text(encoding="utf-8").splitlines()
    ids = [line.split()[0] for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{place}: the list is empty; write one picture id per line")
    known = {path.stem: path for path in list_images(pictures)}
    return [
        pictures / name if is_image_name(name) else known.get(name, pictures / f"{name}.jpg")
        for name in ids
    ]


def _labelled(pictures: Path, labels: Path) -> list[Path]:
    """Most pictures of VOC have boxes only; without a list those with labels are meant."""
    stems = {path.stem for path in list_images(labels)}
    found = [path for path in list_images(pictures) if path.stem in stems]
    if not found:
        raise DataError(f"{labels}: no labels for any picture in {pictures}")
    return found


def _below(folder: str, names: list[str]) -> Strings:
    return Strings.of(f"{folder}/{name}" if name else "" for name in names)
