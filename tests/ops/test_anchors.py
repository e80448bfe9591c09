"""Anchors: closed forms, order, and what upstream generators compute."""

import re

import pytest
import torch

from pixelwise.ops.anchors import base_anchors, grid_anchors, plus_one_anchors
from tests.fixtures import Fixture, fixture_params, load_fixture


def test_ratio_is_height_over_width_and_area_stays() -> None:
    anchors = base_anchors([32, 64], [0.5, 1, 2])
    extent = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(extent.prod(1).sqrt(), torch.tensor([32.0, 64] * 3))
    torch.testing.assert_close(extent[:, 1] / extent[:, 0], torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    assert (anchors[:, :2] == -anchors[:, 2:]).all(), "centred on the origin"
    by_size = base_anchors([32, 64], [0.5, 1, 2], order="size")
    torch.testing.assert_close(by_size, anchors[[0, 2, 4, 1, 3, 5]])


def test_grid_runs_rows_then_columns_then_anchors() -> None:
    base = base_anchors([8, 16], [1])
    grid = grid_anchors(base, (2, 3), (4, 5))
    assert grid.shape == (12, 4)
    centres = (grid[:, :2] + grid[:, 2:]) / 2
    assert centres[::2].tolist() == [[0, 0], [5, 0], [10, 0], [0, 4], [5, 4], [10, 4]]
    torch.testing.assert_close(grid[-2:], base + torch.tensor([10.0, 4, 10, 4]))
    assert grid_anchors(base, (0, 3), (4, 4)).shape == (0, 4)


def levels_of(fixture: Fixture, prefix: str) -> list[tuple[str, int]]:
    """Keys `prefix_STRIDE`, finest first."""
    found = [re.fullmatch(rf"{prefix}_(\d+)", key) for key in fixture.arrays]
    return sorted(((m[0], int(m[1])) for m in found if m), key=lambda pair: pair[1])


@pytest.mark.parametrize("path", fixture_params("instance", "ops_anchors*"))
def test_parity(path: object) -> None:
    fixture = load_fixture(path)
    cfg = fixture.meta["configuration"]
    sizes, ratios, grid = cfg["sizes"], cfg["ratios"], tuple(cfg["grid"])
    compared: set[str] = set()
    of_stride: dict[int, float] = {}
    for origin in ("torchvision", "mmdet", "detectron1"):
        # Levels pair with sizes in order; one origin may list fewer of them.
        for size, (key, stride) in zip(sizes, levels_of(fixture, f"{origin}_base"), strict=False):
            of_stride[stride] = size
            if origin == "detectron1":
                ours = plus_one_anchors(stride, [size / stride], ratios)
            else:
                ours = base_anchors([size], ratios, rounding=origin == "torchvision")
            fixture.compare(key, ours, rtol=1e-6)
            compared.add(key)
    for origin in ("torchvision", "mmdet"):
        for key, stride in levels_of(fixture, f"{origin}_grid"):
            base = base_anchors([of_stride[stride]], ratios, rounding=origin == "torchvision")
            fixture.compare(key, grid_anchors(base, grid, (stride, stride)), rtol=1e-6)
            compared.add(key)
    for origin in ("fcis", "rfcn"):
        for key, stride in levels_of(fixture, f"{origin}_base"):
            count = fixture.shape(key)[0] // len(ratios)
            scales = [2**k for k in range(6 - count, 6)]  # COCO 4, 8, 16, 32; VOC without 4
            fixture.compare(key, plus_one_anchors(stride, scales, ratios), rtol=1e-6)
            compared.add(key)
    assert compared == set(fixture.arrays)
