"""Mask targets and pasting: equal to dense references and to upstream implementations."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops import masks as module
from pixelwise.ops.masks import (
    mask_targets,
    paste_masks,
    resized_strips,
    resized_targets,
    shares_inside,
)
from pixelwise.ops.rle import (
    areas,
    crops_from_dense,
    decode,
    decode_crops,
    encode,
    encode_strips,
)
from pixelwise.types import MaskCrops
from tests.fixtures import fixture_params, load_fixture, sample


def maps(n: int, m: int, seed: int, *, smooth: bool) -> Tensor:
    """Probability maps: noise (many crossings), or a blob per instance."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, m, m, generator=g)
    if not smooth:
        return noise
    y, x = torch.meshgrid(torch.linspace(-1, 1, m), torch.linspace(-1, 1, m), indexing="ij")
    return torch.sigmoid(8 * (0.8 - (x**2 + y**2).sqrt()) + noise)


def boxes_around(n: int, size: tuple[int, int], seed: int) -> Tensor:
    """Boxes inside, across and outside the borders, some tiny, some whole numbers."""
    g = torch.Generator().manual_seed(seed)
    h, w = size
    corner = torch.rand(n, 2, generator=g) * torch.tensor([w * 1.6, h * 1.6]) - torch.tensor(
        [w * 0.3, h * 0.3]
    )
    extent = torch.rand(n, 2, generator=g) ** 2 * torch.tensor([w * 1.3, h * 1.3]) + 0.05
    boxes = torch.cat([corner, corner + extent], 1)
    boxes[::3] = boxes[::3].round()
    return boxes


def dense_grid_paste(probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample every pixel of the picture: the definition of the "grid" mode."""
    y = (torch.arange(size[0]).double() + 0.5)[None, :]
    x = (torch.arange(size[1]).double() + 0.5)[None, :]
    x1, y1, x2, y2 = (b[:, None] for b in boxes.double().unbind(1))
    v, u = (y - y1) / (y2 - y1) * 2 - 1, (x - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack(
        [u[:, None, :].expand(-1, size[0], -1), v[:, :, None].expand(-1, -1, size[1])], -1
    )
    return F.grid_sample(probs.double()[:, None], grid, align_corners=False)[:, 0]


def dense_expanded_paste(probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad, expand, truncate, resize, cut: the definition of the "expanded" mode."""
    padded = F.pad(probs, (1,) * 4)
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * (padded.shape[-1] / probs.shape[-1])
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    whole = torch.cat([centre - half, centre + half], 1).long().tolist()
    out = torch.zeros(len(probs), *size, dtype=torch.float64)
    for i, (x1, y1, x2, y2) in enumerate(whole):
        h, w = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        resized = F.interpolate(padded[i][None, None].double(), (h, w), mode="bilinear")[0, 0]
        top, left = max(y1, 0), max(x1, 0)
        bottom, right = min(y1 + h, size[0]), min(x1 + w, size[1])
        if bottom > top and right > left:
            out[i, top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1]
    return out


DENSE = {"grid": dense_grid_paste, "expanded": dense_expanded_paste}


@pytest.mark.parametrize("mode", ["grid", "expanded"])
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.sampled_from([(1, 1), (17, 40), (61, 33), (80, 90)]),
    st.integers(0, 10_000),
    st.sampled_from([0.05, 0.3, 0.5, 0.9]),
    st.sampled_from([1, 2, 7, 28]),
)
def test_paste_equals_its_definition(
    mode: str, n: int, size: tuple[int, int], seed: int, thresh: float, m: int
) -> None:
    probs, boxes = maps(n, m, seed, smooth=bool(seed % 2)), boxes_around(n, size, seed)
    ours = decode(paste_masks(probs, boxes, size, thresh=thresh, mode=mode))
    soft = DENSE[mode](probs, boxes, size)
    wrong = torch.from_numpy(ours).bool() != (soft >= thresh)
    # Float32 may decide a pixel that lies on the threshold to five digits, and nothing else.
    assert not (wrong & ((soft - thresh).abs() > 1e-5)).any()
    assert ours.shape == (n, *size)


def test_values_on_the_threshold_belong_to_the_mask() -> None:
    """Two pixels per cell put every border of a 0/1 map on exactly 0.25, 0.5 or 0.75."""
    probs = (torch.rand(20, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    boxes = torch.tensor([[3.0, 2.0, 11.0, 10.0], [2, 2, 4, 4]]).repeat(10, 1)
    ours = decode(paste_masks(probs, boxes, (14, 13)))
    np.testing.assert_array_equal(ours, dense_grid_paste(probs, boxes, (14, 13)) >= 0.5)
    flat = torch.full((1, 4, 4), 0.5)
    assert areas(paste_masks(flat, boxes[:1], (14, 13))).tolist() == [
        int((dense_grid_paste(flat, boxes[:1], (14, 13)) >= 0.5).sum())
    ]


@pytest.mark.parametrize("side", [1, 2, 28, 41, 67])
def test_a_full_map_fills_its_box(side: int) -> None:
    box = torch.tensor([[5.0, 9.0, 5 + side, 9 + side]])
    filled = decode(paste_masks(torch.ones(1, 28, 28), box, (90, 80)))[0]
    assert filled.sum() == side * side
    assert filled[9 : 9 + side, 5 : 5 + side].all()
    larger = torch.tensor([[0.0, 0.0, 280.0, 280.0]])
    rounded = areas(paste_masks(torch.ones(1, 28, 28), larger, (300, 300)))[0]
    assert 280 * 280 - 40 <= rounded <= 280 * 280, "only corner pixels are lost, none outside"


def test_paste_of_nothing() -> None:
    none = paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6))
    assert len(none) == 0
    assert none.size == (5, 6)
    odd = torch.tensor([[4.0, 4, 4, 9], [9, 9, 2, 2], [-50, -50, -20, -20], [900, 0, 950, 4]])
    for mode in ("grid", "expanded"):
        masks = paste_masks(torch.ones(4, 28, 28), odd, (20, 30), mode=mode)
        assert len(masks) == 4
        assert (areas(masks)[2:] == 0).all()
    assert (areas(paste_masks(torch.ones(4, 28, 28), odd, (20, 30))) == 0).all()
    assert (areas(paste_masks(torch.zeros(2, 7, 7), odd[:2].abs() + 3, (20, 30))) == 0).all()
    with pytest.raises(ValueError, match="thresh"):
        paste_masks(torch.ones(4, 28, 28), odd, (20, 30), thresh=0.0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    probs, boxes = maps(30, 28, 0, smooth=True), boxes_around(30, (70, 90), 0)
    whole = paste_masks(probs, boxes, (70, 90))
    crops = decode_crops(whole)
    index = torch.arange(30).repeat(2)
    regions = boxes_around(60, (70, 90), 1)
    targets = mask_targets(crops, regions, index, 14)
    monkeypatch.setattr(module, "_PASTE_CHUNK", 100)
    monkeypatch.setattr(module, "_TARGET_CHUNK", 3000)
    np.testing.assert_array_equal(paste_masks(probs, boxes, (70, 90)).runs, whole.runs)
    assert torch.equal(mask_targets(crops, regions, index, 14), targets)


def blobs(n: int, size: tuple[int, int], seed: int) -> Tensor:
    """Dense 0/1 masks, some empty, some full."""
    probs, boxes = maps(n, 28, seed, smooth=True), boxes_around(n, size, seed)
    dense = torch.from_numpy(decode(paste_masks(probs, boxes, size)))
    dense[1::5] = 1
    return dense


def dense_targets(dense: Tensor, boxes: Tensor, index: Tensor, side: int, aligned: bool) -> Tensor:
    rois = torch.cat([index[:, None].double(), boxes.double()], 1)
    stack = dense[:, None].double()
    return torchvision.ops.roi_align(stack, rois, side, 1.0, -1, aligned)[:, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(0, 20),
    st.sampled_from([(1, 1), (17, 40), (61, 33), (80, 90)]),
    st.integers(0, 10_000),
    st.sampled_from([1, 14, 28]),
)
@example(n=2, r=10, size=(61, 33), seed=543, side=28)  # samples exactly a pixel outside
def test_targets_equal_dense_roi_align(
    n: int, r: int, size: tuple[int, int], seed: int, side: int
) -> None:
    dense = blobs(n, size, seed)
    boxes = boxes_around(r, size, seed + 1)
    index = torch.randint(0, n, (r,), generator=torch.Generator().manual_seed(seed))
    crops = crops_from_dense(dense)
    soft = mask_targets(crops, boxes, index, side, mode="torchvision")
    assert soft.shape == (r, side, side)
    low, high = bounds(dense, boxes, index, side, False)
    assert ((low - 1e-4 <= soft) & (soft <= high + 1e-4)).all()
    hard = mask_targets(crops, boxes, index, side).bool()
    low, high = bounds(dense, boxes, index, side, True)
    assert not (hard & (high < 0.5 - 1e-4)).any()
    assert not (~hard & (low > 0.5 + 1e-4)).any()


def bounds(
    dense: Tensor, boxes: Tensor, index: Tensor, side: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Least and largest target of boxes moved by nothing or next to nothing.

    RoIAlign jumps where a sample lies exactly a pixel beyond the picture: which side it is on,
    rounding decides.
    """
    moved = [
        dense_targets(dense, boxes.double() + by, index, side, aligned) for by in (-1e-6, 0.0, 1e-6)
    ]
    values = torch.stack(moved)
    return values.amin(0), values.amax(0)


@pytest.mark.parametrize("mode", ["bitmap", "torchvision"])
def test_a_mask_that_is_its_box_is_all_ones(mode: str) -> None:
    """In the picture's middle and in its corner, where no pixel lies beyond the box."""
    dense = torch.zeros(2, 40, 50, dtype=torch.uint8)
    dense[0, 5:33, 7:49] = dense[1, :16, :14] = 1
    boxes = torch.tensor([[7.0, 5, 49, 33], [0, 0, 14, 16]])
    targets = mask_targets(crops_from_dense(dense), boxes, torch.arange(2), 28, mode=mode)
    if mode == "bitmap":
        assert (targets == 1).all()
    else:  # half a pixel off: the last bins read half a pixel of background
        assert (targets[0, :-2, :-2] == 1).all()
        assert (targets[0, -1] < 1).all()


def test_targets_ignore_mixed_precision_and_loose_windows() -> None:
    dense = blobs(4, (61, 33), 3)
    boxes, index = boxes_around(9, (61, 33), 4), torch.arange(9) % 4
    tight = mask_targets(crops_from_dense(dense), boxes, index, 28, mode="torchvision")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mask_targets(crops_from_dense(dense), boxes, index, 28, mode="torchvision")
    assert torch.equal(mixed, tight)
    loose = MaskCrops((61, 33), torch.tensor([[0, 0, 33, 61]] * 4), dense.reshape(-1))
    whole = mask_targets(loose, boxes, index, 28, mode="torchvision")
    torch.testing.assert_close(whole, tight, atol=1e-6, rtol=0)
    none = mask_targets(MaskCrops.empty((9, 9)), torch.zeros(0, 4), torch.zeros(0).long(), 28)
    assert none.shape == (0, 28, 28)


def test_paste_inverts_targets() -> None:
    """A mask brought onto its box and back comes back within a pixel of its outline."""
    dense = blobs(6, (80, 90), 8)[[0, 2, 3, 4]]
    packed = encode(dense)
    boxes = torch.from_numpy(packed.windows).float()
    targets = mask_targets(decode_crops(packed), boxes, torch.arange(4), 28)
    back = decode(paste_masks(targets, boxes, (80, 90)))
    for ours, theirs in zip(back, dense.numpy(), strict=True):
        union = (ours | theirs).sum()
        assert union == 0 or (ours & theirs).sum() / union > 0.9


@pytest.mark.parametrize("path", fixture_params("instance", "ops_masks*"))
def test_parity_of_pasting(path: object) -> None:
    fixture = load_fixture(path)
    size = tuple(fixture.meta["configuration"]["image"])
    key = next(k for k in fixture.arrays if k.startswith("masks"))
    probs, boxes = fixture.tensor(key), fixture.tensor("boxes")
    for mode, name in (("grid", "grid_paste"), ("expanded", "torchvision_paste")):
        pasted = paste_masks(probs, boxes, size, mode=mode)
        assert areas(pasted).tolist() == fixture.arrays[f"{name}_area"].tolist()
        # The stored soft pixels are compared level by level.
        stored = fixture.arrays[name].reshape(-1)
        limit = fixture.limit(name) or stored.size
        for thresh in np.arange(0.05, 1, 0.05):
            ours = sample(decode(paste_masks(probs, boxes, size, thresh=thresh, mode=mode)), limit)
            clear = np.abs(stored - thresh) > 1e-5
            np.testing.assert_array_equal(ours[clear], (stored >= thresh)[clear])


@pytest.mark.parametrize("path", fixture_params("instance", "ops_masks*"))
def test_parity_of_targets(path: object) -> None:
    fixture = load_fixture(path)
    crops = crops_from_dense(fixture.tensor("gt_masks"))
    boxes, index = fixture.tensor("target_proposals"), fixture.tensor("target_gt_index")
    side = fixture.shape("bitmap_target")[-1]
    soft = mask_targets(crops, boxes, index, side, mode="torchvision")
    fixture.compare("torchvision_target", soft, rtol=1e-5)
    hard = mask_targets(crops, boxes, index, side)
    expected = fixture.tensor("bitmap_target").float()
    exact = dense_targets(fixture.tensor("gt_masks"), boxes, index, side, True)
    assert torch.equal(hard[(exact - 0.5).abs() > 1e-6], expected[(exact - 0.5).abs() > 1e-6])


def test_resized_targets_equal_a_resized_crop() -> None:
    """Cut out at whole pixels, zeros outside the mask's window, resized without smoothing."""
    dense = blobs(4, (60, 80), 3)
    masks = crops_from_dense(dense)
    boxes = torch.tensor([[0.0, 0, 80, 60], [10, 5, 47, 33], [3, 50, 4, 60], [70, 20, 80, 21]])
    index = torch.tensor([2, 0, 3, 1])
    ours = resized_targets(masks, boxes, index, 21, thresh=0.4)
    for target, box, i in zip(ours, boxes.long().tolist(), index.tolist(), strict=True):
        crop = dense[i, box[1] : box[3], box[0] : box[2]].float()
        resized = F.interpolate(crop[None, None], size=(21, 21), mode="bilinear")[0, 0]
        clear = (resized - 0.4).abs() > 1e-5
        assert torch.equal(target[clear], (resized >= 0.4).float()[clear])
        assert clear.float().mean() > 0.9
    assert ours.any()
    nothing = resized_targets(masks, boxes[:0], index[:0], 21, thresh=0.4)
    assert nothing.shape == (0, 21, 21)


def test_resized_strips_hold_the_edge_up_to_the_border() -> None:
    """As an enlarged picture does; pasting lets the mask fade before the border of its box."""
    windows = np.array([[2, 3, 90, 70], [5, 5, 6, 9]])
    full = np.ones((2, 7, 7), np.float32)
    strips = resized_strips(full, windows, 0.5)
    found = encode_strips(*strips, count=2, size=(80, 100))
    assert np.array_equal(found.windows, windows)
    assert areas(found).tolist() == [88 * 67, 4]
    values = maps(1, 7, 3, smooth=False)
    owner, column, (top, foot) = resized_strips(values.numpy(), windows[:1], 0.5)
    ours = np.zeros((67, 88), bool)
    for x, first, last in zip(column - 2, top - 3, foot - 3, strict=True):
        ours[first:last, x] = True
    resized = F.interpolate(values[None], size=(67, 88), mode="bilinear")[0, 0].numpy()
    clear = np.abs(resized - 0.5) > 1e-5
    assert np.array_equal(ours[clear], (resized >= 0.5)[clear])
    assert not owner.any()


@pytest.mark.parametrize("path", fixture_params("instance", "ops_masks*"))
def test_parity_of_shares(path: object) -> None:
    fixture = load_fixture(path)
    boxes, index = fixture.tensor("target_proposals"), fixture.tensor("target_gt_index")
    shares = shares_inside(crops_from_dense(fixture.tensor("gt_masks")), boxes, index)
    fixture.compare("mmdet_area_ratio", shares, rtol=1e-5)


def test_share_of_a_mask_inside_a_box() -> None:
    """Against counting in a dense stack, also for boxes beside the mask and empty masks."""
    dense = blobs(12, (60, 70), 3)
    dense[2] = 0
    boxes, index = boxes_around(300, (60, 70), 4), torch.arange(300) % 12
    boxes = boxes.clamp(min=0)
    ours = shares_inside(crops_from_dense(dense), boxes, index)
    for box, i, share in zip(boxes, index.tolist(), ours.tolist(), strict=True):
        x1, y1, x2, y2 = box.int().tolist()
        total = int(dense[i].sum())
        assert share == pytest.approx(int(dense[i, y1:y2, x1:x2].sum()) / max(total, 1))
    assert ours[2] == 0
    assert len({round(x, 3) for x in ours.tolist()}) > 10
    none = torch.zeros(0, dtype=torch.int64)
    assert shares_inside(crops_from_dense(dense), torch.zeros(0, 4), none).shape == (0,)
