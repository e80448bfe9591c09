"""CamVid with 11 classes, as indices (void 11 or 255), in the colours of the tutorial, or in the 32
original colours grouped to 11.

Source: the 11-class list, order and palette of the SegNet tutorial; the 32 colours and their names
of the data set's label_colors.txt.
"""

from __future__ import annotations

from pathlib import Path

from pixelwise.data.config import DataConfig, SplitPlace
from pixelwise.data.images import read_label
from pixelwise.data.packed import Strings
from pixelwise.data.readers.pairing import label_folder, pair_by_stem, pictures_of
from pixelwise.data.readers.pixels import PixelSource
from pixelwise.data.readers.tables import LabelTable, color_table, index_table
from pixelwise.data.source import Color, ImageFiles
from pixelwise.errors import DataError

CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car",
    "Pedestrian", "Bicyclist",
)  # fmt: skip
COLORS: tuple[Color, ...] = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
VOID_COLOR: Color = (0, 0, 0)
VOID = frozenset({11, 255})

# The original colours that are not in the palette above, by the class they are grouped into.
GROUPED: dict[str, tuple[Color, ...]] = {
    "Building": (
        (192, 0, 128),
        (0, 128, 64),
        (64, 0, 64),
        (64, 192, 0),
    ),  # archway bridge tunnel wall
    "Pole": ((0, 0, 64),),  # traffic cone
    "Road": ((128, 0, 192), (192, 0, 64), (255, 69, 0)),  # lane markings, road marking
    "Pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # sidewalk parking shoulder
    "Tree": ((192, 192, 0),),  # other vegetation
    "SignSymbol": ((128, 128, 64), (0, 64, 64)),  # text, traffic light
    "Car": (
        (64, 128, 192),
        (192, 128, 192),
        (192, 64, 128),
        (128, 64, 64),
    ),  # SUV truck train other
    "Pedestrian": ((192, 128, 64), (64, 0, 192), (64, 128, 64)),  # child, pram, animal
    "Bicyclist": ((192, 0, 192),),  # motorcycle
}


def open_split(place: SplitPlace, config: DataConfig) -> PixelSource:
    """Open one split: train/images and train/labels, or train and trainannot.

    Raises:
        DataError: no pictures or no labels.
    """
    root, images = pictures_of(place.images or place.main)
    labels = place.annotations or label_folder(root, ("labels", "annot", "LabeledApproved_full"))
    if labels is None or not labels.is_dir():
        raise DataError(f"{root}: no labels beside it; CamVid has train/labels or trainannot")
    names = pair_by_stem(images, root, labels)
    first = next((labels / name for name in names if name), None)
    is_colored = first is not None and read_label(first).ndim == 3
    return PixelSource(
        format="camvid",
        files=ImageFiles.under(root, images),
        label_root=str(labels),
        label_names=Strings.of(names),
        table=color_labels() if is_colored else index_table(range(len(CLASSES)), VOID, str(labels)),
        classes=CLASSES,
        colors=config.colors or COLORS,
        things=tuple(k for k, name in enumerate(CLASSES) if name in (config.things or ())),
    )


def color_labels() -> LabelTable:
    """Colours of both palettes → labels."""
    grouped = {color: CLASSES.index(name) for name, colors in GROUPED.items() for color in colors}
    return color_table(COLORS, (VOID_COLOR,), grouped)


def split_folders(root: Path) -> dict[str, Path]:
    """The splits of a CamVid folder."""
    return {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
