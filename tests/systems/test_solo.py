"""SOLO: targets by hand, the paper's parameter counts, decoding step by step."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.nn.grid_masks import DecoupledMasks
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.ops import rle
from pixelwise.systems import SYSTEMS, create
from pixelwise.systems import solo as module
from pixelwise.systems.solo import (
    SOLO,
    Raw,
    SOLOConfig,
    assign,
    category_loss,
    mask_loss,
    mask_statistics,
)
from pixelwise.types import ImageSize, InstanceTarget, MaskCrops

GRIDS = (8, 7, 6, 4, 3)
EVERYWHERE = ((1, 2048),) * 5
TINY = SOLOConfig(
    num_classes=3,
    backbone="resnet18",
    backbone_norm="batch",
    channels=8,
    head_width=8,
    head_convs=1,
    kernel_width=8,
    grids=GRIDS,
    scale_ranges=((1, 16), (8, 24), (16, 40), (24, 64), (48, 2048)),
)
FORMS = ("full", "decoupled", "light", "dynamic")


def build(**changes):
    torch.manual_seed(0)
    return SOLO(dataclasses.replace(TINY, **changes))


def objects(boxes, labels, size=(64, 64), crowd=None):
    """Objects that fill their boxes."""
    windows = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
    sides = windows[:, 2:] - windows[:, :2]
    return InstanceTarget(
        boxes=windows.float(),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=MaskCrops(size, windows, torch.ones(int(sides.prod(1).sum()), dtype=torch.uint8)),
        crowd=torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
    )


def owners(target, side=8, scales=(1, 2048), extent=(64, 64)):
    return assign(target, [side], [scales], extent=extent).owners[0]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("solo", 36_301_232),
        ("solo_resnet101", 55_293_360),
        ("decoupled_solo", 40_028_560),
        ("decoupled_solo_light", 32_354_192),
        ("solov2", 46_592_912),
    ],
)
def test_parameters_are_the_published_ones(name, millions):
    with torch.device("meta"):
        net = create(name)
    frozen = [m for m in net.modules() if isinstance(m, FrozenBatchNorm)]
    ours = sum(p.numel() for p in net.parameters())
    assert ours + sum(2 * m.weight.numel() for m in frozen) == millions


def test_cells_of_an_object_by_hand():
    """A 40 x 20 box around (31.5, 31.5): the centre region is 27.5 .. 35.5 by 29.5 .. 33.5, so of
    8 x 8 cells it touches columns and rows 3 and 4."""
    grid = owners(objects([[12, 22, 52, 42]], [0]))
    assert (grid >= 0).nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
    # In one corner of the region's cell: only that cell.
    grid = owners(objects([[8, 8, 16, 16]], [0]))
    assert (grid >= 0).nonzero().tolist() == [[1, 1]]


def test_the_centre_is_that_of_the_mask_not_of_the_box():
    target = objects([[0, 0, 64, 64]], [0])
    pixels = torch.zeros(64, 64, dtype=torch.uint8)
    pixels[:, 48:] = 1  # centre of mass at x = 55.5, y = 31.5
    masks = MaskCrops((64, 64), target.masks.windows, pixels.flatten())
    grid = owners(dataclasses.replace(target, masks=masks), side=4)
    # Columns 49.1 to 61.9 and rows 25.1 to 37.9 of cells of 16 pixels.
    assert (grid >= 0).nonzero().tolist() == [[1, 3], [2, 3]]


@pytest.mark.parametrize("side", [40, 12, 3])
def test_an_object_has_at_most_nine_cells(side):
    grid = owners(objects([[0, 0, 64, 64]], [0]), side=side)
    assert 1 <= (grid >= 0).sum() <= 9


def test_levels_overlap_and_their_limits_are_included():
    target = objects([[10, 10, 26, 26], [30, 30, 54, 54]], [0, 1])  # 16 and 24 pixels
    found = assign(target, GRIDS, TINY.scale_ranges, extent=(64, 64)).owners
    holds = [[int(n) in grid.unique().tolist() for n in range(2)] for grid in found]
    assert holds == [[True, False], [True, True], [True, True], [False, True], [False, False]]


def test_the_later_of_two_objects_gets_the_cell():
    both = [[24, 24, 40, 40], [20, 20, 44, 44]]
    assert set(owners(objects(both, [0, 1])).unique().tolist()) == {-1, 1}
    assert owners(objects(both[::-1], [1, 0]))[3, 3] == 1


def test_the_grid_covers_the_padded_input():
    target = objects([[40, 40, 56, 56]], [0])
    assert (owners(target) >= 0).nonzero().tolist() == [[5, 5], [5, 6], [6, 5], [6, 6]]
    padded = owners(target, extent=(128, 64))
    assert (padded >= 0).nonzero().tolist() == [[2, 5], [2, 6], [3, 5], [3, 6]]


def test_empty_masks_and_crowds_own_no_cell():
    target = objects([[8, 8, 24, 24], [30, 30, 60, 60]], [0, 1], crowd=[False, True])
    found = assign(target, [8], [(1, 2048)], extent=(64, 64))
    assert found.owners[0].unique().tolist() == [-1, 0]
    # Cells whose centres lie in the crowd are not called background either.
    assert (~found.counted[0]).nonzero().tolist() == [
        [y, x] for y in range(4, 7) for x in range(4, 7)
    ]
    blank = MaskCrops((64, 64), target.masks.windows, torch.zeros_like(target.masks.pixels))
    target = dataclasses.replace(target, masks=blank)
    assert (owners(target) == -1).all()
    assert (owners(objects([], [])) == -1).all()


def test_category_loss_by_hand():
    """One positive of two cells' worth of logits at 0: focal is 1/4 alpha log 2 each."""
    target = objects([[8, 8, 16, 16]], [2])
    found = assign(target, [2], [(1, 2048)], extent=(64, 64))
    loss = category_loss([torch.zeros(1, 3, 2, 2)], [found], [target])
    expected = (0.25 + 11 * 0.75) * 0.25 * torch.log(torch.tensor(2.0)) / (1 + 1)
    torch.testing.assert_close(loss, expected)


def test_the_mask_loss_is_zero_for_the_target_itself_and_three_for_its_opposite():
    target = objects([[8, 8, 40, 40], [44, 44, 60, 60]], [0, 1])
    found = [assign(target, [4], [(1, 2048)], extent=(64, 64))]
    grid = found[0].owners[0].flatten()
    dense = torch.zeros(2, 16, 16)
    dense[0, 2:10, 2:10] = 1
    dense[1, 11:15, 11:15] = 1

    def perfect(level: int, image: int, cells: Tensor) -> Tensor:
        return dense[grid[cells]]

    def opposite(level: int, image: int, cells: Tensor) -> Tensor:
        return 1 - perfect(level, image, cells)

    losses = [mask_loss(f, found, [target], strides=[4]) for f in (perfect, opposite)]
    assert losses[0].item() == pytest.approx(0, abs=1e-3)
    assert losses[1].item() == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_images_without_objects_teach_the_categories_only(form):
    net = build(form=form).train()
    losses = net.loss(torch.randn(2, 3, 64, 64), [objects([], [])] * 2)
    assert losses["mask"] == 0
    assert losses["category"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("form", FORMS)
def test_only_positive_cells_are_drawn_in_training(form, monkeypatch):
    """S * S masks would be 5 GB for two images of the paper's size."""
    net = build(form=form).train()
    drawn = []
    draw = net.masks.draw
    monkeypatch.setattr(net.masks, "draw", lambda *a: drawn.append(a[2].numel()) or draw(*a))
    target = objects([[8, 8, 20, 20]], [0])
    net.loss(torch.randn(1, 3, 64, 64), [target])
    found = assign(target, GRIDS, TINY.scale_ranges, extent=(64, 64)).owners
    assert drawn == [int((grid >= 0).sum()) for grid in found]


@pytest.mark.parametrize("form", FORMS)
def test_raw_holds_the_best_cells_of_each_level(form):
    net = build(form=form, cells_per_level=10, score_thresh=0.0).eval()
    images = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        raw = net(images)
        every = SOLO(dataclasses.replace(net.cfg, cells_per_level=10**6)).eval()
        every.load_state_dict(net.state_dict())
        whole = every(images)
    assert raw.scores.shape == (2, 4 * 10 + 9, 3)
    assert raw.masks.shape[:2] == (2, 49)
    silent = raw.scores.amax(2) == 0
    assert silent.any()
    assert not raw.masks[silent].any()
    assert raw.masks[~silent].flatten(1).any(1).all()
    at, start = 0, 0
    for side in GRIDS:
        count = min(10, side**2)
        best = whole.scores[:, at : at + side**2].amax(2).topk(count).values
        chosen = raw.scores[:, start : start + count].amax(2)
        torch.testing.assert_close(chosen, best)
        at, start = at + side**2, start + count


def test_of_equal_scores_the_lower_cells_are_drawn(monkeypatch):
    """As ONNX defines it, so that a runtime chooses the same ones."""
    net = build(cells_per_level=5).eval()
    torch.nn.init.zeros_(net.categories.classify.weight)
    torch.nn.init.constant_(net.categories.classify.bias, 9.0)
    seen = []
    draw = net.masks.draw
    monkeypatch.setattr(net.masks, "draw", lambda *a: seen.append(a[2].tolist()) or draw(*a))
    with torch.no_grad():
        net(torch.randn(1, 3, 64, 64))
    assert seen == [[list(range(5))]] * 5


@pytest.mark.parametrize("form", FORMS)
def test_only_cells_that_can_become_detections_are_drawn(form):
    """What is drawn is what a lower threshold draws, however many of each level and image it is."""
    every = build(form=form, score_thresh=0.0, mask_thresh=1e-5, final_thresh=0.0).eval()
    torch.nn.init.normal_(every.categories.classify.weight, std=2.0)
    images = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        whole = every(images)
        some = SOLO(dataclasses.replace(every.cfg, score_thresh=0.1)).eval()
        some.load_state_dict(every.state_dict())
        raw = some(images)
    heard = raw.scores.amax(2) > 0.1
    assert 0 < heard[0].sum() != heard[1].sum()
    assert not heard.all()
    assert torch.equal(raw.scores, whole.scores)
    torch.testing.assert_close(raw.masks, whole.masks * heard[:, :, None, None])
    sizes = [ImageSize.same((70, 90))] * 2
    for one, other in zip(some.decode(raw, sizes), some.decode(whole, sizes), strict=True):
        assert len(one) > 0
        torch.testing.assert_close(one.scores, other.scores)


def flat_raw(places, scores, *, grid=8, classes=3, side=16):
    """Raw of one image; each place is (level-0 cell, mask [side, side]); other cells are silent."""
    cells = sum(s**2 for s in (grid,) * 5)
    raw = Raw(torch.zeros(1, cells, classes), torch.zeros(1, cells, side, side))
    for (cell, mask), (label, score) in zip(places, scores, strict=True):
        raw.scores[0, cell, label] = score
        raw.masks[0, cell] = mask
    return raw


def square(y0, x0, y1, x1, value=0.9):
    mask = torch.zeros(16, 16)
    mask[y0:y1, x0:x1] = value
    return mask


DECODER = {"grids": (8,) * 5, "cells_per_level": 10**6}


def decode(raw, **changes):
    with torch.device("meta"):  # decoding reads no weights
        net = build(**DECODER, **changes)
    return net.decode(raw, [ImageSize.same((64, 64))])[0]


def test_a_score_is_category_times_maskness_and_boxes_are_extents():
    raw = flat_raw([(3, square(2, 3, 8, 9, 0.8))], [(1, 0.5)])
    found = decode(raw)
    assert found.labels.tolist() == [1]
    assert found.scores[0].item() == pytest.approx(0.5 * 0.8)
    # 4 pixels per cell; the edge, between 0.8 and 0, crosses 0.5 after 1.5 pixels of 4.
    torch.testing.assert_close(found.boxes[0], torch.tensor([12.0, 8, 36, 32]), rtol=0, atol=1)


def test_masks_must_exceed_their_level_stride_in_area():
    """Eight pixels on level 0 are too few, nine are enough; level 3 wants more than 32."""
    cell = 3 * 64
    for where, mask, stays in (
        (0, square(0, 0, 2, 4), False),
        (0, square(0, 0, 3, 3), True),
        (cell, square(0, 0, 4, 8), False),
        (cell, square(0, 0, 3, 11), True),
    ):
        assert len(decode(flat_raw([(where, mask)], [(0, 0.9)]))) == int(stays)


def test_duplicates_fall_within_a_class_and_a_cell_may_have_two_classes():
    a, b = square(2, 2, 10, 10), square(2, 2, 10, 11)
    raw = flat_raw([(0, a), (1, b), (2, a)], [(0, 0.9), (0, 0.8), (1, 0.7)])
    raw.scores[0, 0, 2] = 0.6
    for kind in ("gaussian", "linear", "mask"):
        found = decode(raw, suppression=kind, final_thresh=0.2)
        assert found.labels.tolist() == [0, 1, 2], kind
    # Matrix NMS lowers scores, greedy NMS removes.
    assert decode(raw, final_thresh=0.0).labels.tolist() == [0, 1, 2, 0]
    assert len(decode(raw, suppression="mask", final_thresh=0.0)) == 3
    assert len(decode(raw, detections_per_image=2)) == 2
    assert len(decode(raw, candidates=1)) == 1
    assert decode(raw, score_thresh=0.65).labels.tolist() == [0, 1, 0]


def test_equal_products_give_equal_detections():
    """Where SOLO's masks factorise, decoupled SOLO finds the same."""
    torch.manual_seed(0)
    branch = DecoupledMasks(4, (8,), width=8, convs=0)
    branch.columns[0], branch.rows[0] = (torch.nn.Conv2d(8, 8, 1) for _ in "xy")
    features = torch.randn(2, 1, 8, 16, 16)
    with torch.no_grad():
        split = branch.draw(0, tuple(features), torch.arange(64)[None])
        columns, rows = branch.columns[0](features[0]), branch.rows[0](features[1])
    whole = (columns.sigmoid()[:, None] * rows.sigmoid()[:, :, None]).flatten(1, 2)
    scores = torch.rand(1, 64, 3)
    rest = (torch.zeros(1, 4 * 64, 3), torch.zeros(1, 4 * 64, 16, 16))
    raws = [
        Raw(torch.cat([scores, rest[0]], 1), torch.cat([m, rest[1]], 1)) for m in (split, whole)
    ]
    ours, theirs = (decode(raw, mask_thresh=0.3) for raw in raws)
    assert len(ours) > 5
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.boxes, theirs.boxes)


def test_a_picture_without_detections():
    found = decode(flat_raw([], []))
    assert len(found) == 0
    assert found.size == (64, 64)


def test_statistics_do_not_depend_on_chunks(monkeypatch):
    masks, every = torch.rand(9, 7, 5), torch.arange(9)
    areas, maskness = mask_statistics(masks, every, thresh=0.5)
    for mask, area, mean in zip(masks, areas, maskness, strict=True):
        assert area == (mask > 0.5).sum()
        torch.testing.assert_close(mean, mask[mask > 0.5].mean())
    monkeypatch.setattr(module, "STATS_CHUNK", 60)
    for a, b in zip(mask_statistics(masks, every, thresh=0.5), (areas, maskness), strict=True):
        assert torch.equal(a, b)
    some = mask_statistics(masks, every[3:5], thresh=0.5)
    assert torch.equal(some[0], areas[3:5])
    assert mask_statistics(torch.zeros(1, 2, 2), torch.tensor([0]), thresh=0.5)[1].tolist() == [0]


def test_a_shift_of_the_picture_shifts_the_category_map():
    """By one grid cell of 8 pixels where the grid has the map's own size."""
    net = build(grids=(16, 16, 8, 4, 3)).eval()
    images = torch.zeros(1, 3, 128, 128)
    images[..., 40:56, 40:56] = torch.randn(3, 16, 16)
    moved = images.roll((32, 32), dims=(2, 3))

    def peak(x):
        with torch.no_grad():
            logits = net.categories(net.neck(net.backbone(x)))[0][0]
        inner = (logits - logits[:, :1, :1])[:, 3:-3, 3:-3].abs().amax(0)
        return divmod(int(inner.argmax()), inner.shape[1])

    here, there = peak(images), peak(moved)
    assert (there[0] - here[0], there[1] - here[1]) == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "wide"}, "form"),
        ({"suppression": "fast"}, "suppression"),
        ({"grids": (8, 4)}, "grids"),
        ({"scale_ranges": ((1, 2),)}, "scale_ranges"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(TINY, **changes)


def test_rows_of_the_table():
    rows = {name: entry for name, entry in SYSTEMS.items() if entry.system is SOLO}
    assert {"solo", "decoupled_solo", "decoupled_solo_light", "solov2"} <= set(rows)
    light = rows["decoupled_solo_light"].config
    assert light.scale_ranges == ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))


def test_masks_return_to_the_original_picture():
    """The content fills a corner of the input, and the picture had twice its size."""
    net = build(**DECODER)
    raw = flat_raw([(0, square(2, 2, 8, 8))], [(0, 0.9)])
    size = ImageSize(original=(96, 80), content=(48, 40), input=(64, 64))
    (found,) = net.decode(raw, [size])
    assert found.size == (96, 80)
    assert rle.areas(found.masks)[0] == pytest.approx(48 * 48, rel=0.1)
    torch.testing.assert_close(found.boxes[0], torch.tensor([16.0, 16, 64, 64]), rtol=0, atol=2)
