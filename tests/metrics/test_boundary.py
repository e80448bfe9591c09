"""Boundary IoU and boundary F1 against the fixture and against slow loops over the definitions."""

import json
from pathlib import Path

import numpy as np
import pytest

from pixelwise.errors import UsageError
from pixelwise.metrics.boundary import BoundaryF1, BoundaryIoU, band_width, mask_band
from tests.fixtures import fixture_params

FIXTURES = fixture_params("semantic", "metrics_semantic*")


def floats(values) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def slow_band(mask: np.ndarray, width: int) -> np.ndarray:
    eroded = mask.astype(bool)
    for _ in range(width):
        padded = np.pad(eroded, 1)
        eroded = np.logical_and.reduce(
            [
                padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
                for dy in range(3)
                for dx in range(3)
            ]
        )
    return mask.astype(bool) & ~eroded


def slow_edge(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask.astype(bool), 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask.astype(bool) & ~inner


def slow_f1(pred: np.ndarray, gt: np.ndarray, tolerance: float) -> float:
    a, b = np.argwhere(slow_edge(pred)), np.argwhere(slow_edge(gt))
    if not len(a) and not len(b):
        return np.nan
    if not len(a) or not len(b):
        return 0.0
    far = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    p, r = (far.min(1) <= tolerance).mean(), (far.min(0) <= tolerance).mean()
    return 2 * p * r / (p + r) if p + r else 0.0


def blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    small = rng.integers(0, 4, (size[0] // 6 + 1, size[1] // 6 + 1))
    return np.kron(small, np.ones((6, 6), int))[: size[0], : size[1]]


@pytest.mark.parametrize("path", FIXTURES)
def test_fixture(path: Path) -> None:
    meta, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    k = meta["classes"]
    iou = BoundaryIoU(k, ratio=meta["boundary_iou"]["dilation_ratio"])
    f1 = BoundaryF1(k)
    per_image = []
    for i, (gt, pred) in enumerate(zip(arrays["gt"], arrays["pred"], strict=True)):
        expected = floats(meta["boundary_iou"]["per_image_class"][i])
        np.testing.assert_allclose(iou.update(pred, gt), expected, atol=1e-12)
        per_image.append(floats(meta["boundary_f1"]["per_image_class"][i]))
        np.testing.assert_allclose(f1.update(pred, gt), per_image[-1], atol=1e-12)
    assert band_width(arrays["gt"].shape[1:]) == meta["boundary_iou"]["dilation_pixels"]
    for c in range(k):
        containing = [i for i, gt in enumerate(arrays["gt"]) if (gt == c).any()]
        if containing:
            mean = np.mean([per_image[i][c] for i in containing])
            assert f1.compute()[c] == pytest.approx(mean, abs=1e-12)
        else:
            assert np.isnan(f1.compute()[c])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(37, 50), (50, 21), (6, 90)])
def test_against_slow_loops(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    gt, pred = blobs(rng, size), blobs(rng, size)
    gt[rng.random(size) < 0.02] = 255
    pred[rng.random(size) < 0.01] = 255
    ratio, reach = 0.06, 0.05
    width, tolerance = band_width(size, ratio), max(1.0, reach * np.hypot(*size))
    iou = BoundaryIoU(5, ratio=ratio)
    scores = BoundaryF1(5, ratio=reach).update(pred, gt)
    values = iou.update(pred, gt)
    for c in range(5):
        a, b = (pred == c) & (gt != 255), gt == c
        bands = slow_band(a, width), slow_band(b, width)
        both, union = (bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()
        assert iou.intersections[c] == both
        assert iou.unions[c] == union
        np.testing.assert_allclose(values[c], both / union if union else np.nan)
        np.testing.assert_allclose(scores[c], slow_f1(a, b, tolerance), err_msg=str(c))


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.08, 0.5])
def test_band_of_a_mask(ratio: float) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:40, 5:35] = 1  # touches the lower border, which counts as outside
    expected = slow_band(mask, band_width(mask.shape, ratio))
    np.testing.assert_array_equal(mask_band(mask, ratio=ratio), expected)
    assert not mask_band(np.zeros((4, 5)), ratio=ratio).any()


def test_sums_run_over_the_data_set() -> None:
    rng = np.random.default_rng(1)
    maps = [(blobs(rng, (30, 30)), blobs(rng, (30, 30))) for _ in range(3)]
    for kind in (BoundaryIoU, BoundaryF1):
        whole, first, rest = kind(4), kind(4), kind(4)
        for n, (pred, gt) in enumerate(maps):
            whole.update(pred, gt)
            (first if n == 0 else rest).update(pred, gt)
        np.testing.assert_array_equal(first.merge(rest).compute(), whole.compute())


def test_equal_maps_are_perfect_and_empty_ones_undefined() -> None:
    gt = blobs(np.random.default_rng(0), (24, 24))
    for kind in (BoundaryIoU, BoundaryF1):
        np.testing.assert_allclose(kind(4).update(gt, gt), 1.0)
        ignored = np.full((24, 24), 255)
        assert np.isnan(kind(4).update(gt, ignored)).all()


def test_wrong_sizes() -> None:
    with pytest.raises(UsageError, match="one size"):
        BoundaryIoU(2).update(np.zeros((3, 4)), np.zeros((4, 3)))
