"""`pw.data.open`: find out what kind of data set a path is, and open it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from pixelwise.data.config import FORMATS, DataConfig, SplitPlace, read_config
from pixelwise.data.dataset import Dataset
from pixelwise.data.guess import guess_format, guess_splits, split_of_json
from pixelwise.data.source import Source
from pixelwise.errors import DataError

Opener = Callable[[SplitPlace, DataConfig], Source]

_READERS = {
    "coco": "coco",
    "voc": "voc",
    "yolo-seg": "yolo",
    "masks": "masks",
    "cityscapes": "cityscapes",
    "ade20k": "ade20k",
    "camvid": "camvid",
}


def open(
    source: str | os.PathLike[str] | Dataset,
    *,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    format: str | None = None,
) -> Dataset:
    """Open a data set.

    >>> data = open("city/data.yaml", split="val")                    # doctest: +SKIP
    >>> data = open("coco/instances_val2017.json", images="val2017")  # doctest: +SKIP

    Args:
        source: a data.yaml, a COCO json, or a folder of a known layout; a `Dataset` is passed on.
        images: the folder of pictures, where it is not beside the annotations.
        split:  only this split.
        format: one of `config.FORMATS`, where the guess is wrong.

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
    return open_config(config)


def open_config(config: DataConfig) -> Dataset:
    """Open the splits that a configuration names.

    Raises:
        DataError: as for `open`; splits that disagree about their classes.
    """
    sources: list[Source] = []
    for place in config.splits.values():
        format = config.format or guess_format(place, config)
        reader = import_module(f"pixelwise.data.readers.{_READERS[format]}")
        sources.append(reader.open_split(place, config))
    names = tuple(config.splits)
    for name, other in zip(names, sources, strict=True):
        if other.classes != sources[0].classes:
            raise DataError(
                f"splits {names[0]} and {name} have different classes ({len(sources[0].classes)} and "
                f"{len(other.classes)}); list the common ones under `names` in data.yaml"
            )
    index = np.concatenate(
        [
            np.stack([np.full(len(s.files), k), np.arange(len(s.files))], 1)
            for k, s in enumerate(sources)
        ]
    )
    return Dataset(
        sources=tuple(sources),
        names=names,
        index=index.astype(np.int64),
        background=config.background,
    )


def _configure(path: Path, images: Path | None, format: str | None) -> DataConfig:
    if path.suffix.lower() in (".yaml", ".yml"):
        config = read_config(path)
        return config if format is None else replace(config, format=format)
    if path.suffix.lower() == ".json":
        place = SplitPlace(annotations=path, images=images)
        return DataConfig(root=path.parent, splits={split_of_json(path): place}, format="coco")
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
