"""Folders of masks: an index per pixel, a colour per class, one file per object, one per class.

Which of the four it is follows from the files; `layout` in data.yaml overrides the guess.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pixelwise.data.config import DataConfig, SplitPlace
from pixelwise.data.images import list_images, read_label
from pixelwise.data.packed import Strings
from pixelwise.data.readers.object_files import ClassFiles, ObjectFiles
from pixelwise.data.readers.pairing import label_folder, pair_by_stem, pictures_of
from pixelwise.data.readers.pixels import PixelSource
from pixelwise.data.readers.tables import color_table, index_table
from pixelwise.data.source import ImageFiles, Source
from pixelwise.errors import DataError


def open_split(place: SplitPlace, config: DataConfig) -> Source:
    """Open one folder of pictures and its masks.

    Raises:
        DataError: no pictures, no masks, or no names for the values in them.
    """
    if config.layout in (None, "object") and place.annotations is None:
        folders = picture_folders(place.main)
        if folders:
            return ObjectFiles.of_picture_folders(place.main, folders, config)
    root, images = pictures_of(place.images or place.main)
    is_list = place.main.suffix == ".txt"
    if is_list and place.annotations is None and (images[0].parent.parent / "masks").is_dir():
        return ObjectFiles.of_picture_folders(root, [p.parent.parent for p in images], config)
    labels = place.annotations or label_folder(root)
    if labels is None or not labels.is_dir():
        raise DataError(
            f"{labels or root}: no folder of masks found for the pictures in {root}; "
            f"put them beside it as `labels` or `masks`, or name the folder: "
            f"train: {{images: ..., labels: ...}}"
        )
    layout = config.layout or guess_layout(labels, images, config)
    if layout == "object":
        return ObjectFiles.of_mask_folders(root, images, labels, config)
    if layout == "class":
        return ClassFiles.under(root, images, labels, config)
    return _open_pixels(root, images, labels, config, colored=layout == "color")


def picture_folders(place: Path) -> list[Path]:
    """Folders that hold one picture each, with the masks of its objects: x/images/, x/masks/."""
    if not place.is_dir():
        return []
    return [
        folder
        for folder in sorted(place.iterdir())
        if (folder / "masks").is_dir() and (folder / "images").is_dir()
    ]


def guess_layout(labels: Path, images: list[Path], config: DataConfig) -> str:
    """Which of LAYOUTS a folder of masks follows."""
    folders = {entry.name for entry in labels.iterdir() if entry.is_dir()}
    if folders:
        if config.names is not None and folders & set(config.names.values()):
            return "class"
        if any(image.stem in folders for image in images):
            return "object"
    for name in pair_by_stem(images[:50], images[0].parent, labels):
        if name:
            raw = read_label(labels / name)
            is_colored = raw.ndim == 3 and not (raw == raw[..., :1]).all()
            return "color" if is_colored or config.void_colors else "index"
    return "index"


def _open_pixels(
    root: Path, images: list[Path], labels: Path, config: DataConfig, *, colored: bool
) -> PixelSource:
    names = config.names
    if names is None:
        raise DataError(_nameless(labels, config))
    if colored:
        if config.colors is None:
            raise DataError(_colorless(labels, config))
        table = color_table(config.colors, config.void_colors)
        kept = list(names)
    else:
        table = index_table(list(names), config.void, config.file or str(labels))
        kept = [value for value in names if value not in config.void]
    classes = tuple(names[value] for value in kept)
    colors = config.colors
    if colors is not None:
        by_value = dict(zip(names, colors, strict=True))
        colors = tuple(by_value[value] for value in kept)
    return PixelSource(
        format="masks",
        files=ImageFiles.under(root, images),
        label_root=str(labels),
        label_names=Strings.of(pair_by_stem(images, root, labels)),
        table=table,
        classes=classes,
        colors=colors,
        things=tuple(k for k, name in enumerate(classes) if name in (config.things or ())),
    )


def _found_values(labels: Path) -> tuple[str, str]:
    """A first label file and the values in it, for messages."""
    for path in list_images(labels)[:1]:
        raw = read_label(path)
        values = np.unique(raw.reshape(-1, 3), axis=0) if raw.ndim == 3 else np.unique(raw)
        return path.name, ", ".join(str(value) for value in values[:12].tolist())
    return "no file", "none"


def _nameless(labels: Path, config: DataConfig) -> str:
    name, values = _found_values(labels)
    step = (
        "add it"
        if config.file
        else "write a data.yaml with path, train, val and names, or name the format (camvid …)"
    )
    return (
        f"{config.file or labels}: names is missing; {labels / name} holds the values {values}: "
        f"{step}, as in names: {{0: background, 1: cell}}"
    )


def _colorless(labels: Path, config: DataConfig) -> str:
    name, values = _found_values(labels)
    return (
        f"{config.file or labels}: the labels are coded by colour and colors is missing; "
        f"{labels / name} holds {values}: list one colour per name"
    )
