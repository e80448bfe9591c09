"""The confusion matrix and what is read from it: fixture, hand-made cases, traps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelwise.errors import UsageError
from pixelwise.metrics.miou import Confusion
from tests.fixtures import fixture_params

FIXTURES = fixture_params("semantic", "metrics_semantic*")


def load(path: Path):
    meta, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    counts = Confusion(meta["classes"])
    for gt, pred in zip(arrays["gt"], arrays["pred"], strict=True):
        counts.update(pred, gt)
    return meta, arrays, counts


def floats(values) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)


@pytest.mark.parametrize("path", FIXTURES)
def test_counts_equal_the_fixture(path: Path) -> None:
    _, arrays, counts = load(path)
    np.testing.assert_array_equal(counts.matrix, arrays["confusion"])
    whole = Confusion(counts.num_classes)
    whole.update(torch.from_numpy(arrays["pred"]), torch.from_numpy(arrays["gt"]))
    np.testing.assert_array_equal(whole.counts, counts.counts)


@pytest.mark.parametrize("path", FIXTURES)
def test_mmsegmentation(path: Path) -> None:
    meta, _, counts = load(path)
    upstream = next(value for key, value in meta.items() if key.startswith("mmsegmentation"))
    ours = {
        "IoU": counts.iou(),
        "Acc": counts.recall(),
        "Dice": counts.dice(),
        "Fscore": counts.fscore(),
        "Precision": counts.precision(),
        "Recall": counts.recall(),
    }
    for name, values in ours.items():
        np.testing.assert_allclose(values, floats(upstream[name]), atol=1e-6, err_msg=name)
    assert counts.pixel_accuracy() == pytest.approx(upstream["aAcc"], abs=1e-6)
    iou = floats(upstream["IoU"])
    assert counts.compute()["miou"] == pytest.approx(np.nanmean(iou), abs=1e-6)


@pytest.mark.parametrize("path", FIXTURES)
def test_policies_of_three_projects(path: Path) -> None:
    meta, _, counts = load(path)
    fcn, dlp, semseg = meta["fcn_caffe"], meta["deeplab_pytorch"], meta["semseg"]
    defined = counts.compute()
    assert defined["pixel_accuracy"] == pytest.approx(fcn["overall"], abs=1e-12)
    assert defined["mean_accuracy"] == pytest.approx(fcn["mean_acc"], abs=1e-12)
    assert defined["miou"] == pytest.approx(fcn["mean_iu"], abs=1e-12)
    assert defined["fwiou"] == pytest.approx(fcn["fwiou"], abs=1e-12)
    in_gt = counts.compute(absent="in_gt")
    assert in_gt["miou"] == pytest.approx(dlp["Mean IoU"], abs=1e-12)
    assert in_gt["mean_accuracy"] == pytest.approx(dlp["Mean Accuracy"], abs=1e-12)
    assert in_gt["fwiou"] == pytest.approx(dlp["Frequency Weighted IoU"], abs=1e-12)
    np.testing.assert_allclose(counts.iou(), floats(dlp["Class IoU"].values()), atol=1e-12)
    zero = counts.compute(absent="all_zero")
    # semseg adds 1e-10 to every denominator
    assert zero["miou"] == pytest.approx(semseg["mIoU"], abs=1e-9)
    assert zero["mean_accuracy"] == pytest.approx(semseg["mAcc"], abs=1e-9)
    assert zero["pixel_accuracy"] == pytest.approx(semseg["allAcc"], abs=1e-9)


def test_by_hand() -> None:
    counts = Confusion(3)
    counts.update(np.array([[0, 1, 1], [2, 2, 0]]), np.array([[0, 0, 1], [2, 1, 255]]))
    assert counts.matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    np.testing.assert_allclose(counts.iou(), [1 / 2, 1 / 3, 1 / 2])
    numbers = counts.compute()
    assert numbers["miou"] == pytest.approx(4 / 9)
    assert numbers["pixel_accuracy"] == pytest.approx(3 / 5)
    assert numbers["mean_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert numbers["fwiou"] == pytest.approx(2 / 5 / 2 + 2 / 5 / 3 + 1 / 5 / 2)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64])
def test_small_integers_do_not_overflow(kind) -> None:
    """C·g + p reaches 22,650 with 150 classes, far beyond a byte."""
    gt = np.full((4, 5), 149, kind)
    counts = Confusion(150)
    counts.update(gt, gt)
    assert counts.matrix[149, 149] == 20
    assert counts.matrix.sum() == 20


def test_an_ignored_picture_adds_nothing() -> None:
    counts = Confusion(4)
    counts.update(np.ones((3, 3), np.uint8), np.full((3, 3), 255, np.uint8))
    assert not counts.counts.any()
    assert all(np.isnan(v) for v in counts.compute().values())
    assert counts.compute(absent="all_zero")["miou"] == 0.0


def test_annotations_out_of_range_are_left_out() -> None:
    counts = Confusion(2)
    counts.update(np.array([0, 1, 0, 1]), np.array([0, 7, -1, 2]))
    assert counts.matrix.tolist() == [[1, 0], [0, 0]]


def test_a_prediction_that_is_no_class_is_wrong() -> None:
    counts = Confusion(2)
    counts.update(np.array([0, 255, 255, 1], np.uint8), np.array([0, 0, 1, 1], np.uint8))
    assert counts.matrix.tolist() == [[1, 0], [0, 1]]
    assert counts.annotated.tolist() == [2, 2]
    assert counts.pixel_accuracy() == 0.5
    np.testing.assert_allclose(counts.iou(), [0.5, 0.5])
    np.testing.assert_allclose(counts.precision(), [1.0, 1.0])


def test_single_class() -> None:
    counts = Confusion(1)
    counts.update(np.zeros(9, np.uint8), np.zeros(9, np.uint8))
    assert counts.compute()["miou"] == 1.0


def test_shards_and_blocks(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    gt, pred = rng.integers(0, 6, (2, 4, 31, 17))
    whole = Confusion(5)
    whole.update(pred, gt)
    one, other = Confusion(5), Confusion(5)
    monkeypatch.setattr("pixelwise.metrics.miou._BLOCK", 100)
    one.update(pred[:3], gt[:3])
    other.update(pred[3:], gt[3:])
    np.testing.assert_array_equal(one.merge(other).counts, whole.counts)
    slow = np.zeros((5, 5), np.int64)
    for g, p in zip(gt.ravel(), pred.ravel(), strict=True):
        if g < 5 and p < 5:
            slow[g, p] += 1
    np.testing.assert_array_equal(whole.matrix, slow)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_fscore(beta: float) -> None:
    counts = Confusion(2)
    counts.update(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0]))
    p, r = 2 / 3, 2 / 3
    expected = (1 + beta**2) * p * r / (beta**2 * p + r)
    assert counts.fscore(beta)[0] == pytest.approx(expected)


def test_wrong_use() -> None:
    counts = Confusion(2)
    with pytest.raises(UsageError, match="differ in size"):
        counts.update(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(UsageError, match="'sometimes' is no policy"):
        counts.compute(absent="sometimes")
    with pytest.raises(UsageError, match="5 classes into 2"):
        counts.merge(Confusion(5))
    with pytest.raises(UsageError, match="at least one class"):
        Confusion(0)
