"""A data set: annotated pictures of one or several splits, and its two views."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from pixelwise.data.config import FORMATS, DataConfig, SplitPlace, read_config
from pixelwise.data.guess import guess_format, guess_splits, split_of_json
from pixelwise.data.images import read_image
from pixelwise.data.paint import paint_instances, split_components
from pixelwise.data.readers.pixels import label_size_message
from pixelwise.data.sample import Instances, Sample
from pixelwise.data.source import Color, Source
from pixelwise.errors import DataError
from pixelwise.types import IGNORE, IntArray, Size

if TYPE_CHECKING:
    from pixelwise.data.check import CheckReport
    from pixelwise.data.stats import Stats

View = Literal["plain", "semantic", "instance"]

# format → module of `readers`, imported when it is needed
_READERS = {
    "coco": "coco",
    "voc": "voc",
    "yolo-seg": "yolo",
    "masks": "masks",
    "cityscapes": "cityscapes",
    "ade20k": "ade20k",
    "camvid": "camvid",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Annotated pictures. Made by `open`; sent to workers at the price of a few arrays.

    The plain view gives what the files hold. `as_semantic` guarantees `labels`, `as_instances`
    guarantees `instances`; both have the same interface.

    Args:
        sources:     one per split, or several where a split was given as a list.
        names:       the split of each source.
        index:       [n, 2] int64, the source and the position in it of each picture.
        view:        which of the three views this is.
        background:  class of pixels without an object, in the semantic view of objects; None leaves
                     them ignored.
        with_objects: the semantic view holds the objects too, where the files tell them apart.
        components:  take connected pieces as objects where only classes are known.
        channels:    of the pictures.
        config:      what it was opened with.
    """

    sources: tuple[Source, ...]
    names: tuple[str, ...]
    index: IntArray
    view: View = "plain"
    background: str | None = "background"
    with_objects: bool = False
    components: bool = False
    channels: int = 3
    config: DataConfig | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(self.split(name))}" for name in self.splits)
        return f"Dataset({self.format}, {len(self.classes)} classes, {counts}, {self.view} view)"

    @property
    def format(self) -> str:
        """Of the files, as in data.yaml."""
        return self.sources[0].format

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; ("all",) where the files tell none apart."""
        return tuple(dict.fromkeys(self.names))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels of this view."""
        source = self.sources[0]
        if self.view == "instance":
            return tuple(source.classes[k] for k in self._things())
        if self.view == "semantic" and self._adds_background():
            assert self.background is not None
            return (*source.classes, self.background)
        return source.classes

    @property
    def background_label(self) -> int | None:
        """Label of pixels without an object, where the classes have one."""
        if self.background not in self.classes:
            return None
        return self.classes.index(self.background)

    @property
    def colors(self) -> tuple[Color, ...] | None:
        """RGB of each class, where the data set brings its own."""
        colors = self.sources[0].colors
        if colors is None:
            return None
        if self.view == "instance":
            return tuple(colors[k] for k in self._things())
        if self.view == "semantic" and self._adds_background():
            return (*colors, (0, 0, 0))
        return colors

    def split(self, name: str) -> Dataset:
        """The pictures of one split.

        Raises:
            DataError: no such split.
        """
        if name not in self.names:
            raise DataError(
                f"the data set has no split {name!r}; it has {', '.join(self.splits)}"
                + ("; name the splits in a data.yaml" if self.names == ("all",) else "")
            )
        mine = [k for k, other in enumerate(self.names) if other == name]
        renumber = np.full(len(self.names), -1, np.int64)
        renumber[mine] = np.arange(len(mine))
        chosen = self.index[np.isin(self.index[:, 0], mine)]
        return replace(
            self,
            sources=tuple(self.sources[k] for k in mine),
            names=(name,) * len(mine),
            index=np.stack([renumber[chosen[:, 0]], chosen[:, 1]], axis=1),
        )

    def subset(self, indices: Sequence[int] | IntArray) -> Dataset:
        """The pictures at these positions, in that order."""
        return replace(self, index=self.index[np.asarray(indices, np.int64)])

    def as_semantic(
        self, *, background: str | None = "background", with_objects: bool = False
    ) -> Dataset:
        """One label per pixel for every picture.

        Objects are painted with the smaller on top and crowd regions at the bottom.

        Args:
            background: name of the class of pixels without an object, appended as the last one
                        unless the classes have it; None leaves these pixels ignored (255). Unused
                        where the files say a class per pixel.
            with_objects: give the objects too.

        Raises:
            DataError: objects are asked for, and the files tell none apart.
        """
        view = replace(self, view="semantic", background=background, with_objects=with_objects)
        for source, name in zip(self.sources, self.names, strict=True):
            if with_objects and not source.has_instances:
                raise DataError(
                    f"split {name}: {source.format} says one class per pixel and tells no objects "
                    "apart; there is nothing between them to weigh"
                )
        if len(view.classes) > IGNORE:
            raise DataError(f"{len(view.classes)} classes; a label map holds at most {IGNORE}")
        return view

    def as_instances(self, *, components: bool = False) -> Dataset:
        """The objects of every picture.

        Args:
            components: where only a class per pixel is known, take the connected pieces of the
                        classes in `things` (of all, where none are named) as objects; touching
                        objects then come as one.

        Raises:
            DataError: the files tell no objects apart, and `components` is off.
        """
        view = replace(self, view="instance", components=components)
        for source, name in zip(self.sources, self.names, strict=True):
            if not source.has_instances and not components:
                raise DataError(
                    f"split {name}: {source.format} says one class per pixel and tells no objects "
                    f"apart; train a semantic system on it, or take connected pieces as objects "
                    f"with as_instances(components=True)"
                )
        return view

    def path(self, i: int) -> Path:
        """The file of picture i."""
        source, at = self.locate(i)
        return source.files.path(at)

    def size(self, i: int) -> Size:
        """(height, width) of picture i, as the annotation states it or from the file's header."""
        source, at = self.locate(i)
        return source.files.size(at)

    def label_files(self, i: int) -> Sequence[Path]:
        """The files that hold the annotation of picture i alone."""
        source, at = self.locate(i)
        return source.label_files(at)

    def __getitem__(self, i: int) -> Sample:
        image = read_image(self.path(i), channels=self.channels)
        size = (int(image.shape[0]), int(image.shape[1]))
        labels, instances = self.annotation(i, size)
        return Sample(image=image, path=self.path(i), index=i, labels=labels, instances=instances)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def annotation(
        self, i: int, size: Size | None = None
    ) -> tuple[npt.NDArray[np.uint8] | None, Instances | None]:
        """Labels and objects of picture i, without reading the picture.

        Args:
            i:    position.
            size: (height, width) of the picture; looked up if None.

        Returns:
            What this view guarantees, and in the plain view what the files hold.
        """
        source, at = self.locate(i)
        size = size or source.files.size(at)
        labels = instances = None
        if self.view == "semantic":
            labels = self._labels(source, at, size)
            instances = self._instances(source, at, size) if self.with_objects else None
        elif self.view == "instance":
            instances = self._instances(source, at, size)
        else:
            labels = self._read_labels(source, at, size) if source.has_labels else None
            instances = source.instances(at, size) if source.has_instances else None
        return labels, instances

    def locate(self, i: int) -> tuple[Source, int]:
        """The source of picture i, and its position there.

        Raises:
            IndexError: there are not that many.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"picture {i} of {len(self)}")
        return self.sources[int(self.index[i, 0])], int(self.index[i, 1])

    def check(self, *, quiet: bool = False) -> CheckReport:
        """Read every file and list what is wrong; see `pixelwise.data.check`."""
        from pixelwise.data.check import check

        return check(self, quiet=quiet)

    def stats(self, *, quiet: bool = False) -> Stats:
        """Counts, sizes, class frequencies and weights; see `pixelwise.data.stats`."""
        from pixelwise.data.stats import measure

        return measure(self, quiet=quiet)

    def _things(self) -> tuple[int, ...]:
        source = self.sources[0]
        return source.things or tuple(range(len(source.classes)))

    def _adds_background(self) -> bool:
        source = self.sources[0]
        return (
            not source.has_labels
            and self.background is not None
            and self.background not in source.classes
        )

    def _read_labels(self, source: Source, at: int, size: Size) -> npt.NDArray[np.uint8]:
        labels = source.labels(at)
        if labels.shape != size:
            path = source.label_files(at)[0]
            raise DataError(label_size_message(path, labels.shape, source.files.path(at), size))
        return labels

    def _labels(self, source: Source, at: int, size: Size) -> npt.NDArray[np.uint8]:
        if source.has_labels:
            return self._read_labels(source, at, size)
        fill = IGNORE if self.background is None else self.classes.index(self.background)
        return paint_instances(source.instances(at, size), fill=fill)

    def _instances(self, source: Source, at: int, size: Size) -> Instances:
        things = self._things()
        if not source.has_instances:
            found = split_components(self._read_labels(source, at, size), things)
        else:
            found = source.instances(at, size)
        if things == tuple(range(len(source.classes))):
            return found
        position = np.full(len(source.classes), -1, np.int64)
        position[list(things)] = np.arange(len(things))
        labels = position[found.labels]
        return replace(found, labels=labels).select(labels >= 0)


def open(
    source: str | os.PathLike[str] | Dataset,
    *,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    format: str | None = None,
    lenient: bool = False,
) -> Dataset:
    """Open a data set.

    >>> data = open("city/data.yaml", split="val")                    # doctest: +SKIP
    >>> data = open("coco/instances_val2017.json", images="val2017")  # doctest: +SKIP

    Args:
        source: a data.yaml, a COCO json, or a folder of a known layout; a `Dataset` is passed on.
        images: the folder of pictures, where it is not beside the annotations.
        split:  only this split.
        format: one of `config.FORMATS`, where the guess is wrong.
        lenient: leave out annotations that cannot be understood instead of stopping; `check`
                 lists them.

    Returns:
        The plain view of all splits (or of one).

    Raises:
        DataError: nothing there, an unknown layout, or an annotation file that cannot be read.
    """
    if isinstance(source, Dataset):
        return source if split is None else source.split(split)
    path = Path(source).expanduser()
    if format is not None and format not in FORMATS:
        raise DataError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    config = _configure(path, Path(images) if images is not None else None, format)
    if split is not None:
        config = _only(config, split, path)
    return open_config(replace(config, lenient=lenient))


def open_config(config: DataConfig) -> Dataset:
    """Open the splits that a configuration names.

    Raises:
        DataError: as for `open`; splits that disagree about their classes.
    """
    sources: list[Source] = []
    names: list[str] = []
    for split, places in config.splits.items():
        for place in places:
            format = config.format or guess_format(place, config)
            reader = import_module(f"pixelwise.data.readers.{_READERS[format]}")
            sources.append(reader.open_split(place, config))
            names.append(split)
    for name, other in zip(names, sources, strict=True):
        if other.classes != sources[0].classes:
            raise DataError(
                f"splits {names[0]} and {name} have different classes "
                f"({len(sources[0].classes)} and {len(other.classes)}); "
                f"list the common ones under `names` in data.yaml"
            )
    index = np.concatenate(
        [
            np.stack([np.full(len(s.files), k), np.arange(len(s.files))], 1)
            for k, s in enumerate(sources)
        ]
    )
    return Dataset(
        sources=tuple(sources),
        names=tuple(names),
        index=index.astype(np.int64),
        background=config.background,
        config=config,
    )


def _configure(path: Path, images: Path | None, format: str | None) -> DataConfig:
    if path.suffix.lower() in (".yaml", ".yml"):
        config = read_config(path)
        return config if format is None else replace(config, format=format)
    if path.suffix.lower() == ".json":
        place = SplitPlace(annotations=path, images=images)
        return DataConfig(root=path.parent, splits={split_of_json(path): (place,)}, format="coco")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path of the data set")
    if not path.is_dir():
        raise DataError(f"{path}: expected a data.yaml, a COCO .json, or a folder")
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (path / name).is_file():
            config = read_config(path / name)
            return config if format is None else replace(config, format=format)
    return guess_splits(path, images, format)


def _only(config: DataConfig, split: str, path: Path) -> DataConfig:
    if split not in config.splits:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(config.splits)}")
    return replace(config, splits={split: config.splits[split]})
