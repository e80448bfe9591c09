from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.nn.conventions import CONVENTIONS, POSITION_SENSITIVE
from pixelwise.nn.regions import UNCOUNTED, Proposals, Regions
from pixelwise.nn.rpn import RPN, AnchorGrid
from pixelwise.nn.score_maps import PartGrid, RegionOutput, ScoreMaps, make_rpn
from pixelwise.ops.boxes import decode_boxes, encode_boxes, pairwise_iou
from pixelwise.types import InstanceTarget
from tests import two_stage

K, SIDE = 2, 6
WEIGHTS = (5.0, 5.0, 2.0, 2.0)
make_target = partial(two_stage.make_target, size=(64, 96))


def head(
    *,
    with_masks: bool = True,
    box_blocks: int = 1,
    parts: int = 3,
    regions_per_image: int = 4,
    with_ohem: bool = False,
) -> ScoreMaps:
    torch.manual_seed(0)
    grid = PartGrid(parts=parts, side=SIDE if with_masks else parts, stride=16, mode="copy")
    return ScoreMaps(
        8,
        K,
        grid,
        with_masks=with_masks,
        box_blocks=box_blocks,
        width=4,
        weights=WEIGHTS,
        regions_per_image=regions_per_image,
        with_ohem=with_ohem,
    )


def make_regions(boxes: list[list[float]], labels: list[int], target: InstanceTarget) -> Regions:
    """Regions of one image, all matched with its first object."""
    frames = torch.tensor(boxes)
    gt = target.boxes[:1] if len(target) else frames[:1]
    return Regions(
        torch.cat([torch.zeros(len(boxes), 1), frames], dim=1),
        torch.tensor(labels),
        gt.expand(len(boxes), -1),
        torch.zeros(len(boxes), dtype=torch.int64),
        target.masks,
        K,
    )


def test_maps_and_what_is_read_of_them() -> None:
    net = head(box_blocks=2)
    maps = net(torch.randn(2, 8, 4, 6))
    assert maps.classes.shape == (2, (K + 1) * 2 * 9, 4, 6)
    assert maps.boxes.shape == (2, 8 * 9, 4, 6)
    output = net.predict(maps, torch.tensor([[0.0, 0, 0, 96, 64], [1, 16, 16, 48, 40]]))
    assert output.logits.shape == (2, K + 1)
    assert output.pairs.shape == (2, K + 1, 2, SIDE, SIDE)
    changed = maps._replace(boxes=maps.boxes.clone())
    changed.boxes[:, : 4 * 9] += 1  # the block of the background
    rois = torch.tensor([[0.0, 0, 0, 96, 64]])
    assert torch.equal(net.predict(changed, rois).deltas, net.predict(maps, rois).deltas)
    changed.boxes[:, 4 * 9 :] += 1
    shifted = net.predict(changed, rois).deltas - net.predict(maps, rois).deltas
    torch.testing.assert_close(shifted, torch.ones(1, 4))


def test_permuting_regions_permutes_the_output() -> None:
    net = head()
    maps = net(torch.randn(2, 8, 4, 6))
    rois = torch.tensor([[0.0, 0, 0, 96, 64], [1, 16, 16, 48, 40], [0, 5, 5, 60, 60]])
    order = torch.tensor([2, 0, 1])
    for a, b in zip(net.predict(maps, rois), net.predict(maps, rois[order]), strict=True):
        assert torch.equal(a[order], b)


def test_targets_by_hand() -> None:
    """An object of the left half: its mask within a region, and the box relative to the region."""
    target = make_target([[16, 16, 40, 48]], [1])
    regions = make_regions([[16, 16, 64, 48], [16, 16, 40, 48], [50, 0, 90, 60]], [1, 1, K], target)
    deltas, masks = head().targets(regions)
    expected = encode_boxes(regions.rois[:1, 1:], target.boxes, WEIGHTS)
    torch.testing.assert_close(deltas[:1], expected)
    assert not deltas[1:].any()
    half = torch.zeros(SIDE, SIDE)
    half[:, :3] = 1  # 24 of 48 columns are 3 of 6 cells
    assert torch.equal(masks[0], half)
    assert torch.equal(masks[1], torch.ones(SIDE, SIDE))
    assert not masks[2].any()


def test_errors_by_hand() -> None:
    target = make_target([[16, 16, 40, 48]], [1])
    regions = make_regions([[16, 16, 40, 48], [50, 0, 90, 60], [0, 0, 5, 5]], [1, K, -1], target)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, K + 1, generator=generator)
    deltas = torch.tensor([[0.5, -2.0, 0, 0]]).expand(3, -1)
    pairs = torch.randn(3, K + 1, 2, SIDE, SIDE, generator=generator)
    errors = head().errors(RegionOutput(logits, deltas, pairs), regions)
    log_probs = logits.log_softmax(dim=1)
    expected = torch.stack([-log_probs[0, 1], -log_probs[1, K], torch.tensor(0.0)])
    torch.testing.assert_close(errors["class"], expected)
    # Smooth L1 with beta 1: 0.5 * 0.25 and 2 - 0.5.
    torch.testing.assert_close(errors["box"], torch.tensor([0.125 + 1.5, 0, 0]))
    two_way = F.cross_entropy(pairs[:1, 1], torch.ones(1, SIDE, SIDE, dtype=torch.int64))
    torch.testing.assert_close(errors["mask"], torch.stack([10 * two_way, *torch.zeros(2)]))


def simple_output(logits: list[list[float]]) -> RegionOutput:
    count = len(logits)
    values = torch.tensor(logits, requires_grad=True)
    return RegionOutput(
        values, torch.zeros(count, 4), torch.zeros(count, K + 1, 2, SIDE, SIDE, requires_grad=True)
    )


def test_the_hardest_regions_teach() -> None:
    """Four regions, two to learn from: the object with its mask error, and the worst background."""
    target = make_target([[16, 16, 40, 48]], [1])
    regions = make_regions(
        [[16, 16, 40, 48], [50, 0, 90, 60], [60, 0, 90, 60], [0, 0, 5, 5]], [1, K, K, -1], target
    )
    output = simple_output([[0.0, 9, 0], [0, 0, 2], [3, 0, 0], [50, 0, 0]])
    losses = head(regions_per_image=2, with_ohem=True).loss(output, regions, images=1)
    sum(losses.values()).backward()
    assert output.logits.grad is not None
    # The object is well classified, but an undecided mask costs 10 log 2; the fourth is a crowd's.
    assert output.logits.grad.abs().sum(dim=1).gt(0).tolist() == [True, False, True, False]
    per_region = F.cross_entropy(output.logits, torch.tensor([1, K, K, 0]), reduction="none")
    torch.testing.assert_close(losses["class"], (per_region[0] + per_region[2]) / 2)
    torch.testing.assert_close(losses["mask"], 10 * torch.log(torch.tensor(2.0)) / 2)
    everything = head(regions_per_image=2).loss(output, regions, images=1)
    torch.testing.assert_close(everything["class"], per_region[:3].mean())


def test_a_crowd_alone_teaches_nothing() -> None:
    regions = make_regions([[16, 16, 40, 48]], [UNCOUNTED], make_target([], []))
    for with_ohem in (True, False):
        output = simple_output([[5.0, 0, 0]])
        losses = head(with_ohem=with_ohem).loss(output, regions, images=1)
        assert list(losses) == ["class", "box", "mask"]
        assert all(value.item() == 0 for value in losses.values())


def proposals_of(*boxes: list[float]) -> Proposals:
    frames = torch.tensor([boxes])
    return Proposals(frames, torch.zeros(1, len(boxes)), torch.ones(1, len(boxes)).bool())


def test_which_regions_are_learnt_from() -> None:
    """With OHEM all; else background must overlap an object a little, by 0.1."""
    found = proposals_of([10, 10, 30, 30], [20, 10, 40, 30], [26, 10, 46, 30], [60, 40, 90, 60])
    target = make_target([[10, 10, 30, 30]], [1])
    every = head(regions_per_image=2, with_ohem=True).sample(found, [target])
    assert every.labels.tolist() == [1, 1, K, K, K]  # a proposal and the object itself; the rest
    drawn = head(regions_per_image=8).sample(found, [target])
    boxes = drawn.rois[:, 1:].tolist()
    assert [10, 10, 30, 30] in boxes
    assert [20, 10, 40, 30] in boxes  # IoU 1/3
    assert [26, 10, 46, 30] in boxes  # IoU 1/9
    assert [60, 40, 90, 60] not in boxes  # IoU 0


def test_regions_in_a_crowd_are_neither_objects_nor_background() -> None:
    target = make_target([[0, 0, 50, 50]], [1], crowd=[True])
    found = proposals_of([10, 10, 30, 30], [60, 40, 90, 60])
    chosen = head(with_ohem=True).sample(found, [target])
    assert chosen.rois[:, 1:].tolist() == [[60, 40, 90, 60]]
    assert chosen.labels.tolist() == [K]


def test_refined_boxes_hold_a_pixel() -> None:
    net = head()
    boxes = torch.tensor([[10.0, 10, 30, 20], [80, 50, 90, 60]])
    assert torch.equal(net.refine(boxes, torch.zeros(2, 4), (64, 96)), boxes)
    far = net.refine(boxes, torch.tensor([[5.0, 0, 0, 0], [50, 50, 0, 0]]), (64, 96))
    # One width to the right; ten widths beyond the lower right corner.
    torch.testing.assert_close(far, torch.tensor([[30.0, 10, 50, 20], [95, 63, 96, 64]]))


def inclusive(boxes: Tensor) -> Tensor:
    return boxes - torch.tensor([0.0, 0, 1, 1])


def test_boxes_that_end_after_their_last_pixel_need_no_plus_one() -> None:
    """What the released code computes with x2 - x1 + 1 is what we compute one pixel further."""
    g = torch.Generator().manual_seed(3)
    corner = torch.rand(2, 6, 2, generator=g) * 40
    a, b = torch.cat([corner, corner + 5 + torch.rand(2, 6, 2, generator=g) * 40], dim=2)
    torch.testing.assert_close(
        pairwise_iou(a, b), pairwise_iou(inclusive(a), inclusive(b), plus_one=True)
    )
    deltas = encode_boxes(a, b, WEIGHTS)
    theirs = encode_boxes(inclusive(a), inclusive(b), WEIGHTS, plus_one=True)
    torch.testing.assert_close(deltas, theirs, rtol=1e-4, atol=1e-5)
    moved = decode_boxes(theirs, inclusive(a), WEIGHTS, plus_one=True)
    torch.testing.assert_close(
        inclusive(decode_boxes(deltas, a, WEIGHTS)), moved, rtol=1e-4, atol=1e-4
    )


def first_stage() -> RPN:
    torch.manual_seed(0)
    return make_rpn(
        8,
        hidden=6,
        stride=16,
        sizes=(32, 64),
        ratios=(0.5, 1.0, 2.0),
        proposals=12,
        min_side_px=4,
    )


def test_first_stage_has_two_maps_per_anchor() -> None:
    """The logit of a softmax over two is their difference; the background's maps come first."""
    rpn = first_stage()
    assert rpn.objectness.weight.shape == (2 * 6, 6, 1, 1)
    features = torch.randn(1, 8, 4, 6)
    scores = rpn.objectness(rpn.convs(features)).unflatten(1, (2, 6))
    probs = rpn.predict([features]).logits[0].sigmoid()
    torch.testing.assert_close(probs, scores.softmax(dim=1)[:, 1])


def test_anchors_are_those_of_faster_rcnn() -> None:
    """Scales 8, 16, 32 of a window of 16 pixels, as printed by the authors' code, last pixel in."""
    printed = [
        [-84, -40, 99, 55],
        [-176, -88, 191, 103],
        [-360, -184, 375, 199],
        [-56, -56, 71, 71],
        [-120, -120, 135, 135],
        [-248, -248, 263, 263],
        [-36, -80, 51, 95],
        [-80, -168, 95, 183],
        [-168, -344, 183, 359],
    ]
    grid = AnchorGrid.on_one_level((128, 256, 512), (0.5, 1.0, 2.0), 16, POSITION_SENSITIVE)
    placed = grid.place([torch.zeros(1, 1, 2, 3)], (32, 48))[0]
    assert inclusive(placed[:9]).tolist() == printed
    assert (placed[9:18] - placed[:9] == torch.tensor([16.0, 0, 16, 0])).all()


def test_anchors_that_reach_out_of_the_picture_are_not_learnt_from() -> None:
    """Nor do they take an object from the best anchor inside."""
    rpn = first_stage()
    anchors = torch.tensor([[-4.0, 0, 28, 32], [0, 0, 32, 32], [0, 0, 31, 66], [40, 20, 72, 52]])
    target = make_target([[0, 0, 28, 32]], [0])
    assert rpn._match(anchors, target).tolist() == [-2, 0, -2, -1]
    kept = RPN(8, rpn.anchors, CONVENTIONS["detectron2"])
    assert kept._match(anchors, target).tolist() == [0, 0, -2, -1]


@pytest.mark.parametrize("with_masks", [True, False])
def test_initial_scores_are_small(with_masks: bool) -> None:
    net = head(with_masks=with_masks)
    for conv in (net.class_maps, net.box_maps):
        assert 0.005 < conv.weight.std() < 0.015
        assert conv.bias is not None
        assert not conv.bias.any()
