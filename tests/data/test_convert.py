"""`data convert`: masks go through every format without losing a pixel, and losses are named."""

import json

import numpy as np
import pytest

from pixelwise import data
from pixelwise.data.convert import WRITERS, convert
from pixelwise.errors import DataError, UsageError
from pixelwise.ops import rle
from tests.data.made_up import (
    annotation,
    coco_content,
    label_map,
    square,
    write_coco,
    write_masks,
    write_yaml,
)


def shapes():
    """A ring, an object of two parts that touch at a corner, and a ragged one; nothing overlaps."""
    masks = np.zeros((3, 24, 32), np.uint8)
    masks[0, 2:12, 2:12], masks[0, 5:8, 5:9] = 1, 0
    masks[1, 14:17, 3:6], masks[1, 17:20, 6:9] = 1, 1
    masks[2, 3:20, 15:30] = np.random.default_rng(3).random((17, 15)) < 0.7
    return masks


def difficult(folder):
    content = coco_content(2)
    packed = rle.to_coco(rle.encode(shapes()))
    content["annotations"] = [
        annotation(n + 1, 10, 7 if n else 3, square(1, 1), segmentation=packed[n], area=1)
        for n in range(3)
    ]
    return data.open(write_coco(folder, content))


def by_class(view, i):
    """The masks of each class, in an order that does not depend on the format."""
    instances = view[i].instances
    found = [
        (view.classes[k], mask.tobytes())
        for k, mask in zip(instances.labels, rle.decode(instances.masks), strict=True)
    ]
    return sorted(found)


@pytest.mark.parametrize("format", ["coco", "yolo-seg", "voc", "objects"])
def test_objects_survive_exactly(tmp_path, format):
    source = difficult(tmp_path / "a")
    done = convert(source, format, tmp_path / "b", quiet=True)
    again = data.open(done.config)
    assert done.images == {"train": 2}
    for i in range(2):
        assert by_class(again.as_instances(), i) == by_class(source.as_instances(), i)
        assert (again[i].image == source[i].image).all()
    assert again.check(quiet=True).error_count == 0


@pytest.mark.parametrize("format", ["masks", "voc"])
def test_labels_survive_exactly(tmp_path, format):
    write_masks(tmp_path / "a")
    text = "train: images/train\nnames: [x, y, background]\n"
    text += "colors: [[1, 2, 3], [9, 8, 7], [0, 0, 0]]\n"
    source = data.open(write_yaml(tmp_path / "a", text))
    done = convert(source, format, tmp_path / "b", quiet=True)
    again = data.open(done.config)
    assert not done.losses
    names = np.array([*again.classes, *["void"] * (256 - len(again.classes))])
    expected = np.array([*source.classes, *["void"] * (256 - len(source.classes))])
    for i in range(2):
        assert (names[again[i].labels] == expected[source[i].labels]).all()


def test_objects_to_label_maps(tmp_path):
    source = difficult(tmp_path / "a")
    done = convert(source, "masks", tmp_path / "b", quiet=True)
    again = data.open(done.config)
    assert again.classes == ("dog", "cat", "background")
    assert (again[0].labels == source.as_semantic()[0].labels).all()
    assert dict(done.losses) == {"identity": 3}
    assert "told apart" in done.warnings()[0]


def test_overlaps_and_crowds_that_are_lost_are_counted(tmp_path):
    content = coco_content(1)
    content["annotations"] = [
        annotation(1, 10, 7, square(2, 2, 10)),
        annotation(2, 10, 3, square(8, 8, 6)),
        annotation(3, 10, 3, square(20, 2, 5), iscrowd=1),
    ]
    source = data.open(write_coco(tmp_path / "a", content))
    lost = {
        name: dict(convert(source, name, tmp_path / name, quiet=True).losses) for name in WRITERS
    }
    assert lost == {
        "coco": {},
        "yolo-seg": {"crowd": 1},
        "masks": {"identity": 3, "overlap": 16},
        "voc": {"overlap": 16, "crowd as void": 1},
        "objects": {"crowd": 1},
    }
    again = data.open(tmp_path / "coco" / "data.yaml")
    assert again[0].instances.crowd.tolist() == [False, False, True]
    rim = data.open(tmp_path / "voc" / "data.yaml")[0].labels
    assert (rim[2:7, 20:25] == 255).all()


def test_holes_joined_by_a_bridge_are_said(tmp_path):
    done = convert(difficult(tmp_path / "a"), "yolo-seg", tmp_path / "b", quiet=True)
    assert done.losses["bridged"] == 3
    lines = (tmp_path / "b" / "labels" / "train" / "0.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "1"]
    assert (tmp_path / "b" / "labels" / "train" / "1.txt").read_text() == ""


def test_coco_holds_polygons_where_they_suffice(tmp_path):
    convert(difficult(tmp_path / "a"), "coco", tmp_path / "b", quiet=True)
    content = json.loads((tmp_path / "b" / "annotations" / "instances_train.json").read_text())
    kinds = [type(a["segmentation"]).__name__ for a in content["annotations"]]
    assert kinds[:2] == ["dict", "list"]  # the ring has a hole
    assert [a["area"] for a in content["annotations"]] == shapes().sum(axis=(1, 2)).tolist()
    assert content["images"][1]["file_name"] == "1.png"


def test_classes_become_objects_only_on_request(tmp_path):
    write_masks(tmp_path / "a", labels=label_map(void=255))
    source = data.open(
        write_yaml(tmp_path / "a", "train: images/train\nnames: [x, y, z]\nthings: [y, z]\n")
    )
    with pytest.raises(DataError, match="components"):
        convert(source, "coco", tmp_path / "b", quiet=True)
    done = convert(source, "coco", tmp_path / "b", components=True, quiet=True)
    assert len(data.open(done.config)[0].instances) == 2


def test_links_and_repeated_names(tmp_path):
    content = coco_content(2)
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "a/x.png", "b/x.png"
    for folder in "ab":
        (tmp_path / "a" / "images" / folder).mkdir(parents=True)
    source = data.open(write_coco(tmp_path / "a", content))
    done = convert(source, "voc", tmp_path / "b", images="link", quiet=True)
    again = data.open(done.config)
    assert [len(s.instances) for s in again] == [2, 1]
    assert len({again.path(i) for i in range(2)}) == 2
    assert again.path(0).is_symlink()


def test_refusals(tmp_path):
    source = difficult(tmp_path / "a")
    with pytest.raises(UsageError, match="unknown format 'x'"):
        convert(source, "x", tmp_path / "b")
    with pytest.raises(UsageError, match="not empty"):
        convert(source, "coco", tmp_path / "a")
