"""`data check`: a broken copy of each kind, found under its name; whole data is left in peace."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelwise import data
from pixelwise.data.duplicates import find_duplicates, fingerprint
from pixelwise.data.kinds import KINDS
from tests.data.made_up import (
    annotation,
    coco_content,
    label_map,
    picture,
    square,
    write_coco,
    write_index,
    write_masks,
    write_yaml,
)


def coco_check(folder, content):
    return data.open(write_coco(folder, content), lenient=True).check(quiet=True)


def broken_annotation(**change):
    def breaker(content):
        content["annotations"][1].update(change)

    return breaker


def add(entry, key="annotations"):
    return lambda content: content[key].append(entry)


def masks_with(labels):
    def build(folder):
        write_masks(folder, labels=labels)
        return write_yaml(folder, "train: images/train\nnames: [x, y, z]\n")

    return build


BOW_TIE = [2, 2, 12, 12, 12, 2, 2, 12]
HUGE = annotation(9, 10, 7, square(20, 10, 20))

COCO_CASES = [
    (
        "degenerate polygon",
        broken_annotation(segmentation=[[1, 1, 5, 5]]),
        "annotation 2: 4 numbers",
    ),
    (
        "degenerate polygon",
        broken_annotation(segmentation=[[1, 1, 5, 5, 9, 9]]),
        "annotation 2: no area",
    ),
    ("self-crossing polygon", broken_annotation(segmentation=[BOW_TIE]), "annotation 2"),
    ("polygon outside", add(HUGE), "annotation 9: reaches 20, 10, 40, 30 in a picture of 32x24"),
    ("box outside", broken_annotation(bbox=[12, 5, 30, 10]), "annotation 2: 12, 5, 42, 15"),
    ("degenerate box", broken_annotation(bbox=[12, 5, 0, 10]), "annotation 2: 12, 5, 12, 15"),
    ("duplicate id", broken_annotation(id=1), "annotation 1"),
    (
        "duplicate id",
        add({"id": 10, "file_name": "9.png", "height": 24, "width": 32}, "images"),
        "image 10",
    ),
    (
        "duplicate id",
        add({"id": 77, "file_name": "0.png", "height": 24, "width": 32}, "images"),
        "listed twice",
    ),
    ("duplicate id", add({"id": 90, "name": "cat"}, "categories"), "name 'cat'"),
    ("unknown category", broken_annotation(category_id=55), "annotation 2 has category_id 55"),
    ("unknown image", broken_annotation(image_id=55), "annotation 2 has image_id 55"),
    ("broken annotation", broken_annotation(segmentation=[["a"] * 6]), "annotation 2"),
    ("broken annotation", broken_annotation(category_id=None), "category_id is None"),
    ("broken annotation", lambda c: c["annotations"][1].pop("image_id"), "has no image_id"),
    ("broken annotation", add("text"), "is no object"),
    (
        "broken annotation",
        broken_annotation(segmentation={"size": [24, 32], "counts": [3]}),
        "cover 3 of 768",
    ),
    (
        "mask size mismatch",
        broken_annotation(segmentation={"size": [9, 9], "counts": [81]}),
        "9x9 for 32x24",
    ),
    (
        "empty mask",
        broken_annotation(segmentation={"size": [24, 32], "counts": [768]}),
        "annotation 2",
    ),
    ("no mask", broken_annotation(segmentation=[]), "annotation 2 has a box only"),
    ("unused class", add({"id": 91, "name": "cow"}, "categories"), "label 2"),
]


@pytest.mark.parametrize(("kind", "breaker", "words"), COCO_CASES)
def test_each_kind_of_broken_coco(tmp_path, kind, breaker, words):
    whole = coco_check(tmp_path / "whole", coco_content())
    assert not whole.errors
    assert not whole.warnings
    content = coco_content()
    breaker(content)
    report = coco_check(tmp_path / "broken", content)
    assert report.counts[kind] == 1
    assert words in report.problems[kind][0].file + " " + report.problems[kind][0].detail
    assert KINDS[kind].fix in report.summary()


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def resize(path):
    Image.open(path).resize((20, 20)).save(path)


@pytest.mark.parametrize(
    ("kind", "breaker"),
    [
        ("missing image", lambda path: path.unlink()),
        ("unreadable image", cut),
        ("unreadable image", lambda path: path.write_text("text")),
        ("unreadable image", lambda path: path.write_bytes(b"")),
        ("size mismatch", resize),
    ],
)
def test_each_kind_of_broken_picture(tmp_path, kind, breaker):
    path = write_coco(tmp_path)
    breaker(tmp_path / "images" / "1.png")
    report = data.open(path, lenient=True).check(quiet=True)
    assert {p.kind for p in report.errors} == {kind}
    assert report.errors[0].file.endswith("1.png")
    assert report.error_count == 1


def test_swapped_sides_are_suspected_to_be_an_exif_rotation(tmp_path):
    path = write_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(tmp_path / "images" / "0.png")
    image.save(tmp_path / "images" / "0.png", exif=exif)
    report = data.open(path, lenient=True).check(quiet=True)
    assert "EXIF" in report.problems["size mismatch"][0].detail


def test_each_kind_of_broken_label_picture(tmp_path):
    whole = data.open(masks_with(label_map())(tmp_path / "whole"), lenient=True).check(quiet=True)
    assert not whole.errors
    folder = tmp_path / "broken"
    config = masks_with(label_map())(folder)
    names = ("value", "size", "cut", "missing")
    for seed, name in enumerate(names):
        write_masks(folder, names=(name,), labels=label_map() + 0)
        picture(90 + seed).save(folder / "images" / "train" / f"{name}.png")
    labels = folder / "labels" / "train"
    write_index(labels / "value.png", np.full((24, 32), 17))
    write_index(labels / "size.png", np.zeros((10, 10)))
    cut(labels / "cut.png")
    (labels / "missing.png").unlink()
    report = data.open(config, lenient=True).check(quiet=True)
    found = {p.kind: (p.file, p.detail) for p in report.errors}
    assert set(found) == {
        "value out of range",
        "label size mismatch",
        "unreadable label",
        "missing label",
    }
    assert found["value out of range"] == (str(labels / "value.png"), "17")
    assert found["label size mismatch"] == (str(labels / "size.png"), "labels 10x10, picture 32x24")
    assert found["unreadable label"][0].endswith("cut.png")
    assert found["missing label"][0].endswith("images/train/missing.png")


def test_each_kind_of_broken_object_file(tmp_path):
    folder = tmp_path / "p"
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    picture(0).save(folder / "images" / "p.png")
    mask = np.zeros((24, 32), np.uint8)
    Image.fromarray(mask).save(folder / "masks" / "empty.png")
    mask[3:9, 3:9] = 255
    Image.fromarray(mask).save(folder / "masks" / "good.png")
    Image.fromarray(mask[:10]).save(folder / "masks" / "size.png")
    (folder / "masks" / "text.png").write_text("x")
    config = write_yaml(tmp_path, "train: .\nnames: [cell]\n")
    report = data.open(config, lenient=True).check(quiet=True)
    files = {p.kind: Path(p.file).name for p in report.errors}
    assert files == {
        "empty mask": "empty.png",
        "label size mismatch": "size.png",
        "unreadable label": "text.png",
    }


def test_each_kind_of_broken_yolo_line(tmp_path):
    lines = {
        "unknown category": "4 0.1 0.1 0.5 0.1 0.5 0.5",
        "degenerate polygon": "0 0.1 0.1 0.5",
        "polygon outside": "0 0.1 0.1 1.5 0.1 0.5 0.5",
        "broken annotation": "0 a b",
        "self-crossing polygon": "0 0.1 0.1 0.5 0.5 0.5 0.1 0.1 0.5",
        "no mask": "0 0.5 0.5 0.2 0.2",
    }
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for n, line in enumerate(lines.values()):
        picture(n).save(tmp_path / "images" / f"{n}.png")
        (tmp_path / "labels" / f"{n}.txt").write_text(f"0 0.1 0.1 0.5 0.1 0.5 0.5\n{line}\n")
    config = write_yaml(tmp_path, "train: images\nnames: [x]\n")
    report = data.open(config, lenient=True).check(quiet=True)
    for n, kind in enumerate(lines):
        (problem,) = report.problems[kind]
        assert problem.file.endswith(f"{n}.txt")
        assert "line 2" in problem.detail


def test_empty_pictures_are_noted_and_kept(tmp_path):
    found = data.open(write_coco(tmp_path), lenient=True)
    report = found.check(quiet=True)
    assert len(found) == 3
    assert [p.file.endswith("2.png") for p in report.notes] == [True]
    assert report.problems["empty image"] == report.notes
    assert "no errors" in report.summary()


def test_near_duplicates_across_splits(tmp_path):
    train = write_coco(tmp_path / "train", coco_content(4), first_seed=0)
    val = write_coco(tmp_path / "val", coco_content(4), "instances_val.json", first_seed=50)
    copied = Image.open(tmp_path / "train" / "images" / "2.png")
    # The same picture again, as another program would save it: smaller, lossy, a little brighter.
    worse = copied.resize((40, 30)).point(lambda v: min(255, v + 3)).resize((32, 24))
    worse.save(tmp_path / "x.jpg", quality=85)
    Image.open(tmp_path / "x.jpg").save(tmp_path / "val" / "images" / "1.png")
    text = (
        f"train: {{annotations: {train}, images: {train.parent}/images}}\n"
        f"val: {{annotations: {val}, images: {val.parent}/images}}\n"
    )
    report = data.open(write_yaml(tmp_path, text), lenient=True).check(quiet=True)
    (problem,) = report.problems["duplicate across splits"]
    assert problem.file.endswith("train/images/2.png")
    assert problem.detail.endswith("val/images/1.png")
    assert not report.errors


def test_duplicates_within_a_split_and_flat_pictures_are_not_reported():
    same = fingerprint(np.asarray(picture(1)))
    assert fingerprint(np.full((20, 20, 3), 90, np.uint8)) is None
    assert find_duplicates([same, same, None], np.array([0, 0, 1]), ["train", "val"]) == []
    assert find_duplicates([same, None, same], np.array([0, 0, 1]), ["train", "val"]) == [(0, 2)]


def test_different_pictures_are_told_apart():
    prints = [fingerprint(np.asarray(picture(seed))) for seed in range(60)]
    sources = np.arange(60) % 2
    assert find_duplicates(prints, sources, ["train", "val"]) == []


def test_report_as_json_counts_everything_but_keeps_a_thousand(tmp_path):
    content = coco_content(1)
    content["annotations"] = [annotation(1, 10, 7, square(2, 3)) for _ in range(1500)]
    report = coco_check(tmp_path, content)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["kinds"]["duplicate id"]["count"] == 1499
    assert len(values["kinds"]["duplicate id"]["problems"]) == 1000
    assert values["errors"] == report.error_count == 1499
    assert "... and 1494 more" in report.summary()


def test_every_kind_is_reached_by_these_tests():
    text = Path(__file__).read_text()
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []
