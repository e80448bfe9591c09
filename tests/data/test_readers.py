"""Folders of masks, VOC, YOLO, Cityscapes, ADE20K and CamVid, each from files made by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from pixelwise import data
from pixelwise.data.readers import ade20k, camvid, cityscapes, voc
from pixelwise.errors import DataError
from pixelwise.ops import rle
from tests.data.made_up import (
    REAL,
    label_map,
    needs_real_data,
    write_index,
    write_masks,
    write_picture,
    write_yaml,
)

NAMES = "names: [ground, house, tree]\n"


def dense(instances):
    return rle.decode(instances.masks)


def test_index_masks_beside_images(tmp_path):
    write_masks(tmp_path, "train")
    write_masks(tmp_path, "val", names=("c",))
    found = data.open(write_yaml(tmp_path, f"train: images/train\nval: images/val\n{NAMES}"))
    assert found.splits == ("train", "val")
    assert (len(found), len(found.split("val"))) == (3, 1)
    sample = found.split("val")[0]
    assert (sample.labels == label_map()).all()
    assert sample.labels.dtype == np.uint8
    assert sample.path.name == "c.png"
    assert found.classes == ("ground", "house", "tree")


@pytest.mark.parametrize(
    "train",
    [
        "train: train\n",
        "train: train/images\n",
        "train: {images: train/images, labels: train/masks}\n",
    ],
)
def test_split_folders_with_images_and_masks(tmp_path, train):
    write_picture(tmp_path / "train" / "images" / "x.png")
    write_index(tmp_path / "train" / "masks" / "x_mask.png", label_map())
    found = data.open(write_yaml(tmp_path, train + NAMES))
    assert (found[0].labels == label_map()).all()


def test_raw_values_become_labels_in_ascending_order(tmp_path):
    raw = np.array([[0, 128, 255], [7, 0, 255]], np.uint8)
    write_picture(tmp_path / "images" / "x.png", size=(2, 3))
    write_index(tmp_path / "labels" / "x.png", raw)
    text = "train: images\nnames: {255: cell, 0: ground, 128: edge}\nvoid: [7]\n"
    found = data.open(write_yaml(tmp_path, text))
    assert found.classes == ("ground", "edge", "cell")
    assert found[0].labels.tolist() == [[0, 1, 2], [255, 0, 2]]


def test_signed_and_wide_values(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    write_picture(tmp_path / "images" / "x.png", size=(1, 3))
    (tmp_path / "labels").mkdir()
    tifffile.imwrite(tmp_path / "labels" / "x.tif", np.array([[-1, 300, 0]], np.int16))
    text = "train: images\nnames: {0: a, 300: b}\nvoid: [-1]\n"
    assert data.open(write_yaml(tmp_path, text))[0].labels.tolist() == [[255, 1, 0]]


def test_unknown_values_are_an_error_that_names_them(tmp_path):
    write_masks(tmp_path, labels=np.full((24, 32), 9))
    found = data.open(write_yaml(tmp_path, f"train: images/train\n{NAMES}"))
    with pytest.raises(DataError, match=r"a\.png: label values 9 belong to no class .*void"):
        found[0]


def test_colour_masks(tmp_path):
    write_picture(tmp_path / "images" / "x.png", size=(2, 2))
    pixels = np.array([[[255, 0, 0], [0, 0, 255]], [[1, 2, 3], [255, 0, 0]]], np.uint8)
    (tmp_path / "labels").mkdir()
    Image.fromarray(pixels).save(tmp_path / "labels" / "x.png")
    text = "train: images\nnames: [red, blue]\nvoid: [[1, 2, 3]]\n"
    text += "colors: {blue: '#0000ff', red: [255, 0, 0]}\n"
    found = data.open(write_yaml(tmp_path, text))
    assert found[0].labels.tolist() == [[0, 1], [255, 0]]
    assert found.colors == ((255, 0, 0), (0, 0, 255))
    with pytest.raises(DataError, match=r"colors is missing.*255, 0, 0"):
        data.open(write_yaml(tmp_path, "train: images\nnames: [red, blue]\n"))


def test_grey_labels_saved_as_rgb(tmp_path):
    write_picture(tmp_path / "images" / "x.png")
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.repeat(label_map()[..., None], 3, axis=2)).save(
        tmp_path / "labels" / "x.png"
    )
    assert (
        data.open(write_yaml(tmp_path, f"train: images\n{NAMES}"))[0].labels == label_map()
    ).all()


def test_missing_names_show_the_values(tmp_path):
    write_masks(tmp_path)
    with pytest.raises(DataError, match=r"names is missing.*0, 1, 2, 255"):
        data.open(write_yaml(tmp_path, "train: images/train\n"))


def test_class_per_pixel_has_no_objects_unless_components_are_asked_for(tmp_path):
    write_masks(tmp_path)
    found = data.open(write_yaml(tmp_path, f"train: images/train\n{NAMES}things: [house, tree]\n"))
    with pytest.raises(DataError, match=r"tells no objects apart.*components=True"):
        found.as_instances()
    view = found.as_instances(components=True)
    assert view.classes == ("house", "tree")
    instances = view[0].instances
    assert instances.labels.tolist() == [0, 1]
    assert (dense(instances)[0] > 0).tolist() == (label_map() == 1).tolist()


def test_one_file_per_object(tmp_path):
    masks = [np.zeros((24, 32), np.uint8) for _ in range(3)]
    masks[0][2:8, 2:8] = 255
    masks[1][6:12, 6:12] = 255  # overlaps the first
    for n, mask in enumerate(masks):
        write_picture(tmp_path / "p1" / "images" / "p1.png")
        (tmp_path / "p1" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "p1" / "masks" / f"{n}.png")
    found = data.open(write_yaml(tmp_path, "train: .\nnames: [nucleus]\n"))
    instances = found[0].instances
    assert len(instances) == 2  # the third mask is empty
    assert (dense(instances) * 255 == np.stack(masks[:2])).all()
    assert instances.boxes.tolist() == [[2, 2, 8, 8], [6, 6, 12, 12]]


def test_one_folder_of_objects_per_picture_with_classes(tmp_path):
    write_picture(tmp_path / "images" / "x.png")
    for name in ("car_1", "cart_1"):
        mask = np.zeros((24, 32), np.uint8)
        mask[3:5, 3 : 3 + len(name)] = 1
        (tmp_path / "masks" / "x").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / "x" / f"{name}.png")
    found = data.open(write_yaml(tmp_path, "train: images\nnames: [car, cart]\n"))
    assert found[0].instances.labels.tolist() == [0, 1]
    Image.fromarray(mask).save(tmp_path / "masks" / "x" / "bus_1.png")
    with pytest.raises(DataError, match=r"bus_1\.png: of which class"):
        found[0]


def test_one_file_per_class(tmp_path):
    write_picture(tmp_path / "images" / "x.png", size=(4, 6))
    large, small = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    large[:, 1:6], small[1:3, 2:4] = 255, 255
    for name, mask in (("road", large), ("car", small)):
        (tmp_path / "labels" / name).mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / "labels" / name / "x.png")
    found = data.open(write_yaml(tmp_path, "train: images\nnames: [car, road]\n"))
    assert found.classes == ("car", "road", "background")
    labels = found[0].labels
    assert labels[0].tolist() == [2, 1, 1, 1, 1, 1]
    assert labels[1].tolist() == [2, 1, 0, 0, 1, 1]  # the smaller class is on top


def write_voc(root):
    labels = np.zeros((24, 32), np.uint8)
    objects = labels.copy()
    labels[2:10, 2:10], objects[2:10, 2:10] = 15, 1
    labels[4:12, 20:28], objects[4:12, 20:28] = 15, 2
    labels[2:10, 10], objects[2:10, 10] = 255, 255
    write_picture(root / "JPEGImages" / "one.jpg")
    write_picture(root / "JPEGImages" / "unlabelled.jpg")
    for folder, values in (("SegmentationClass", labels), ("SegmentationObject", objects)):
        write_index(root / folder / "one.png", values, voc.palette())
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("one\n")
    return labels, objects


def test_voc(tmp_path):
    labels, objects = write_voc(tmp_path)
    found = data.open(tmp_path)
    assert (found.format, found.splits, len(found)) == ("voc", ("train",), 1)
    assert len(found.classes) == 21
    assert (found[0].labels == labels).all()
    view = found.as_instances()
    assert len(view.classes) == 20
    assert "background" not in view.classes
    instances = view[0].instances
    assert [view.classes[k] for k in instances.labels] == ["person", "person"]
    assert (dense(instances)[1] > 0).tolist() == (objects == 2).tolist()
    text = "train: ImageSets/Segmentation/train.txt\nformat: voc\n"
    assert (data.open(write_yaml(tmp_path, text))[0].labels == labels).all()


def test_voc_in_its_colours(tmp_path):
    labels, _ = write_voc(tmp_path)
    for folder in ("SegmentationClass", "SegmentationObject"):
        path = tmp_path / folder / "one.png"
        Image.open(path).convert("RGB").save(path)
    found = data.open(tmp_path)
    assert (found[0].labels == labels).all()
    assert len(found[0].instances) == 2


def write_yolo(root, lines, split="train", size=(40, 100)):
    write_picture(root / "images" / split / "x.png", size=size)
    write_picture(root / "images" / split / "none.png", seed=1, size=size)
    (root / "labels" / split).mkdir(parents=True)
    (root / "labels" / split / "x.txt").write_text(lines)


ULTRALYTICS = """\
# an ultralytics file, as their tools write it
path: ../datasets/{name}  # dataset root dir
train: images/train
val: images/train
test:
nc: 2
names:
  0: person
  1: bicycle
download: https://example.com/x.zip
roboflow: {{workspace: w, version: 1}}
"""


def test_yolo_with_an_ultralytics_file_unchanged(tmp_path):
    root = tmp_path / "coco8-seg"
    write_yolo(root, "1 0.1 0.25 0.3 0.25 0.3 0.75 0.1 0.75\n0 0.5 0.5 0.2 0.5\n")
    found = data.open(write_yaml(root, ULTRALYTICS.format(name="coco8-seg")))
    assert (found.format, found.splits) == ("yolo-seg", ("train", "val"))
    empty, sample = found[0], found[1]
    assert len(empty.instances) == 0
    instances = sample.instances
    assert instances.labels.tolist() == [1, 0]
    expected = np.zeros((40, 100), bool)
    expected[10:30, 10:30] = True
    assert ((dense(instances)[0] > 0) == expected).all()
    assert instances.boxes.tolist() == [[10, 10, 30, 30], [40, 10, 60, 30]]
    assert instances.crowd.tolist() == [False, True]  # a box only


def test_yolo_list_of_folders_and_of_pictures(tmp_path):
    write_yolo(tmp_path, "0 0.1 0.1 0.5 0.1 0.5 0.5\n", "a")
    write_yolo(tmp_path, "0 0.1 0.1 0.5 0.1 0.5 0.5\n", "b")
    found = data.open(write_yaml(tmp_path, "train: [images/a, images/b]\nnames: [x]\n"))
    assert (found.splits, len(found.split("train"))) == (("train",), 4)
    (tmp_path / "list.txt").write_text("./images/a/x.png\nimages/b/x.png\n")
    listed = data.open(write_yaml(tmp_path, "train: list.txt\nnames: [x]\n"))
    assert [len(s.instances) for s in listed] == [1, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("5 0.1 0.1 0.5 0.1 0.5 0.5", "class 5 is not in `names`"),
        ("0 0.1 0.1 0.5", "3 numbers after the class"),
        ("0 10 10 50 10 50 50", "coordinates outside 0..1"),
        ("0 a b", "not numbers"),
    ],
)
def test_yolo_broken_lines_name_file_and_line(tmp_path, line, words):
    write_yolo(tmp_path, f"0 0.1 0.1 0.5 0.1 0.5 0.5\n{line}\n")
    found = data.open(write_yaml(tmp_path, "train: images/train\nnames: [x]\n"))
    with pytest.raises(DataError, match=rf"x\.txt:2: {words}"):
        found[1]


def test_cityscapes(tmp_path):
    ids = np.full((24, 32), 7, np.int32)
    ids[:, 20:] = 26
    ids[0, 0] = 4  # static: no training class
    objects = ids.copy()
    objects[:10, 20:] = 26001
    objects[10:, 20:] = 26000
    objects[20:, 20:] = 26  # a group of cars
    city = tmp_path / "gtFine" / "train" / "aachen"
    write_picture(tmp_path / "leftImg8bit" / "train" / "aachen" / "aachen_0_leftImg8bit.png")
    write_index(city / "aachen_0_gtFine_labelIds.png", ids)
    write_index(city / "aachen_0_gtFine_labelTrainIds.png", np.zeros((24, 32)))
    Image.fromarray(objects.astype(np.uint16)).save(city / "aachen_0_gtFine_instanceIds.png")
    found = data.open(tmp_path)
    assert (found.format, found.splits) == ("cityscapes", ("train",))
    sample = found[0]
    assert sample.labels[0, 0] == 255
    assert sample.labels[1, 1] == 0
    assert sample.labels[1, 30] == cityscapes.CLASSES.index("car")
    view = found.as_instances()
    assert view.classes == cityscapes.CLASSES[11:]
    instances = view[0].instances
    assert [view.classes[k] for k in instances.labels] == ["car"] * 3
    assert instances.crowd.tolist() == [True, False, False]
    assert (dense(instances)[2] > 0).tolist() == (objects == 26001).tolist()


def test_cityscapes_licence_plate_does_not_index_from_the_end():
    table = cityscapes.label_id_table()
    raw = np.array([[-1, 0, 7, 33, 255]])
    assert table.apply(raw, "x").tolist() == [[255, 255, 0, 18, 255]]


def test_ade20k_zero_becomes_ignored_and_255_stays(tmp_path):
    raw = np.zeros((24, 32), np.uint8)
    raw[0, :4] = [0, 1, 150, 255]
    write_picture(tmp_path / "images" / "training" / "x.jpg")
    write_index(tmp_path / "annotations" / "training" / "x.png", raw)
    found = data.open(tmp_path)
    assert (found.format, len(found.classes)) == ("ade20k", 150)
    assert found[0].labels[0, :4].tolist() == [255, 0, 149, 255]


@pytest.mark.parametrize(
    ("void", "folders"), [(11, ("train", "trainannot")), (255, ("train/images", "train/labels"))]
)
def test_camvid_indices_with_either_void(tmp_path, void, folders):
    labels = np.zeros((24, 32), np.uint8)
    labels[:, 5:10], labels[:, 0] = 8, void
    write_picture(tmp_path / folders[0] / "x.png")
    write_index(tmp_path / folders[1] / "x.png", labels)
    found = data.open(tmp_path, format="camvid")
    assert found.splits == ("train",)
    assert np.unique(found[0].labels).tolist() == [0, 8, 255]
    assert found.classes[8] == "Car"


def test_camvid_colours_of_both_palettes(tmp_path):
    colours = [
        (128, 128, 128),
        (64, 128, 192),
        (0, 0, 192),
        (60, 40, 222),
        (128, 0, 192),
        (0, 0, 0),
    ]
    write_picture(tmp_path / "train" / "images" / "x.png", size=(1, 6))
    (tmp_path / "train" / "labels").mkdir()
    Image.fromarray(np.array([colours], np.uint8)).save(tmp_path / "train" / "labels" / "x_L.png")
    labels = data.open(tmp_path, format="camvid")[0].labels[0]
    names = [camvid.CLASSES[k] if k != 255 else "void" for k in labels]
    assert names == ["Sky", "Car", "Pavement", "Pavement", "Road", "void"]


@needs_real_data
def test_palettes_and_classes_equal_the_published_tables():
    tables = json.loads((REAL.parent / "parity" / "semantic" / "tables.json").read_text())
    assert [list(c) for c in voc.palette()] == tables["voc_palette"]
    assert list(voc.CLASSES) == tables["voc_classes"]
    for module, name in ((cityscapes, "cityscapes"), (ade20k, "ade20k"), (camvid, "camvid")):
        assert list(module.CLASSES) == tables[name]["classes"]
        assert [list(c) for c in module.COLORS] == tables[name]["palette"]
    stated = dict(tables["cityscapes"]["label_id_to_train_id"])
    assert stated.pop("others") == 255
    assert {int(k): v for k, v in stated.items()} == cityscapes.TRAIN_ID


@needs_real_data
def test_camvid_on_disk():
    found = data.open(REAL / "camvid", format="camvid")
    assert [len(found.split(s)) for s in found.splits] == [367, 101]
    sample = found.split("val")[50]
    assert sample.labels.shape == sample.image.shape[:2] == (360, 480)
    assert set(np.unique(sample.labels).tolist()) <= {*range(11), 255}
