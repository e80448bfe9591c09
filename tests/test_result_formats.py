"""A result in other formats: each is read back by its own rules and compared with the masks."""

import csv
import io
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from pixelwise.errors import DataError, MissingExtraError, UsageError
from pixelwise.ops import rle
from pixelwise.ops.polygons import polygon_area
from pixelwise.result import Objects, Result
from pixelwise.results.formats import FORMATS
from pixelwise.types import SemanticPrediction

CLASSES = ("cell", "ring")


def blobs(seed: int = 0) -> np.ndarray:
    """[4, 96, 128] a disc, a ring with two holes, an object in two parts, a smooth random blob."""
    y, x = np.mgrid[:96, :128]
    disc = (y - 20) ** 2 + (x - 25) ** 2 < 15**2
    ring = ((y - 60) ** 2 + (x - 90) ** 2 < 25**2) & ((y - 55) ** 2 + (x - 82) ** 2 > 6**2)
    ring &= (y - 65) ** 2 + (x - 98) ** 2 > 7**2
    parts = (abs(y - 80) < 8) & ((abs(x - 15) < 8) | (abs(x - 45) < 9))
    noise = np.random.default_rng(seed).normal(size=(96, 128))
    spectrum = np.exp(-(np.fft.fftfreq(96)[:, None] ** 2 + np.fft.fftfreq(128) ** 2) * 3000)
    smooth = np.fft.ifft2(np.fft.fft2(noise) * spectrum).real
    blob = (smooth > smooth.std()) & (y < 40) & (x > 60)
    return np.stack([disc, ring, parts, blob])


def found() -> Result:
    masks = rle.encode(blobs())
    objects = Objects(
        boxes=torch.as_tensor(rle.tight_boxes(masks)) + 0.37,
        labels=torch.tensor([0, 1, 0, 1]),
        scores=torch.tensor([0.91, 0.8, 0.7123, 0.5]),
        masks=masks,
        mask_scores=torch.tensor([0.5, 0.4, 0.3, 0.2]),
        classes=CLASSES,
    )
    times = {"read": 1.5, "network": 3.25}
    return Result(path="dir/cells.png", name="cells.png", size=(96, 128), classes=CLASSES,
                  times=times, instances=objects, colors=((1, 2, 3), (200, 100, 50)))  # fmt: skip


def label_map() -> Result:
    labels = np.zeros((96, 128), np.uint8)
    for value, mask in ((1, blobs()[1]), (2, blobs()[3])):
        labels[mask] = value
    return Result(path=None, size=(96, 128), classes=("ground", *CLASSES, "absent"),
                  semantic=SemanticPrediction(labels=torch.as_tensor(labels)))  # fmt: skip


def fill(outlines: list[list], size=(96, 128), *, fine: int = 8) -> np.ndarray:
    """Rasterise outlines independently of ours: even-odd by Pillow on a finer grid."""
    total = np.zeros(size, bool)
    for outline in outlines:
        points = [(x * fine - 0.5, y * fine - 0.5) for x, y in outline]
        image = Image.new("1", (size[1] * fine, size[0] * fine))
        ImageDraw.Draw(image).polygon(points, fill=1)
        share = np.asarray(image).reshape(size[0], fine, size[1], fine).mean((1, 3))
        total ^= share > 0.5
    return total


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


# --- ours ---------------------------------------------------------------------------------------


def test_dict_round_trip_of_objects() -> None:
    result = found()
    again = Result.from_dict(json.loads(json.dumps(result.to_dict())))
    for name in ("boxes", "labels", "scores", "mask_scores"):
        assert torch.equal(getattr(again.instances, name), getattr(result.instances, name)), name
    assert np.array_equal(again.instances.dense(), blobs())
    for name in ("path", "name", "size", "classes", "times", "colors", "task"):
        assert getattr(again, name) == getattr(result, name), name
    assert again.to_dict() == result.to_dict()


def test_dict_round_trip_of_a_label_map() -> None:
    result = label_map()
    result.semantic.labels[5:9, 5:9] = 255  # pixels without a class survive
    again = Result.from_dict(json.loads(json.dumps(result.to_dict())))
    assert torch.equal(again.semantic.labels, result.semantic.labels)
    assert again.semantic.labels.dtype == torch.uint8
    assert again.task == "semantic"


def test_dict_round_trip_without_objects() -> None:
    again = Result.from_dict(found()[:0].to_dict())
    assert len(again) == 0
    assert again.size == (96, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "coco"}, "'format' must be"),
        ({"version": 99}, "'version' at most"),
        ({"regions": [{}]}, "damaged"),
        ({"size": None}, "damaged"),
    ],
)
def test_foreign_dicts(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Result.from_dict(found().to_dict() | change)


# --- COCO and YOLO ------------------------------------------------------------------------------


def test_coco_decodes_to_the_same_masks() -> None:
    records = json.loads(json.dumps(found().to_coco(image_id=7)))
    assert [r["category_id"] for r in records] == [1, 2, 1, 2]
    assert {r["image_id"] for r in records} == {7}
    assert records[0]["score"] == pytest.approx(0.91)
    for record, mask in zip(records, blobs(), strict=True):
        assert np.array_equal(coco_mask.decode(record["segmentation"]), mask)
    x, y, width, height = records[0]["bbox"]
    assert found().instances.boxes[0].tolist() == pytest.approx([x, y, x + width, y + height])


def test_coco_with_the_ids_of_an_annotation_file() -> None:
    records = found().to_coco(category_ids={"cell": 17, "ring": 90})
    assert [r["category_id"] for r in records] == [17, 90, 17, 90]
    with pytest.raises(UsageError, match="'ring'"):
        found().to_coco(category_ids={"cell": 17})


def test_coco_of_a_label_map() -> None:
    records = label_map().to_coco()
    assert [r["category_name"] for r in records] == ["ground", "cell", "ring"]
    total = sum(coco_mask.decode(r["segmentation"]).astype(int) for r in records)
    assert (total == 1).all()


@pytest.mark.parametrize("with_scores", [False, True])
def test_yolo_lines(with_scores: bool) -> None:
    lines = found().to_yolo(with_scores=with_scores).splitlines()
    assert len(lines) == 4
    for line, label, mask in zip(lines, (0, 1, 0, 1), blobs(), strict=True):
        first, *numbers = line.split()
        assert int(first) == label
        if with_scores:
            assert 0.5 <= float(numbers.pop()) <= 0.91
        points = np.array(numbers, float).reshape(-1, 2)
        assert points.min() >= 0
        assert points.max() <= 1
        assert iou(fill([(points * (128, 96)).tolist()]), mask) > 0.99


def test_yolo_leaves_out_empty_masks() -> None:
    objects = found().instances
    empty = rle.encode(np.zeros((1, 96, 128), bool))
    masks = type(empty).concat([empty, objects.masks.select([1])])
    two = Objects(boxes=objects.boxes[:2], labels=objects.labels[:2], scores=objects.scores[:2],
                  masks=masks, classes=CLASSES)  # fmt: skip
    result = Result(path=None, size=(96, 128), classes=CLASSES, instances=two)
    assert len(result.to_yolo().splitlines()) == 1
    assert len(result.to_geojson()["features"]) == 1
    assert len(result.to_coco()) == 2


# --- annotation tools ---------------------------------------------------------------------------


def test_labelme_polygons_fill_the_masks() -> None:
    document = json.loads(json.dumps(found().to_labelme()))
    assert (document["imageHeight"], document["imageWidth"]) == (96, 128)
    assert document["imagePath"] == "cells.png"
    shapes = document["shapes"]
    # The object in two parts is a group; the ring with holes is one outline.
    groups = [s["group_id"] for s in shapes]
    assert groups.count(2) == 2
    assert [s["label"] for s in shapes[:2]] == ["cell", "ring"]
    for i, mask in enumerate(blobs()):
        own = [s["points"] for s in shapes if s["group_id"] == i]
        own = own or [shapes[i if i < 2 else i + 1]["points"]]
        assert iou(fill(own), mask) > 0.99
    ring = fill([shapes[1]["points"]])
    assert not ring[55, 82]  # the holes are kept
    assert not ring[65, 98]


def test_label_studio_is_in_percent() -> None:
    task = json.loads(json.dumps(found().to_label_studio(image_url="/data/cells.png")))
    assert task["data"]["image"] == "/data/cells.png"
    items = task["predictions"][0]["result"]
    assert len({item["id"] for item in items}) == len(items) >= 5
    ring = next(item for item in items if item["id"] == "region1")
    assert ring["value"]["polygonlabels"] == ["ring"]
    assert (ring["original_width"], ring["original_height"]) == (128, 96)
    assert ring["score"] == pytest.approx(0.8)
    points = np.array(ring["value"]["points"]) * (1.28, 0.96)
    assert iou(fill([points.tolist()]), blobs()[1]) > 0.99


def test_geojson_keeps_holes_and_parts() -> None:
    document = json.loads(json.dumps(found().to_geojson()))
    assert document["type"] == "FeatureCollection"
    ring, parts = document["features"][1], document["features"][2]
    assert ring["geometry"]["type"] == "Polygon"
    exterior, *holes = ring["geometry"]["coordinates"]
    assert len(holes) == 2
    assert all(r[0] == r[-1] for r in (exterior, *holes))
    assert polygon_area(np.array(exterior[:-1])) > 0
    assert all(polygon_area(np.array(h[:-1])) < 0 for h in holes)
    area = sum(polygon_area(np.array(r[:-1])) for r in (exterior, *holes))
    assert area == blobs()[1].sum()
    assert parts["geometry"]["type"] == "MultiPolygon"
    assert len(parts["geometry"]["coordinates"]) == 2
    assert ring["properties"]["classification"] == {"name": "ring", "color": [200, 100, 50]}
    assert ring["properties"]["measurements"]["score"] == pytest.approx(0.8)


# --- Python libraries ---------------------------------------------------------------------------


def test_supervision() -> None:
    pytest.importorskip("supervision")
    detections = found().to_supervision()
    assert np.array_equal(detections.mask, blobs())
    assert detections.class_id.tolist() == [0, 1, 0, 1]
    assert detections.data["class_name"].tolist() == ["cell", "ring", "cell", "ring"]
    assert detections.confidence.tolist() == pytest.approx([0.91, 0.8, 0.7123, 0.5])
    assert len(found()[:0].to_supervision()) == 0


def test_fiftyone_boxes_are_relative_and_masks_fill_them(monkeypatch) -> None:
    module = types.ModuleType("fiftyone")
    module.Detection = module.Detections = module.Segmentation = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "fiftyone", module)
    detections = found().to_fiftyone().detections
    assert [d.label for d in detections] == ["cell", "ring", "cell", "ring"]
    for detection, mask in zip(detections, blobs(), strict=True):
        left, top, width, height = np.array(detection.bounding_box) * (128, 96, 128, 96)
        assert detection.mask.shape == pytest.approx((height, width))
        dense = np.zeros((96, 128), bool)
        dense[round(top) : round(top + height), round(left) : round(left + width)] = detection.mask
        assert np.array_equal(dense, mask)
    assert np.array_equal(label_map().to_fiftyone().mask, label_map().semantic.labels.numpy())


def test_pandas() -> None:
    pytest.importorskip("pandas")
    frame = found().to_pandas()
    assert frame["name"].tolist() == ["cell", "ring", "cell", "ring"]
    assert frame["area_px"].tolist() == blobs().sum((1, 2)).tolist()
    assert frame.loc[0, "x1"] == pytest.approx(found().instances.boxes[0, 0].item())
    assert len(found()[:0].to_pandas()) == 0
    assert label_map().to_pandas()["score"].isna().all()


@pytest.mark.parametrize("name", ["supervision", "fiftyone", "pandas"])
def test_missing_extras_say_what_to_install(name: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'pixelwise\[{name}\]'"):
        getattr(found(), f"to_{name}")()


# --- files --------------------------------------------------------------------------------------


def test_every_format_is_written(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    kinds = [k for k in FORMATS if k not in ("labels", "probs")]
    result = found()
    picture = np.zeros((96, 128, 3), np.uint8)
    with_pixels = Result(path=None, name="cells.png", size=result.size, classes=CLASSES,
                         instances=result.instances, picture=picture)  # fmt: skip
    with_pixels.save(tmp_path, formats=kinds)
    for kind in kinds:
        content = (tmp_path / f"cells{FORMATS[kind][0]}").read_text()
        if kind == "yolo":
            assert content == result.to_yolo()
        elif kind == "csv":
            assert len(list(csv.DictReader(io.StringIO(content)))) == 4
        else:
            assert json.loads(content)
    with pytest.raises(UsageError, match="label maps"):
        with_pixels.save(tmp_path, formats=["labels"])


def test_label_maps_as_index_png_and_probabilities(tmp_path: Path) -> None:
    result = label_map()
    probs = torch.rand(4, 96, 128)
    full = Result(path=None, size=result.size, classes=result.classes, colors=((9, 8, 7),) * 4,
                  semantic=SemanticPrediction(labels=result.semantic.labels, probs=probs),
                  picture=np.zeros((96, 128, 3), np.uint8))  # fmt: skip
    full.save(tmp_path, formats=["labels", "probs"])
    with Image.open(tmp_path / "picture.labels.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), result.semantic.labels.numpy())
        assert image.getpalette()[:3] == [9, 8, 7]
    stored = np.load(tmp_path / "picture.probs.npz")
    assert np.allclose(stored["probs"], probs, atol=1e-3)
    assert stored["classes"].tolist() == list(result.classes)
    picture = np.zeros((96, 128, 3), np.uint8)
    with pytest.raises(UsageError, match="with_probs"):
        replace(label_map(), picture=picture).save(tmp_path / "none", formats=["probs"])
    assert not (tmp_path / "none").exists()  # nothing is written if a part of it fails
