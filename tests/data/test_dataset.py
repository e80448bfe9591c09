"""Opening, COCO in all its forms, data.yaml, and the two views."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from pixelwise import data
from pixelwise.data.config import read_config
from pixelwise.data.json_stream import read_json
from pixelwise.data.paint import paint_instances
from pixelwise.errors import DataError
from pixelwise.ops import rle
from tests.data.made_up import (
    REAL,
    annotation,
    coco_content,
    needs_real_data,
    square,
    write_coco,
    write_masks,
    write_yaml,
)


def dense(instances):
    return rle.decode(instances.masks)


def test_coco_labels_follow_ascending_category_ids(tmp_path):
    found = data.open(write_coco(tmp_path))
    assert found.classes == ("dog", "cat")  # ids 3 and 7, listed the other way round
    assert found.splits == ("train",)
    assert [len(s.instances) for s in found] == [2, 1, 0]
    instances = found[0].instances
    assert instances.labels.tolist() == [1, 0]
    assert instances.ids.tolist() == [1, 2]
    assert instances.boxes.tolist() == [[2, 3, 10, 11], [12, 5, 22, 15]]
    assert instances.areas.tolist() == [64, 100]
    expected = np.zeros((2, 24, 32))
    expected[0, 3:11, 2:10] = 1
    expected[1, 5:15, 12:22] = 1
    assert (dense(instances) == expected).all()


@pytest.mark.parametrize(
    "order", [("categories", "annotations", "images"), ("annotations", "images", "categories")]
)
def test_coco_keys_in_any_order(tmp_path, order):
    content = coco_content()
    found = data.open(
        write_coco(tmp_path, {key: content[key] for key in order} | {"images": content["images"]})
    )
    found = data.open(write_coco(tmp_path, {"info": {}, **{key: content[key] for key in order}}))
    assert [len(s.instances) for s in found] == [2, 1, 0]
    assert found[0].instances.labels.tolist() == [1, 0]


def test_coco_annotations_of_a_picture_need_not_be_neighbours(tmp_path):
    content = coco_content()
    content["annotations"].insert(0, annotation(9, 11, 3, square(5, 5)))
    content["annotations"].append(annotation(10, 10, 3, square(20, 10)))
    found = data.open(write_coco(tmp_path, content))
    assert [s.instances.ids.tolist() for s in found] == [[1, 2, 10], [9, 3], []]


def test_coco_mixed_shapes_keep_their_order(tmp_path):
    content = coco_content(1)
    masks = np.zeros((2, 24, 32), np.uint8)
    masks[0, 1:5, 1:5], masks[1, 10:20, 3:9] = 1, 1
    masks[1, 12:14, 5:7] = 0
    packed = rle.to_coco(rle.encode(masks))
    flat = masks[1].T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]))).tolist()
    counts = np.diff([0, *changes, len(flat)]).tolist()
    content["annotations"] = [
        annotation(1, 10, 7, square(2, 3)),
        annotation(2, 10, 3, square(1, 1, 4), segmentation=packed[0]),
        annotation(
            3, 10, 3, square(0, 0), segmentation={"size": [24, 32], "counts": counts}, iscrowd=1
        ),
        annotation(4, 10, 7, square(20, 10), segmentation=[square(20, 10), square(1, 15, 3)]),
        annotation(5, 10, 7, square(24, 2, 5), segmentation=[]),
    ]
    instances = data.open(write_coco(tmp_path, content))[0].instances
    assert instances.ids.tolist() == [1, 2, 3, 4, 5]
    assert instances.crowd.tolist() == [False, False, True, False, True]  # the last has a box only
    assert (dense(instances)[1] == masks[0]).all()
    assert (dense(instances)[2] == masks[1]).all()
    assert rle.areas(instances.masks).tolist() == [64, 16, 56, 64 + 9, 25]


def test_coco_keeps_the_first_of_a_repeated_id_and_drops_the_unknown(tmp_path):
    content = coco_content()
    content["annotations"] += [
        annotation(1, 11, 3, square(9, 9)),
        annotation(50, 99, 3, square(9, 9)),
        annotation(51, 10, 99, square(9, 9)),
    ]
    found = data.open(write_coco(tmp_path, content))
    assert [s.instances.ids.tolist() for s in found] == [[1, 2], [3], []]


def test_coordinates_survive_packing_exactly(tmp_path):
    """0.7 * 5 + 0.5 falls on a whole number, where float32 would fall below it."""
    content = coco_content(1)
    points = [0.7, 0.7, 8.3, 0.7, 8.3, 9.1, 0.7, 9.1]
    odd = [1 / 3, 0.123456789, 7.7, 1.1, 6.123456789, 8.9]
    for shape in (points, odd):
        content["annotations"] = [annotation(1, 10, 7, points), annotation(2, 10, 7, shape)]
        found = data.open(write_coco(tmp_path, content))
        packed = found.sources[0].packed
        assert packed.polygons(1)[0].reshape(-1).tolist() == shape
        expected = rle.decode(rle.from_polygons([[points], [shape]], (24, 32)))
        assert (dense(found[0].instances) == expected).all()


def test_packing_widens_once_when_a_later_coordinate_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pixelwise.data.packed._FLUSH", 4)
    shapes = [
        [0.7, 0.1, 8.3, 0.7, 8.3, 9.1],
        [1 / 3, 0.1, 7.7, 1.1, 6.1, 8.9],
        [5.1, 5, 9, 5, 9, 9.3],
    ]
    content = coco_content(1)
    content["annotations"] = [annotation(n, 10, 7, shape) for n, shape in enumerate(shapes)]
    packed = data.open(write_coco(tmp_path, content)).sources[0].packed
    assert [packed.polygons(n)[0].reshape(-1).tolist() for n in range(3)] == shapes
    assert packed.points.dtype == np.float64


def test_names_select_and_order_coco_classes(tmp_path):
    write_coco(tmp_path)
    text = "train: {annotations: instances_train.json, images: images}\nnames: [cat]\n"
    found = data.open(write_yaml(tmp_path, text))
    assert found.classes == ("cat",)
    assert [s.instances.ids.tolist() for s in found] == [[1], [3], []]
    with pytest.raises(DataError, match="names holds 'cow'"):
        data.open(write_yaml(tmp_path, text.replace("[cat]", "[cow]")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("categories"), "no categories"),
        (lambda c: c.pop("images"), "no images"),
        (lambda c: c["annotations"][1].pop("category_id"), "annotation 2 is not as COCO has it"),
        (lambda c: c["annotations"][1].update(bbox=["a", 1, 2, 3]), "annotation 2"),
        (lambda c: c["annotations"][1].update(segmentation=[["x"] * 6]), "annotation 2"),
        (
            lambda c: c["annotations"][1].update(segmentation={"size": [24, 32], "counts": [5]}),
            "annotation 2",
        ),
        (
            lambda c: c["annotations"][1].update(segmentation={"size": [9, 9], "counts": [81]}),
            "9x9 in a picture",
        ),
        (lambda c: c["images"][0].pop("file_name"), "image 10"),
    ],
)
def test_malformed_coco_names_the_entry(tmp_path, change, words):
    content = coco_content()
    write_coco(tmp_path, content)
    change(content)
    path = tmp_path / "instances_train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"instances_train.json.*{words}"):
        data.open(path)


def test_picture_of_another_size_is_an_error_that_suspects_exif(tmp_path):
    path = write_coco(tmp_path)
    image = Image.open(tmp_path / "images" / "0.png")
    image.rotate(90, expand=True).save(tmp_path / "images" / "0.png")
    with pytest.raises(DataError, match=r"0\.png: the picture is 24x32.*32x24.*EXIF"):
        data.open(path)[0]


def test_missing_picture_names_the_file(tmp_path):
    path = write_coco(tmp_path)
    (tmp_path / "images" / "1.png").unlink()
    found = data.open(path)
    assert len(found[0].instances) == 2
    with pytest.raises(DataError, match=r"1\.png: no such file"):
        found[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        '{"images": [',
        '{"images": [{"id": 1}',
        "no json",
        '{"a": 1,, }',
        '{"images": [1 2]}',
    ],
)
def test_broken_json_says_so(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"x\.json: not valid JSON near character \d+"):
        read_json(path, {"images": lambda entry: None})


def test_json_in_chunks_equals_json_at_once(tmp_path, monkeypatch):
    content = {
        "a": [1, -2.5e3, 'brackets ]}{[ and "quotes"'],
        "images": [{"id": i, "n": "é" * (i % 7), "deep": [[{"x": i}]]} for i in range(200)],
        "empty": [],
        "annotations": [],
        "last": 12345,
    }
    path = tmp_path / "x.json"
    for indent in (None, 1):
        path.write_text(
            json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8-sig"
        )
        for chunk in (1, 2, 3, 7, 50, 1 << 20):
            monkeypatch.setattr("pixelwise.data.json_stream._CHUNK", chunk)
            seen = []
            rest = read_json(path, {"images": seen.append, "annotations": seen.append})
            assert seen == content["images"]
            assert rest == {k: content[k] for k in ("a", "empty", "last")}


def test_views_of_objects(tmp_path):
    found = data.open(write_coco(tmp_path))
    semantic = found.as_semantic()
    assert semantic.classes == ("dog", "cat", "background")
    labels = semantic[0].labels
    assert (labels[4, 4], labels[6, 14], labels[0, 0]) == (1, 0, 2)
    assert semantic[0].instances is None
    ignoring = found.as_semantic(background=None)
    assert ignoring.classes == ("dog", "cat")
    assert ignoring[0].labels[0, 0] == 255
    instances = found.as_instances()
    assert instances[0].labels is None
    assert (semantic[2].labels == 2).all()


def test_smaller_objects_lie_on_top_and_crowds_at_the_bottom(tmp_path):
    content = coco_content(1)
    content["annotations"] = [
        annotation(1, 10, 7, square(4, 4, 4)),
        annotation(2, 10, 3, square(2, 2, 12)),
        annotation(3, 10, 7, square(12, 12, 2), iscrowd=1),
    ]
    labels = data.open(write_coco(tmp_path, content)).as_semantic()[0].labels
    assert labels[5, 5] == 1  # the small cat, although it comes first in the file
    assert labels[13, 13] == 0  # the dog covers the crowd, although the crowd is smaller
    assert (labels == 1).sum() == 16


def test_painting_nothing():
    from pixelwise.data.sample import Instances

    assert (paint_instances(Instances.empty((3, 4)), fill=7) == 7).all()


def test_subset_split_and_pickle(tmp_path):
    write_masks(tmp_path, "train", names=("a", "b", "c"))
    write_masks(tmp_path, "val", names=("d",))
    found = data.open(
        write_yaml(tmp_path, "train: images/train\nval: images/val\nnames: [x, y, z]\n")
    )
    chosen = found.subset([3, 0])
    assert [chosen.path(i).name for i in range(2)] == ["d.png", "a.png"]
    assert [s.index for s in chosen] == [0, 1]
    assert chosen.split("val").path(0).name == "d.png"
    again = pickle.loads(pickle.dumps(chosen))
    assert (again[0].labels == chosen[0].labels).all()
    with pytest.raises(DataError, match="no split 'test'; it has train, val"):
        found.split("test")
    with pytest.raises(IndexError):
        found[4]


def test_sizes_come_from_the_annotation_or_the_header(tmp_path):
    assert data.open(write_coco(tmp_path)).size(0) == (24, 32)
    write_masks(tmp_path / "m")
    found = data.open(write_yaml(tmp_path / "m", "train: images/train\nnames: [x, y, z]\n"))
    assert found.size(1) == (24, 32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trian: x\n", "unknown key 'trian'; did you mean 'train'"),
        ("names: [a]\n", "none of train, val and test"),
        ("train: x\nformat: cocoo\n", "format: unknown value 'cocoo'; did you mean 'coco'"),
        ("train: x\nnames: [a, a]\n", "holds 'a' twice"),
        ("train: x\nnames: [yes, no]\n", "quote it"),
        ("train: x\nnames: {a: 1}\n", "must map numbers to names"),
        ("train: x\nnames: 7\n", "names must be a list"),
        ("train: x\nnames: [a]\nthings: [b]\n", "things: 'b' is no class"),
        ("train: x\nnames: [a]\ncolors: [[1, 2]]\n", "is no colour"),
        ("train: x\nnames: [a]\ncolors: [[1, 2, 3], [1, 2, 3]]\n", "2 colours for 1 names"),
        ("train: {image: x}\n", "unknown key 'image'"),
        ("train: 5\n", "expected a path"),
        ("path: nowhere\ntrain: x\n", "nowhere does not exist"),
        ("[1, 2]\n", "expected keys like"),
        ("a: [1\n", "not valid YAML"),
    ],
)
def test_bad_yaml_names_the_key(tmp_path, text, words):
    with pytest.raises(DataError, match=f"(?s)data.yaml.*{words}"):
        read_config(write_yaml(tmp_path, text))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.yaml", "no such file"),
        ("missing.json", "no such file"),
        ("missing", "no such file or folder"),
        ("text.txt", "expected a data.yaml"),
        ("empty", "no pictures|layout"),
    ],
)
def test_opening_what_is_not_there(tmp_path, source, words):
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        data.open(tmp_path / source)


def test_unknown_format_and_split(tmp_path):
    path = write_coco(tmp_path)
    with pytest.raises(DataError, match="unknown format 'x'"):
        data.open(path, format="x")
    with pytest.raises(DataError, match="no split 'val'; it has train"):
        data.open(path, split="val")


def test_splits_with_different_classes_are_refused(tmp_path):
    write_coco(tmp_path)
    other = coco_content()
    other["categories"] = other["categories"][:1]
    write_coco(tmp_path, other, "instances_val.json")
    with pytest.raises(DataError, match="different classes"):
        data.open(write_yaml(tmp_path, "train: instances_train.json\nval: instances_val.json\n"))


def test_folder_with_coco_files_is_guessed(tmp_path):
    write_coco(tmp_path)
    write_coco(tmp_path, name="instances_val2017.json")
    found = data.open(tmp_path)
    assert (found.format, found.splits) == ("coco", ("train", "val"))


@needs_real_data
def test_both_coco_files_of_the_mini_set_give_the_masks_of_pycocotools():
    from pycocotools.coco import COCO

    folder = REAL / "coco-mini" / "annotations"
    plain = data.open(folder / "instances_train2017.json")
    mixed = data.open(folder / "instances_train2017_polygons.json")
    reference = COCO(str(folder / "instances_train2017_polygons.json"))
    assert len(plain) == len(mixed) == 100
    kinds = set()
    for i in range(0, 100, 3):
        size = plain.size(i)
        _, first = plain.annotation(i, size)
        _, second = mixed.annotation(i, size)
        kinds.update(mixed.sources[0].packed.kind.tolist())
        assert (first.ids == second.ids).all()
        assert (first.labels == second.labels).all()
        for n, number in enumerate(second.ids.tolist()):
            expected = reference.annToMask(reference.anns[number])
            assert (rle.decode(second.masks.select([n]))[0] == expected).all()
            assert (rle.decode(first.masks.select([n]))[0] == expected).all()
    assert kinds == {0, 1}


@needs_real_data
def test_coco_mini_has_the_published_categories_and_keeps_empty_pictures():
    found = data.open(REAL / "coco-mini" / "annotations" / "instances_train2017.json")
    assert len(found.classes) == 80
    assert (found.classes[0], found.classes[-1]) == ("person", "toothbrush")
    counts = [len(found.annotation(i)[1]) for i in range(100)]
    assert (sum(counts), max(counts), counts.count(0)) == (746, 42, 2)
    assert sum(int(found.annotation(i)[1].crowd.sum()) for i in range(100)) == 6
    grey = next(i for i in range(100) if found.path(i).name == "000000000086.jpg")
    assert found[grey].image.shape[2] == 3


@needs_real_data
def test_nuclei_from_the_command_in_the_documentation():
    folder = REAL / "nuclei"
    found = data.open(
        folder / "annotations" / "instances_train.json", images=folder / "images/train"
    )
    assert (len(found), len(found.sources[0].packed)) == (508, 22625)
    assert found.as_semantic().classes == ("nucleus", "background")
    sample = found[0]
    assert sample.size == sample.instances.size
