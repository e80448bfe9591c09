"""Average precision equals pycocotools, number by number, on fixtures, drawn scenes and nuclei."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixelwise.data.sample import Instances
from pixelwise.errors import UsageError
from pixelwise.metrics.coco_ap import CocoAP, resolve_max_dets
from pixelwise.ops import rle
from pixelwise.types import InstancePrediction, RunLengths
from tests.fixtures import fixture_params

# pycocotools' own call of NumPy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NUCLEI = Path(__file__).parents[3] / "shared/data/nuclei/annotations/instances_val.json"
IOU_TYPE = {"mask": "segm", "box": "bbox"}


def reference(
    truth: dict, detections: list[dict], kind: str, max_dets: tuple[int, ...]
) -> COCOeval:
    """pycocotools on the same records."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        records = [{k: v for k, v in d.items() if kind == "box" or k != "bbox"} for d in detections]
        if kind == "box":
            records = [{k: v for k, v in d.items() if k != "segmentation"} for d in records]
        evaluation = COCOeval(gt, gt.loadRes(records), IOU_TYPE[kind])
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def reference_stats(evaluation: COCOeval) -> list[float]:
    """The twelve numbers, read from the arrays: its own summary fixes maxDets at 100."""

    def mean(values: np.ndarray) -> float:
        return float(np.mean(values[values > -1])) if (values > -1).any() else -1.0

    p, r = evaluation.eval["precision"], evaluation.eval["recall"]
    tops = range(r.shape[-1])
    return [
        mean(p[:, :, :, 0, -1]),
        mean(p[0, :, :, 0, -1]),
        mean(p[5, :, :, 0, -1]),
        *(mean(p[:, :, :, a, -1]) for a in (1, 2, 3)),
        *(mean(r[:, :, 0, m]) for m in tops),
        *(mean(r[:, :, a, -1]) for a in (1, 2, 3)),
    ]


def same_arrays(result, expected: COCOeval) -> None:
    # pycocotools adds 2.2e-16 to the number of detections, which the first one alone feels.
    np.testing.assert_allclose(
        result.precision, expected.eval["precision"], rtol=0, atol=np.spacing(1.0)
    )
    assert (result.recall == expected.eval["recall"]).all()
    assert result.stats() == pytest.approx(reference_stats(expected), rel=0, abs=1e-15)


def to_instances(annotations: list[dict], size: tuple[int, int], label_of: dict) -> Instances:
    if not annotations:
        return Instances.empty(size)
    boxes = np.array([a["bbox"] for a in annotations], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return Instances(
        masks=rle.from_coco([a["segmentation"] for a in annotations]),
        labels=np.array([label_of[a["category_id"]] for a in annotations], np.int64),
        boxes=boxes.astype(np.float32),
        crowd=np.array([a["iscrowd"] for a in annotations], np.bool_),
        ids=np.array([a["id"] for a in annotations], np.int64),
        areas=np.array([a["area"] for a in annotations], np.float64),
    )


def to_prediction(detections: list[dict], size: tuple[int, int], label_of: dict):
    boxes = np.array([d["bbox"] for d in detections], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [d["segmentation"] for d in detections]
    return InstancePrediction(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        labels=torch.tensor([label_of[d["category_id"]] for d in detections], dtype=torch.int64),
        scores=torch.tensor([d["score"] for d in detections], dtype=torch.float64),
        masks=rle.from_coco(masks) if masks else RunLengths.empty(size),
    )


def fill(metric: CocoAP, truth: dict, detections: list[dict], only=lambda _: True) -> CocoAP:
    label_of = {c["id"]: i for i, c in enumerate(truth["categories"])}
    for image in truth["images"]:
        if not only(image["id"]):
            continue
        size = image["height"], image["width"]
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        found = [d for d in detections if d["image_id"] == image["id"]]
        metric.update(
            to_prediction(found, size, label_of), to_instances(mine, size, label_of), image["id"]
        )
    return metric


def names(truth: dict) -> list[str]:
    return [c["name"] for c in truth["categories"]]


def as_rle(truth: dict) -> dict:
    """Annotations with polygons rasterised by pycocotools, so both sides see the same pixels."""
    coco = COCO()
    coco.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    annotations = []
    for annotation in truth["annotations"]:
        record = coco.annToRLE(annotation)
        counts = record["counts"]
        counts = counts.decode() if isinstance(counts, bytes) else counts
        annotations.append(
            annotation | {"segmentation": {"size": record["size"], "counts": counts}}
        )
    return truth | {"annotations": annotations}


def ellipse(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
    ry, rx = rng.uniform(3, 45, 2)
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1).astype(np.uint8)


def scene(seed: int, *, images: int = 6, size: tuple[int, int] = (120, 150)):
    """Pictures with objects of all sizes, crowds, tied scores, duplicates and empty pictures."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": i + 1, "height": size[0], "width": size[1]} for i in range(images)],
        "categories": [{"id": c, "name": f"c{c}"} for c in (1, 2, 5, 9)],
        "annotations": [],
    }
    detections = []

    def record(mask: np.ndarray, image: int, category: int) -> dict:
        code = reference_mask.encode(np.asfortranarray(mask))
        return {
            "image_id": image,
            "category_id": int(category),
            "segmentation": {"size": list(size), "counts": code["counts"].decode()},
            "bbox": reference_mask.toBbox(code).tolist(),
            "area": float(reference_mask.area(code)),
        }

    for image in range(1, images):  # the last picture stays without annotations
        for _ in range(int(rng.integers(0, 9))):
            mask = ellipse(rng, size)
            if not mask.any():
                continue
            category = rng.choice([1, 2, 5])  # nothing of class 9 is annotated
            truth["annotations"].append(
                record(mask, image, category)
                | {"id": len(truth["annotations"]) + 1, "iscrowd": int(rng.random() < 0.15)}
            )
            for _ in range(int(rng.integers(0, 4))):
                moved = np.roll(mask, tuple(rng.integers(-6, 7, 2)), (0, 1))
                noisy = category if rng.random() < 0.8 else rng.choice([1, 2, 5, 9])
                detections.append(
                    record(moved, image, noisy) | {"score": float(rng.integers(1, 12) / 12)}
                )
    for image in range(1, images + 1):
        mask = ellipse(rng, size)
        if mask.any():
            detections.append(record(mask, image, rng.choice([1, 9])) | {"score": 0.5})
    order = rng.permutation(len(detections))
    return truth, [detections[i] for i in order]


@pytest.mark.parametrize("path", fixture_params("instance", "ops_coco_eval*"))
@pytest.mark.parametrize("kind", ["mask", "box"])
def test_fixture(path: Path, kind: str) -> None:
    meta, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    truth = as_rle(meta["ground_truth"])
    result = fill(CocoAP(names(truth)), truth, meta["detections"]).compute(kind)
    upstream = IOU_TYPE[kind]
    assert result.stats() == pytest.approx(meta["stats"][upstream], abs=1e-6)
    assert result.stats() == pytest.approx(arrays[f"stats64_{upstream}"].tolist(), abs=1e-12)
    curves = np.stack([result.curve(i) for i in range(len(result.classes))], 1)
    np.testing.assert_allclose(curves, arrays[f"precision_{upstream}_iou50_all_100"], atol=1e-6)
    np.testing.assert_allclose(result.recall[:, :, 0, -1], arrays[f"recall_{upstream}"], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["mask", "box"])
@pytest.mark.parametrize("max_dets", [(1, 10, 100), (1, 2, 4)])
def test_equals_pycocotools_to_the_last_digit(seed, kind, max_dets) -> None:
    truth, detections = scene(seed)
    result = fill(CocoAP(names(truth), max_dets=max_dets), truth, detections).compute(kind)
    expected = reference(truth, detections, kind, max_dets)
    same_arrays(result, expected)
    assert result.annotated.tolist() == [
        sum(a["category_id"] == c and not a["iscrowd"] for a in truth["annotations"])
        for c in (1, 2, 5, 9)
    ]


def test_shards_merge_to_the_whole() -> None:
    truth, detections = scene(3)
    whole = fill(CocoAP(names(truth)), truth, detections)
    odd = fill(CocoAP(names(truth)), truth, detections, lambda i: i % 2 == 1)
    even = fill(CocoAP(names(truth)), truth, detections, lambda i: i % 2 == 0)
    merged = even.merge(odd)
    assert len(merged) == len(whole) == 6
    for kind in ("mask", "box", "boundary"):
        assert merged.compute(kind).stats() == whole.compute(kind).stats()
    with pytest.raises(UsageError, match="in both shards"):
        merged.merge(odd)
    with pytest.raises(UsageError, match="different classes"):
        merged.merge(CocoAP(["other"]))


def test_boundary_ap_takes_the_smaller_overlap() -> None:
    """Against pycocotools fed with min(mask IoU, boundary IoU) by a slow loop."""
    from pixelwise.metrics.boundary import mask_band

    truth, detections = scene(5)
    result = fill(CocoAP(names(truth)), truth, detections).compute("boundary")

    class BoundaryEval(COCOeval):
        def computeIoU(self, imgId, catId):  # noqa: N802
            ious = super().computeIoU(imgId, catId)
            gt, dt = self._gts[imgId, catId], self._dts[imgId, catId]
            if not (gt and dt):
                return ious
            dt = [dt[i] for i in np.argsort([-d["score"] for d in dt], kind="mergesort")]

            def bands(records):
                masks = [reference_mask.decode(r["segmentation"]) for r in records]
                return [reference_mask.encode(np.asfortranarray(mask_band(m))) for m in masks]

            crowd = [g["iscrowd"] for g in gt]
            edges = reference_mask.iou(bands(dt), bands(gt), crowd)
            return np.where(np.array(crowd, bool), ious, np.minimum(ious, edges))

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        found = gt.loadRes([{k: v for k, v in d.items() if k != "bbox"} for d in detections])
        expected = BoundaryEval(gt, found, "segm")
        expected.evaluate()
        expected.accumulate()
    same_arrays(result, expected)
    assert result.ap() < fill(CocoAP(names(truth)), truth, detections).compute("mask").ap()


@pytest.mark.parametrize("path", fixture_params("instance", "ops_coco_eval*"))
def test_fixture_boundaries(path: Path) -> None:
    from pixelwise.metrics.boundary import mask_band

    arrays = np.load(path.with_suffix(".npz"))
    meta = json.loads(path.read_text())
    ratio = meta["configuration"]["dilation_ratio"]
    masks = arrays["ann_masks"]
    bands = np.stack([mask_band(m, ratio=ratio) for m in masks])
    np.testing.assert_array_equal(bands, arrays["boundary_002"])

    def iou(a: np.ndarray) -> np.ndarray:
        flat = a.reshape(len(a), -1).astype(np.float64)
        both = flat @ flat.T
        area = flat.sum(1)
        union = area[:, None] + area - both
        return np.divide(both, union, out=np.zeros_like(both), where=union > 0)

    np.testing.assert_allclose(iou(bands), arrays["boundary_iou"], atol=1e-6)
    np.testing.assert_allclose(np.minimum(iou(masks), iou(bands)), arrays["min_iou"], atol=1e-6)


def test_masks_rank_by_mask_scores_and_boxes_by_scores() -> None:
    truth, detections = scene(1)
    label_of = {c["id"]: i for i, c in enumerate(truth["categories"])}
    rng = np.random.default_rng(0)
    rescored = [d | {"score": float(rng.random())} for d in detections]
    metric = CocoAP(names(truth))
    for image in truth["images"]:
        size = image["height"], image["width"]
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        plain = [d for d in detections if d["image_id"] == image["id"]]
        other = [d for d in rescored if d["image_id"] == image["id"]]
        prediction = to_prediction(plain, size, label_of)
        prediction = InstancePrediction(
            boxes=prediction.boxes,
            labels=prediction.labels,
            scores=prediction.scores,
            masks=prediction.masks,
            mask_scores=torch.tensor([d["score"] for d in other], dtype=torch.float64),
        )
        metric.update(prediction, to_instances(mine, size, label_of), image["id"])
    same_arrays(metric.compute("mask"), reference(truth, rescored, "mask", (1, 10, 100)))
    same_arrays(metric.compute("box"), reference(truth, detections, "box", (1, 10, 100)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "box"])
@pytest.mark.skipif(not NUCLEI.exists(), reason="needs ../shared/data/nuclei")
def test_nuclei_with_many_objects_per_picture(kind: str) -> None:
    truth = json.loads(NUCLEI.read_text())
    rng = np.random.default_rng(0)
    detections = []
    for annotation in truth["annotations"]:
        mask = reference_mask.decode(annotation["segmentation"])
        moved = np.roll(mask, tuple(rng.integers(-3, 4, 2)), (0, 1))
        code = reference_mask.encode(np.asfortranarray(moved))
        detections.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                "bbox": reference_mask.toBbox(code).tolist(),
                "score": float(np.float32(rng.random())),
            }
        )
    truth = truth | {"annotations": [{"iscrowd": 0} | a for a in truth["annotations"]]}
    few = fill(CocoAP(names(truth)), truth, detections).compute(kind)
    many = fill(CocoAP(names(truth), max_dets=500), truth, detections).compute(kind)
    same_arrays(few, reference(truth, detections, kind, (1, 10, 100)))
    same_arrays(many, reference(truth, detections, kind, (1, 10, 500)))
    assert many.ap() > few.ap() + 0.01


def test_one_picture_by_itself() -> None:
    truth, detections = scene(2)
    metric = fill(CocoAP(names(truth)), truth, detections)
    for image in truth["images"]:
        alone = {
            "images": [image],
            "categories": truth["categories"],
            "annotations": [a for a in truth["annotations"] if a["image_id"] == image["id"]],
        }
        found = [d for d in detections if d["image_id"] == image["id"]]
        expected = reference_stats(reference(alone, found, "mask", (1, 10, 100)))[0]
        assert metric.image_ap(image["id"]) == pytest.approx(expected, rel=0, abs=1e-15)


def test_nothing_at_all() -> None:
    metric = CocoAP(["a", "b"])
    assert metric.compute().stats() == (-1.0,) * 12
    empty = InstancePrediction(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        scores=torch.zeros(0),
        masks=RunLengths.empty((20, 30)),
    )
    metric.update(empty, Instances.empty((20, 30)), 0)
    assert metric.compute("box").stats() == (-1.0,) * 12
    with pytest.raises(UsageError, match="twice"):
        metric.update(empty, Instances.empty((20, 30)), 0)


@pytest.mark.parametrize(
    ("setting", "limits", "why"),
    [
        (100, (1, 10, 100), "COCO's own"),
        (500, (1, 10, 500), "a crowded data set"),
        (10, (1, 10), "no limit twice"),
        (5, (1, 5), "no limit above the top"),
        ([100, 1, 300], (1, 100, 300), "a list is itself, ascending"),
    ],
)
def test_limits(setting, limits, why) -> None:
    assert resolve_max_dets(setting) == limits, why


@pytest.mark.parametrize("setting", [0, [], [0, 10], -3])
def test_bad_limits(setting) -> None:
    with pytest.raises(UsageError, match="max_dets"):
        resolve_max_dets(setting)


def test_names_follow_the_limits() -> None:
    result = CocoAP(["a"], max_dets=500).compute("mask")
    assert list(result.named()) == [
        *("mask_ap", "mask_ap50", "mask_ap75", "mask_ap_small", "mask_ap_medium", "mask_ap_large"),
        *("mask_ar1", "mask_ar10", "mask_ar500", "mask_ar_small", "mask_ar_medium"),
        "mask_ar_large",
    ]
    with pytest.raises(UsageError, match=r"iou=0\.52"):
        result.ap(iou=0.52)
