"""`data convert`: write a data set in another format, and say what that format cannot hold."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pixelwise.data.dataset import Dataset
from pixelwise.data.writers import (
    CocoWriter,
    IndexWriter,
    ObjectWriter,
    Picture,
    VocWriter,
    Writer,
    YoloWriter,
)
from pixelwise.errors import UsageError
from pixelwise.progress import track

ImageMode = Literal["copy", "link"]

WRITERS: Mapping[str, Callable[[Path, Dataset], Writer]] = {
    "coco": CocoWriter,
    "yolo-seg": YoloWriter,
    "masks": IndexWriter,
    "voc": VocWriter,
    "objects": ObjectWriter,
}

_MEANING = {
    "overlap": "pixels lay in several objects; the smaller object has them now",
    "crowd": "crowd regions have no place in the format and were left out",
    "crowd as void": "crowd regions became void pixels",
    "identity": "objects are no longer told apart: the format holds one class per pixel",
    "bridged": (
        "objects with holes or several parts became one outline through bridges of no width; "
        "drawn by the even-odd rule they are the same, other tools may fill the holes"
    ),
    "hidden": "objects lay under others altogether and are gone",
}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written.

    Args:
        config: the data.yaml of the result.
        images: pictures written, by split.
        losses: what the format cannot hold → how often it happened.
    """

    config: Path
    images: dict[str, int]
    losses: Counter[str] = field(default_factory=Counter[str])

    def warnings(self) -> list[str]:
        """One line per kind of loss."""
        return [f"{count} x {_MEANING[kind]}" for kind, count in self.losses.items()]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"config": str(self.config), "images": self.images, "losses": dict(self.losses)}


def convert(
    dataset: Dataset,
    format: str,
    out: Path,
    *,
    images: ImageMode = "copy",
    components: bool = False,
    quiet: bool = False,
) -> Conversion:
    """Write all splits in another format, with a data.yaml that opens them.

    Masks are written exactly. What a format cannot hold (overlaps, crowd regions, identities) is
    counted in the result.

    Args:
        dataset:    the plain view.
        format:     a key of WRITERS.
        out:        an empty or missing folder.
        images:     copy the pictures, or link to them.
        components: take connected pieces as objects where only classes are known.
        quiet:      show no progress.

    Returns:
        What was written, and what was lost.

    Raises:
        UsageError: an unknown format, or a folder with something in it.
        DataError:  a format of objects is asked for and only classes are known.
    """
    if format not in WRITERS:
        raise UsageError(f"unknown format {format!r}; known are {', '.join(WRITERS)}")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: the folder is not empty; choose a new one with --out")
    wants_pixels = format == "masks" or (
        format == "voc" and not all(source.has_instances for source in dataset.sources)
    )
    background = dataset.background
    view = (
        dataset.as_semantic(background=background)
        if wants_pixels
        else dataset.as_instances(components=components)
    )
    out.mkdir(parents=True, exist_ok=True)
    writer = WRITERS[format](out, view)
    result = Conversion(config=out / "data.yaml", images={})
    for split in view.splits:
        part = view.split(split)
        hidden = _objects_behind(dataset, view, split)
        names = _unique_names(part, flat=format in ("voc", "objects"))
        for i in track(range(len(part)), f"writing {split}", total=len(part), quiet=quiet):
            target = writer.image_path(split, names[i])
            _place_image(part.path(i), target, images)
            size = part.size(i)
            labels, instances = part.annotation(i, size)
            if hidden is not None:
                _, instances = hidden.annotation(i, size)
            picture = Picture(
                split=split, name=names[i], size=size, labels=labels, instances=instances
            )
            result.losses.update(writer.write(picture))
        writer.finish_split(split)
        result.images[split] = len(part)
    text = yaml.safe_dump(writer.config(), sort_keys=False, allow_unicode=True)
    result.config.write_text(text, encoding="utf-8")
    return result


def _objects_behind(dataset: Dataset, view: Dataset, split: str) -> Dataset | None:
    """The objects that a semantic view was painted from, to count what painting loses."""
    part = dataset.split(split)
    if view.view == "semantic" and not any(source.has_labels for source in part.sources):
        return part.as_instances()
    return None


def _unique_names(part: Dataset, *, flat: bool) -> list[Path]:
    """The pictures' names below their folder, or without folders; repeated stems are numbered."""
    names: list[Path] = []
    taken: set[str] = set()
    for i in range(len(part)):
        source, at = part.locate(i)
        stored = Path(source.files.names[at])
        is_plain = not stored.is_absolute() and ".." not in stored.parts
        name = stored if is_plain and not flat else Path(stored.name)
        unique, count = name, 1
        while str(unique.with_suffix("")) in taken:
            count += 1
            unique = name.with_name(f"{name.stem}_{count}{name.suffix}")
        taken.add(str(unique.with_suffix("")))
        names.append(unique)
    return names


def _place_image(source: Path, target: Path, mode: ImageMode) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == "link":
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
