"""`data split`: every picture once, groups together, classes spread, and the result opens."""

import json

import numpy as np
import pytest

from pixelwise import data
from pixelwise.data.readers import voc
from pixelwise.data.split import split_indices, write_splits
from pixelwise.errors import UsageError
from tests.data.made_up import (
    annotation,
    coco_content,
    label_map,
    square,
    write_coco,
    write_index,
    write_masks,
    write_picture,
    write_yaml,
)


def many(folder, count=40, rare=4):
    content = coco_content(count)
    for i, image in enumerate(content["images"]):
        image["file_name"] = f"scene{i // 4}_{i}.png"
    content["annotations"] = [
        annotation(i + 1, 10 + i, 3 if i < rare else 7, square(2, 2), note="kept")
        for i in range(count)
    ]
    return data.open(write_coco(folder, content))


def test_every_picture_is_in_exactly_one_split(tmp_path):
    found = many(tmp_path)
    chosen = split_indices(found, {"train": 0.7, "val": 0.2, "test": 0.1})
    assert {name: len(part) for name, part in chosen.items()} == {"train": 28, "val": 8, "test": 4}
    assert sorted(i for part in chosen.values() for i in part) == list(range(40))


def test_the_seed_decides(tmp_path):
    found = many(tmp_path)
    ratios = {"train": 0.5, "val": 0.5}
    first = split_indices(found, ratios, seed=1)
    assert first == split_indices(found, ratios, seed=1)
    assert first != split_indices(found, ratios, seed=2)


def test_groups_stay_together(tmp_path):
    found = many(tmp_path)
    chosen = split_indices(found, {"train": 3, "val": 1}, group=r"(scene\d+)_")
    scenes = {
        name: {found.path(i).name.split("_")[0] for i in part} for name, part in chosen.items()
    }
    assert not scenes["train"] & scenes["val"]
    assert len(chosen["train"]) in (28, 32)  # 30 is no multiple of 4


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_spread(tmp_path, seed):
    found = many(tmp_path, rare=4)
    chosen = split_indices(found, {"train": 0.75, "val": 0.25}, seed=seed, stratify=True)
    rare = {name: sum(i < 4 for i in part) for name, part in chosen.items()}
    assert rare == {"train": 3, "val": 1}
    assert {name: len(part) for name, part in chosen.items()} == {"train": 30, "val": 10}


def test_coco_splits_keep_every_field(tmp_path):
    found = many(tmp_path / "a")
    chosen = split_indices(found, {"train": 0.75, "val": 0.25})
    path = write_splits(found, chosen, tmp_path / "b")
    again = data.open(path)
    assert [len(again.split(name)) for name in again.splits] == [30, 10]
    for name, part in chosen.items():
        names = [again.split(name).path(i).name for i in range(len(part))]
        assert names == [found.path(i).name for i in part]
        content = json.loads((tmp_path / "b" / f"instances_{name}.json").read_text())
        assert {a["note"] for a in content["annotations"]} == {"kept"}
    assert again.check(quiet=True).error_count == 0


def masks(folder):
    write_masks(folder, names=tuple("abcdef"))
    return write_yaml(folder, "train: images/train\nnames: {0: x, 1: y, 2: z}\nvoid: [255]\n")


def yolo(folder):
    for n, name in enumerate("abcdef"):
        write_picture(folder / "images" / "all" / f"{name}.png", n)
        path = folder / "labels" / "all" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n" * n)
    return write_yaml(folder, "train: images/all\nnames: [x]\n")


def pascal(folder):
    for n, name in enumerate("abcdef"):
        write_picture(folder / "JPEGImages" / f"{name}.png", n)
        write_index(folder / "SegmentationClass" / f"{name}.png", label_map(), voc.palette())
    return folder


def object_folders(folder):
    for n, name in enumerate("abcdef"):
        write_picture(folder / name / "images" / f"{name}.png", n)
        write_index(folder / name / "masks" / "0.png", np.ones((24, 32)))
    return write_yaml(folder, "train: .\nnames: [cell]\n")


@pytest.mark.parametrize("build", [masks, yolo, pascal, object_folders])
def test_lists_of_pictures_open_with_the_same_annotation(tmp_path, build):
    found = data.open(build(tmp_path / "a"))
    chosen = split_indices(found, {"train": 4, "val": 2}, seed=3)
    again = data.open(write_splits(found, chosen, tmp_path / "b"))
    assert again.classes == found.classes
    for name, part in chosen.items():
        for k, i in enumerate(part):
            old, new = found[i], again.split(name)[k]
            assert new.path.resolve() == old.path.resolve()
            if old.labels is not None:
                assert (new.labels == old.labels).all()
            if old.instances is not None:
                assert len(new.instances) == len(old.instances)
                assert (new.instances.boxes == old.instances.boxes).all()


@pytest.mark.parametrize(
    ("ratios", "group", "words"),
    [
        ({"trian": 1.0}, None, "unknown split 'trian'"),
        ({"train": -1.0}, None, "below zero"),
        ({"train": 0.0}, None, "all ratios are zero"),
        ({"train": 1.0}, "(", "no regular expression"),
    ],
)
def test_refusals(tmp_path, ratios, group, words):
    with pytest.raises(UsageError, match=words):
        split_indices(many(tmp_path), ratios, group=group)
