import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.position_sensitive import (
    assemble,
    class_scores,
    mask_logits,
)

SCALE = 1 / 16


def rois(*boxes: tuple[float, ...], image: int = 0) -> Tensor:
    return torch.tensor([[float(image), *box] for box in boxes])


# Inside, halves, partly and wholly outside, one pixel, thin, as large as the map and larger.
BOXES = rois(
    (0, 0, 192, 160),
    (5.5, 9.5, 77.5, 66.5),
    (-4, 100, 50, 180),
    (-60, -50, -20, -10),
    (64, 64, 65, 65),
    (30, 3, 32, 150),
    (-100, -100, 400, 300),
)


def maps(depth: int, parts: int, *, size: tuple[int, int] = (10, 12), batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(depth + parts)
    return torch.randn(batch, depth * parts**2, *size, generator=generator)


def away(value: float) -> float:
    """Rounded, halves away from zero."""
    return math.copysign(math.floor(abs(value) + 0.5), value)


def frame(roi: Tensor) -> tuple[list[np.float32], list[np.float32]]:
    """Start and extent, x and y, by the words of the papers' operators (last pixel included)."""
    x1, y1, x2, y2 = (float(v) for v in roi[1:])
    start = [np.float32(away(v) * SCALE) for v in (x1, y1)]
    end = [np.float32((away(v - 1) + 1) * SCALE) for v in (x2, y2)]
    extent = [max(e - s, np.float32(0.1)) for s, e in zip(start, end, strict=True)]
    return start, extent


def slow_copy(maps: Tensor, rois: Tensor, parts: int, side: int) -> Tensor:
    depth = maps.shape[1] // parts**2
    out = torch.zeros(len(rois), depth, side, side)
    for r, roi in enumerate(rois):
        (x0, y0), (w, h) = frame(roi)
        for i in range(side):
            for j in range(side):
                y, x = math.floor(y0 + (i + 0.5) * h / side), math.floor(x0 + (j + 0.5) * w / side)
                if not (0 <= y < maps.shape[2] and 0 <= x < maps.shape[3]):
                    continue
                for d in range(depth):
                    channel = (d * parts + i * parts // side) * parts + j * parts // side
                    out[r, d, i, j] = maps[int(roi[0]), channel, y, x]
    return out


def slow_pool(maps: Tensor, rois: Tensor, parts: int, side: int) -> Tensor:
    depth, (height, width) = maps.shape[1] // parts**2, maps.shape[2:]
    out = torch.zeros(len(rois), depth, side, side)
    for r, roi in enumerate(rois):
        (x0, y0), (w, h) = frame(roi)
        bin_w, bin_h = np.float32(w / np.float32(side)), np.float32(h / np.float32(side))
        for i in range(side):
            top = min(max(math.floor(np.float32(i) * bin_h + y0), 0), height)
            foot = min(max(math.ceil(np.float32(i + 1) * bin_h + y0), 0), height)
            for j in range(side):
                left = min(max(math.floor(np.float32(j) * bin_w + x0), 0), width)
                right = min(max(math.ceil(np.float32(j + 1) * bin_w + x0), 0), width)
                for d in range(depth):
                    channel = (d * parts + i * parts // side) * parts + j * parts // side
                    cells = maps[int(roi[0]), channel, top:foot, left:right]
                    out[r, d, i, j] = cells.mean() if cells.numel() else 0.0
    return out


@pytest.mark.parametrize(("parts", "side"), [(3, 9), (7, 21), (2, 5), (1, 4)])
def test_copy_equals_the_loop(parts: int, side: int) -> None:
    values = maps(2, parts, batch=2)
    boxes = torch.cat([BOXES, BOXES + torch.tensor([1.0, 7, -3, 7, -3])])
    ours = assemble(values, boxes, "copy", parts=parts, side=side, scale=SCALE)
    assert torch.equal(ours, slow_copy(values, boxes, parts, side))


@pytest.mark.parametrize(("parts", "side"), [(3, 9), (7, 21), (7, 7), (1, 4)])
def test_pool_equals_the_loop(parts: int, side: int) -> None:
    values = maps(2, parts, batch=2)
    boxes = torch.cat([BOXES, BOXES + torch.tensor([1.0, 7, -3, 7, -3])])
    ours = assemble(values, boxes, "pool", parts=parts, side=side, scale=SCALE)
    torch.testing.assert_close(ours, slow_pool(values, boxes, parts, side), rtol=0, atol=2e-6)


def test_pool_keeps_small_differences_on_a_large_offset() -> None:
    """Integral images in float32 would lose them: their last sums are in the millions."""
    values = maps(1, 1, size=(64, 64)) * 1e-3 + 1000
    box = rois((900, 900, 1000, 1000))
    ours = assemble(values, box, "pool", parts=1, side=7, scale=SCALE)
    torch.testing.assert_close(ours, slow_pool(values, box, 1, 7), rtol=0, atol=2e-4)


@pytest.mark.parametrize("corner", [(0, 0), (-1, 3)])
def test_halves_are_rounded_away_from_zero(corner: tuple[int, int]) -> None:
    """At x = 8.5 Python, NumPy and torch would round down."""
    row = torch.arange(12.0).expand(1, 1, 12, 12)
    x, y = corner
    exact = rois((9 + 16 * x, 16 * y, 25 + 16 * x, 16 * y + 16))
    half = exact - torch.tensor([0, 0.5, 0, 0.5, 0]) if x >= 0 else exact
    for mode in ("copy", "pool"):
        ours, other = (assemble(row, b, mode, parts=1, side=16, scale=SCALE) for b in (exact, half))
        assert torch.equal(ours, other)


def test_with_one_part_a_region_is_a_crop() -> None:
    values = maps(3, 1)
    crop = assemble(values, rois((32, 16, 96, 112)), "copy", parts=1, side=12, scale=SCALE)
    expected = F.interpolate(values[:, :, 1:7, 2:6], size=(12, 12), mode="nearest")
    assert torch.equal(crop, expected)


def test_with_one_part_pooling_is_that_of_fast_rcnn_with_means() -> None:
    values = maps(3, 1)
    pooled = assemble(values, rois((0, 0, 192, 160)), "pool", parts=1, side=2, scale=SCALE)
    torch.testing.assert_close(pooled, F.avg_pool2d(values, (5, 6)))


@pytest.mark.parametrize("mode", ["copy", "pool"])
def test_the_same_pixel_reads_another_map_in_another_region(mode) -> None:
    """Maps that hold their own number: what is read at a pixel is its place in the region."""
    values = torch.arange(9.0)[None, :, None, None].expand(1, 9, 12, 12)
    first, second = assemble(
        values, rois((0, 0, 144, 144), (48, 0, 192, 144)), mode, parts=3, side=9, scale=SCALE
    )[:, 0]
    place = torch.arange(9).reshape(3, 3).float().repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert torch.equal(first, place)
    assert torch.equal(second, place)
    # Input column 56 is the fourth cell of the first region and the first of the second.
    assert first[0, 3] == 1
    assert second[0, 0] == 0


@pytest.mark.parametrize("mode", ["copy", "pool", "align", "rounded"])
def test_constant_maps_give_their_constants(mode) -> None:
    levels = torch.arange(2 * 9.0)[None, :, None, None].expand(1, 18, 12, 12)
    out = assemble(levels, rois((20, 30, 150, 160)), mode, parts=3, side=3, scale=SCALE)
    torch.testing.assert_close(out, torch.arange(18.0).reshape(1, 2, 3, 3))


@pytest.mark.parametrize("mode", ["copy", "pool", "align", "rounded"])
def test_moving_region_and_map_by_a_cell_changes_nothing(mode) -> None:
    values = F.pad(maps(2, 3), (2, 2, 2, 2))
    moved = F.pad(values, (1, 0, 2, 0))
    box = torch.tensor([[0.0, 41, 37, 130, 121]])
    here = assemble(values, box, mode, parts=3, side=3, scale=SCALE)
    there = assemble(
        moved, box + torch.tensor([0.0, 16, 32, 16, 32]), mode, parts=3, side=3, scale=SCALE
    )
    torch.testing.assert_close(here, there)


@pytest.mark.parametrize("mode", ["copy", "pool", "align", "rounded"])
def test_permuting_regions_permutes_the_result(mode) -> None:
    values, order = maps(2, 3), torch.tensor([3, 0, 6, 2, 5, 1, 4])
    how = {"parts": 3, "side": 3, "scale": SCALE}
    everything = assemble(values, BOXES, mode, **how)
    assert torch.equal(assemble(values, BOXES[order], mode, **how), everything[order])
    assert assemble(values, BOXES[:0], mode, **how).shape == (0, 2, 3, 3)


def pairs_of(values: Tensor) -> Tensor:
    inside = rois((0, 0, 192, 160), (20, 30, 120, 140))
    out = assemble(values, inside, "copy", parts=3, side=9, scale=SCALE)
    return out.unflatten(1, (-1, 2))  # [R, classes, 2, S, S]


def test_swapping_the_sides_complements_the_mask_and_keeps_the_scores() -> None:
    pairs, labels = pairs_of(maps(8, 3)), torch.tensor([1, 3])
    mask, other = (mask_logits(p, labels).sigmoid() for p in (pairs, pairs.flip(2)))
    torch.testing.assert_close(mask, 1 - other)
    assert torch.equal(class_scores(pairs), class_scores(pairs.flip(2)))


def test_a_constant_on_both_sides_moves_the_score_and_not_the_mask() -> None:
    values = maps(8, 3)
    raised = values.clone()
    raised[:, 2 * 9 : 4 * 9] += 2.5  # both sides of class 1
    before, after = pairs_of(values), pairs_of(raised)
    shift = class_scores(after) - class_scores(before)
    torch.testing.assert_close(shift, torch.tensor([[0.0, 2.5, 0, 0]]).expand(2, -1))
    labels = torch.ones(2, dtype=torch.int64)
    torch.testing.assert_close(mask_logits(after, labels), mask_logits(before, labels))


def test_scores_and_masks_by_hand() -> None:
    """Two classes of 1 x 2 cells: the larger side per cell, then the mean; no softmax before."""
    pairs = torch.tensor([[[[[1.0, 4]], [[3.0, -2]]], [[[0.0, 0]], [[-1.0, 6]]]]])
    assert class_scores(pairs).tolist() == [[3.5, 3.0]]
    assert mask_logits(pairs, torch.tensor([0])).tolist() == [[[2.0, -6.0]]]
    both = pairs[0, 0].softmax(dim=0)[1]  # inside is the second side
    torch.testing.assert_close(mask_logits(pairs, torch.tensor([0])).sigmoid()[0], both)


def test_blending_with_one_hot_attention_is_assembling() -> None:
    """BlendMask with M = k, k * k bases and one basis for each cell of its attention map."""
    parts, side = 3, 9
    values, box = maps(1, parts), rois((20, 30, 120, 140))
    bases = torch.stack(
        [
            assemble(values[:, i : i + 1], box, "copy", parts=1, side=side, scale=SCALE)[0, 0]
            for i in range(parts**2)
        ]
    )  # [k * k, S, S]
    attention = torch.eye(parts**2).reshape(1, parts**2, parts, parts)
    attention = F.interpolate(attention, size=(side, side), mode="nearest")[0]
    blended = (bases * attention).sum(dim=0)
    ours = assemble(values, box, "copy", parts=parts, side=side, scale=SCALE)[0, 0]
    torch.testing.assert_close(ours, blended)


@pytest.mark.parametrize("mode", ["copy", "pool"])
def test_gradients_go_where_values_come_from(mode) -> None:
    """The result is linear in the maps, so its gradient times the maps is the result."""
    values = maps(2, 3).requires_grad_()
    out = assemble(values, BOXES, mode, parts=3, side=9, scale=SCALE)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    total = (out * weights).sum()
    total.backward()
    assert values.grad is not None
    torch.testing.assert_close((values.grad * values).sum(), total, rtol=1e-4, atol=1e-4)
    assert values.grad.abs().sum() > 0


def test_torchvisions_operators_have_one_value_per_part() -> None:
    with pytest.raises(ValueError, match="side 6 must be 3"):
        assemble(maps(1, 3), BOXES, "align", parts=3, side=6, scale=SCALE)
