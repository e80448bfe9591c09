"""`data split`: divide a data set by ratio, keeping groups together and classes spread evenly."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pixelwise.data.config import SPLITS
from pixelwise.data.dataset import Dataset
from pixelwise.data.json_stream import read_json
from pixelwise.data.readers.coco import CocoSource
from pixelwise.data.readers.object_files import ClassFiles
from pixelwise.data.readers.pixels import PixelSource
from pixelwise.data.readers.yolo import YoloSource
from pixelwise.errors import DataError, UsageError
from pixelwise.types import IntArray


def split_indices(
    dataset: Dataset,
    ratios: Mapping[str, float],
    *,
    seed: int = 0,
    group: str | None = None,
    stratify: bool = False,
) -> dict[str, list[int]]:
    """Choose the pictures of each split.

    Args:
        dataset:  all pictures.
        ratios:   split → share; they are scaled to sum to 1.
        seed:     the same seed gives the same splits.
        group:    a regular expression; pictures whose paths match it alike (in its first group, or
                  altogether) stay together. Those without a match stand alone.
        stratify: spread every class as evenly as the groups allow, the rarest first.

    Returns:
        split → ascending positions; every picture is in exactly one.

    Raises:
        UsageError: an unknown split, a ratio below zero, or a broken expression.
    """
    _refuse_bad(ratios, group)
    groups = _groups(dataset, group)
    order: list[int] = np.random.default_rng(seed).permutation(len(groups)).tolist()
    total = sum(ratios.values())
    room = {name: share / total * len(dataset) for name, share in ratios.items() if share > 0}
    shuffled: list[list[int]] = [groups[g] for g in order]
    chosen: dict[str, list[int]] = {name: [] for name in room}
    if stratify:
        presence = _presence(dataset)
        _spread(shuffled, presence, room, chosen)
    else:
        # Large groups first: the small ones can still fill what is left.
        for members in sorted(shuffled, key=len, reverse=True) if group else shuffled:
            _put(members, room, chosen)
    return {name: sorted(members) for name, members in chosen.items()}


def write_splits(dataset: Dataset, chosen: Mapping[str, Sequence[int]], out: Path) -> Path:
    """Write COCO files or lists of pictures, and a data.yaml; the pictures stay in place.

    Args:
        dataset: as given to `split_indices`.
        chosen:  what it returned.
        out:     a folder, made where it is missing.

    Returns:
        The data.yaml.

    Raises:
        DataError: a layout whose pictures cannot be listed apart from their labels.
    """
    out.mkdir(parents=True, exist_ok=True)
    source = dataset.sources[0]
    base = out
    if isinstance(source, PixelSource) and source.format == "voc":
        base = Path(source.label_root)  # its lists name pictures by their id alone
    entries: dict[str, Any] = {"path": _relative(str(base), out), "format": source.format}
    if isinstance(source, CocoSource):
        if len(dataset.sources) > 1:
            raise DataError(
                "the data set has several COCO files already; split one of them, or merge them "
                "with `pixelwise data convert --format coco`"
            )
        for name, members in chosen.items():
            file = out / f"instances_{name}.json"
            _filter_coco(source, [int(dataset.index[i, 1]) for i in members], file)
            entries[name] = {"annotations": file.name, "images": _relative(source.files.root, out)}
    else:
        for name, members in chosen.items():
            entries[name] = _write_list(dataset, name, members, out)
    entries |= _class_entries(dataset)
    path = out / "data.yaml"
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_flow_style=None)
    path.write_text(text, encoding="utf-8")
    return path


def _refuse_bad(ratios: Mapping[str, float], group: str | None) -> None:
    for name, share in ratios.items():
        if name not in SPLITS:
            raise UsageError(f"unknown split {name!r}; use {', '.join(SPLITS)}")
        if share < 0:
            raise UsageError(f"the ratio of {name} is {share}; it must not be below zero")
    if sum(ratios.values()) <= 0:
        raise UsageError("all ratios are zero; give train, val or test a share")
    try:
        re.compile(group or "")
    except re.error as error:
        raise UsageError(f"group {group!r} is no regular expression ({error})") from error


def _groups(dataset: Dataset, group: str | None) -> list[list[int]]:
    if group is None:
        return [[i] for i in range(len(dataset))]
    pattern = re.compile(group)
    found: dict[str, list[int]] = {}
    for i in range(len(dataset)):
        path = str(dataset.path(i))
        match = pattern.search(path)
        key = (
            path if match is None else "\0" + (match.group(1) if pattern.groups else match.group())
        )
        found.setdefault(key, []).append(i)
    return list(found.values())


def _presence(dataset: Dataset) -> list[frozenset[int]]:
    """The classes that occur in each picture."""
    found: list[frozenset[int]] = []
    for i in range(len(dataset)):
        labels, instances = dataset.annotation(i)
        values = instances.labels if instances is not None else labels
        found.append(frozenset(np.unique(values).tolist() if values is not None else ()))
    return found


def _spread(
    groups: Sequence[list[int]],
    presence: Sequence[frozenset[int]],
    room: dict[str, float],
    chosen: dict[str, list[int]],
) -> None:
    """Deal the groups of the rarest class first, to the split that lacks that class most."""
    total = sum(room.values())
    share = {name: places / total for name, places in room.items()}
    classes = [frozenset[int]().union(*(presence[i] for i in members)) for members in groups]
    open_groups = set(range(len(groups)))
    frequency = {k: sum(k in c for c in classes) for k in frozenset[int]().union(*classes)}
    for k in sorted(frequency, key=lambda k: (frequency[k], k)):
        dealt = {name: sum(k in presence[i] for i in members) for name, members in chosen.items()}
        wanted = {name: part * sum(k in p for p in presence) for name, part in share.items()}
        for g in [g for g in range(len(groups)) if g in open_groups and k in classes[g]]:
            name = max(room, key=lambda name: (wanted[name] - dealt[name], room[name]))
            chosen[name] += groups[g]
            room[name] -= len(groups[g])
            dealt[name] += sum(k in presence[i] for i in groups[g])
            open_groups.remove(g)
    for g in sorted(open_groups):
        _put(groups[g], room, chosen)


def _put(members: list[int], room: dict[str, float], chosen: dict[str, list[int]]) -> None:
    """Into the split with most room left."""
    name = max(room, key=lambda name: room[name])
    chosen[name] += members
    room[name] -= len(members)


def _filter_coco(source: CocoSource, members: Sequence[int], out: Path) -> None:
    """The entries of some pictures, with every field they had."""
    kept = {int(source.image_ids[i]) for i in members}
    images: list[Any] = []
    annotations: list[Any] = []

    def keep_image(entry: Any) -> None:
        if entry["id"] in kept:
            images.append(entry)

    def keep_annotation(entry: Any) -> None:
        if entry["image_id"] in kept:
            annotations.append(entry)

    rest = read_json(source.annotations, {"images": keep_image, "annotations": keep_annotation})
    content = {**rest, "images": images, "annotations": annotations}
    out.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_list(dataset: Dataset, name: str, members: Sequence[int], out: Path) -> Any:
    file = out / f"{name}.txt"
    source = dataset.sources[0]
    if isinstance(source, PixelSource) and source.format == "voc":
        stems = [dataset.path(i).stem for i in members]
        file.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
        return _relative(str(file), Path(source.label_root))
    lines = [_relative(str(dataset.path(i)), out) for i in members]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if isinstance(source, PixelSource | ClassFiles | YoloSource):
        roots = [other.label_root for other in dataset.sources if isinstance(other, type(source))]
        labels = os.path.commonpath([str(Path(root).absolute()) for root in roots])
        return {"images": file.name, "labels": _relative(labels, out)}
    return file.name


def _class_entries(dataset: Dataset) -> dict[str, Any]:
    """What the data.yaml said about classes, so that the new one says it too."""
    config = dataset.config
    if config is None:
        return {}
    entries: dict[str, Any] = {}
    if config.names is not None:
        entries["names"] = dict(config.names)
    if config.void or config.void_colors:
        entries["void"] = [*sorted(config.void), *map(list, config.void_colors)]
    if config.colors is not None:
        entries["colors"] = [list(color) for color in config.colors]
    if config.things is not None:
        entries["things"] = list(config.things)
    if config.layout is not None:
        entries["layout"] = config.layout
    if config.background != "background":
        entries["background"] = config.background
    return entries


def _relative(path: str, base: Path) -> str:
    return os.path.relpath(Path(path).absolute(), base.absolute())


def count_by_class(dataset: Dataset, members: Sequence[int] | IntArray) -> dict[str, int]:
    """In how many of these pictures each class occurs."""
    presence = _presence(dataset.subset(members))
    return {name: sum(k in p for p in presence) for k, name in enumerate(dataset.classes)}
