"""One mask file per object, and one mask file per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pixelwise.data.config import DataConfig
from pixelwise.data.images import EXTENSIONS, list_images, read_label
from pixelwise.data.packed import Strings
from pixelwise.data.readers.pixels import label_size_message, make_instances
from pixelwise.data.readers.tables import check_class_count
from pixelwise.data.sample import Instances
from pixelwise.data.source import Color, ImageFiles, Problem
from pixelwise.errors import DataError
from pixelwise.ops import rle
from pixelwise.types import IGNORE, IntArray, RunLengths, Size


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectFiles:
    """Pictures with a folder of masks each, one file per object. Args as in `Source`.

    With several classes, a mask's class is the folder it is in, or the start of its file name.
    """

    files: ImageFiles
    folders: Strings
    classes: tuple[str, ...]
    colors: tuple[Color, ...] | None = None
    format: str = "masks"
    has_labels: bool = False
    has_instances: bool = True

    @classmethod
    def of_picture_folders(
        cls, root: Path, folders: Sequence[Path], config: DataConfig
    ) -> ObjectFiles:
        """From x/images/picture.png and x/masks/*.png, a folder per picture."""
        pictures: list[Path] = []
        masks: list[str] = []
        for folder in folders:
            found = list_images(folder / "images")
            pictures += found[:1]
            masks += [str(folder / "masks")] * len(found[:1])
        return cls._with_names(ImageFiles.under(root, pictures), masks, config)

    @classmethod
    def of_mask_folders(
        cls, root: Path, images: Sequence[Path], labels: Path, config: DataConfig
    ) -> ObjectFiles:
        """From images/x.png and masks/x/*.png."""
        folders = [str(labels / path.relative_to(root).with_suffix("")) for path in images]
        return cls._with_names(ImageFiles.under(root, images), folders, config)

    @classmethod
    def _with_names(cls, files: ImageFiles, folders: list[str], config: DataConfig) -> ObjectFiles:
        classes = tuple(config.names.values()) if config.names else ("object",)
        check_class_count(len(classes), config.file)
        return cls(files=files, folders=Strings.of(folders), classes=classes, colors=config.colors)

    @property
    def things(self) -> tuple[int, ...]:
        """Every class."""
        return tuple(range(len(self.classes)))

    def labels(self, i: int) -> npt.NDArray[np.uint8]:
        """Objects say nothing about pixels without one."""
        raise DataError(f"{self.folders[i]}: has objects, no labels per pixel; use .as_semantic()")

    def instances(self, i: int, size: Size) -> Instances:
        """One object per file that is not all zero."""
        masks: list[RunLengths] = []
        labels: list[int] = []
        for path in self.label_files(i):
            mask = read_mask(path, self.files.path(i), size)
            if mask.any():
                masks.append(rle.encode(mask[None]))
                labels.append(self.class_of(path))
        packed = RunLengths.concat(masks) if masks else RunLengths.empty(size)
        return make_instances(packed, np.array(labels, np.int64))

    def class_of(self, path: Path) -> int:
        """The class of a mask file.

        Raises:
            DataError: there are several classes, and neither folder nor file name says which.
        """
        if len(self.classes) == 1:
            return 0
        for k, name in enumerate(self.classes):
            if path.parent.name == name:
                return k
        # The longest name first: "car" must not claim "cart_01.png".
        for k in sorted(range(len(self.classes)), key=lambda k: -len(self.classes[k])):
            if path.stem.startswith(self.classes[k]):
                return k
        raise DataError(
            f"{path}: of which class is this object? put it in a folder named after the class, "
            f"or start the file's name with it: {', '.join(self.classes[:10])}"
        )

    def label_files(self, i: int) -> Sequence[Path]:
        """The mask files of picture i, sorted."""
        folder = Path(self.folders[i])
        return list_images(folder) if folder.is_dir() else []

    def picture_problems(self, i: int, size: Size) -> Iterator[Problem]:
        """Masks that cannot be read, are of another size, empty, or of no class."""
        for path in self.label_files(i):
            yield from mask_problems(path, size)
            try:
                self.class_of(path)
            except DataError as error:
                yield Problem(kind="unknown category", file=str(path), detail=str(error))

    def problems(self) -> Iterator[Problem]:
        """Pictures without a folder of masks."""
        for i in range(len(self.files)):
            if not Path(self.folders[i]).is_dir():
                yield Problem(
                    kind="missing label", file=str(self.files.path(i)), detail=self.folders[i]
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassFiles:
    """Pictures with one binary mask per class: masks/road/x.png. Args as in `Source`.

    Where masks overlap, the class that covers less of the picture is on top. Pixels of no mask are
    the background class, the last one, unless data.yaml sets `background: null`.
    """

    files: ImageFiles
    label_root: str
    classes: tuple[str, ...]
    background: str | None
    colors: tuple[Color, ...] | None = None
    things: tuple[int, ...] = ()
    format: str = "masks"
    has_labels: bool = True
    has_instances: bool = False

    @classmethod
    def under(
        cls, root: Path, images: Sequence[Path], labels: Path, config: DataConfig
    ) -> ClassFiles:
        """From images/x.png and masks/CLASS/x.png."""
        folders = sorted(entry.name for entry in labels.iterdir() if entry.is_dir())
        classes = tuple(config.names.values()) if config.names else tuple(folders)
        colors = config.colors
        if config.background is not None and config.background not in classes:
            classes = (*classes, config.background)
            colors = (*colors, (0, 0, 0)) if colors else None
        check_class_count(len(classes), config.file)
        return cls(
            files=ImageFiles.under(root, images),
            label_root=str(labels),
            classes=classes,
            background=config.background,
            colors=colors,
            things=tuple(k for k, name in enumerate(classes) if name in (config.things or ())),
        )

    def labels(self, i: int) -> npt.NDArray[np.uint8]:
        """[H, W] 0..K-1 or 255."""
        size = self.files.size(i)
        masks = [
            (read_mask(path, self.files.path(i), size), self.classes.index(path.parent.name))
            for path in self.label_files(i)
        ]
        fill = IGNORE if self.background is None else self.classes.index(self.background)
        labels = np.full(size, fill, np.uint8)
        for mask, label in sorted(masks, key=lambda pair: -int(pair[0].sum())):
            labels[mask] = label
        return labels

    def instances(self, i: int, size: Size) -> Instances:
        """A class has no single objects."""
        raise DataError(
            f"{self.label_root}: one mask per class says nothing about single objects; use "
            f"as_instances(components=True) to take connected pieces as objects"
        )

    def label_files(self, i: int) -> Sequence[Path]:
        """The masks of picture i, one per class that has a file for it."""
        stem = Path(self.files.names[i]).with_suffix("")
        found: list[Path] = []
        for name in self.classes:
            base = Path(self.label_root, name, stem)
            paths = [base.with_name(base.name + extension) for extension in sorted(EXTENSIONS)]
            found += [path for path in paths if path.is_file()][:1]
        return found

    def picture_problems(self, i: int, size: Size) -> Iterator[Problem]:
        """Masks that cannot be read or are of another size; a class may well be absent."""
        for path in self.label_files(i):
            yield from (p for p in mask_problems(path, size) if p.kind != "empty mask")

    def problems(self) -> Iterator[Problem]:
        """Pictures without any mask."""
        for i in range(len(self.files)):
            if not self.label_files(i):
                yield Problem(kind="missing label", file=str(self.files.path(i)))


def read_mask(path: Path, image: Path, size: Size) -> npt.NDArray[np.bool_]:
    """[H, W] of a binary mask file, stored as 0 and 1, or as 0 and 255 with soft edges.

    Raises:
        DataError: unreadable, or of another size than its picture.
    """
    raw = read_label(path)
    values: IntArray = raw.max(axis=-1) if raw.ndim == 3 else raw
    if values.shape != size:
        raise DataError(label_size_message(path, values.shape, image, size))
    high = int(values.max(initial=0))
    return values >= (1 if high <= 1 else max(1, (high + 1) // 2))


def mask_problems(path: Path, size: Size) -> Iterator[Problem]:
    """What is wrong with one binary mask file of a picture of this (height, width)."""
    try:
        raw = read_label(path)
    except DataError as error:
        yield Problem(kind="unreadable label", file=str(path), detail=str(error))
        return
    if raw.shape[:2] != size:
        detail = f"mask {raw.shape[1]}x{raw.shape[0]}, picture {size[1]}x{size[0]}"
        yield Problem(kind="label size mismatch", file=str(path), detail=detail)
    if not raw.any():
        yield Problem(kind="empty mask", file=str(path))
