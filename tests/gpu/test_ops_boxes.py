"""Boxes, anchors, samplers and suppression: on the GPU as on the CPU."""

import pytest
import torch

from pixelwise.ops import anchors, boxes, matching, points, sampling, suppress
from tests.gpu.device import DEVICE, GPU, assert_near, both, same_on_both
from tests.gpu.drawn import disks, drawn, drawn_boxes

pytestmark = GPU


@same_on_both
def test_coded_boxes(device):
    refs, goals = drawn_boxes(40, seed=1).to(device), drawn_boxes(40, seed=2).to(device)
    deltas = boxes.encode_boxes(refs, goals, (10, 10, 5, 5), plus_one=True)
    back = boxes.decode_boxes(deltas, refs, (10, 10, 5, 5), plus_one=True)
    return deltas, back, boxes.pairwise_iou(refs, goals), boxes.pairwise_ioa(refs, goals)


@same_on_both
def test_clipped_boxes(device):
    return boxes.clip_boxes(drawn_boxes(40).to(device) * 2 - 60, (80, 100))


@same_on_both
def test_placed_anchors(device):
    base = anchors.base_anchors((16.0, 32.0), (0.5, 1.0, 2.0)).to(device)
    grid = anchors.grid_anchors(base, (7, 9), (8, 8))
    return grid, anchors.centred_anchors(base, (7, 9), (55.0, 70.0)), anchors.square_anchors(base)


@pytest.mark.parametrize("low_quality_to", ["most", "last"])
def test_matching(low_quality_to):
    def match(device):
        iou = boxes.pairwise_iou(drawn_boxes(9).to(device), drawn_boxes(300, seed=3).to(device))
        return (
            matching.match_boxes(
                iou, high=0.5, low=0.3, allow_low_quality=True, low_quality_to=low_quality_to
            ),
            matching.match_one_each(iou, high=0.5, low=0.4),
            matching.match_boxes(iou[:0], high=0.5, low=0.4),
        )

    assert_near(*both(match), tol=0)


@same_on_both
def test_points_of_a_pyramid(device):
    like = torch.zeros(0, device=device)
    placed = points.place_points([(12, 16), (6, 8)], [8, 16], [40.0], like)
    goals = drawn_boxes(12).to(device)
    owner = points.assign_points(placed, goals, radius=1.5)
    ltrb = points.boxes_to_ltrb(placed.xy[:, None], goals).abs() + 1
    return placed, owner, points.box_centerness(ltrb), points.ltrb_to_boxes(placed.xy, ltrb[:, 0])


@same_on_both
def test_hardest_samples(device):
    losses, groups = drawn(200).abs().to(device), torch.arange(200, device=device) % 3
    return sampling.sample_hardest(losses, groups, count=20)


def test_balanced_samples():
    """Drawn on either device by a generator on either; what is drawn differs, the counts do not."""
    matches = (torch.arange(400) % 7 - 2).clamp(min=-2)
    for place in {DEVICE.type, "cpu"}:
        chance = torch.Generator(place).manual_seed(0)
        positive, background = sampling.sample_balanced(
            matches.to(DEVICE), count=64, positive_frac=0.25, generator=chance
        )
        assert len(positive) == 16
        assert len(background) == 48
        assert positive.device.type == background.device.type == DEVICE.type
        assert bool((matches.to(DEVICE)[positive] >= 0).all())
        assert bool((positive.diff() > 0).all())


@pytest.mark.parametrize("groups", [0, 1, 5, 60])
@pytest.mark.parametrize("count", [0, 1, 30, 700])
def test_greedy_nms(count, groups):
    """With loops over groups, without any group, and where most boxes have no rival."""

    def keep(device):
        labels = (torch.arange(count) * 7 % max(1, groups)).to(device) if groups else None
        frames, scores = drawn_boxes(count).to(device), drawn(count, seed=5).to(device)
        return suppress.greedy_nms(frames, scores, labels, iou_thresh=0.4)

    assert_near(*both(keep), tol=0)


@pytest.mark.parametrize(
    "method", ["fast_nms", "fast_nms_across_classes", "top_k_nms", "classwise_nms"]
)
@pytest.mark.parametrize("classes", [1, 20])
def test_nms_of_class_scores(method, classes):
    def detect(device):
        scores = drawn(300, classes, seed=6).float().to(device)
        frames = drawn_boxes(300).to(device)
        if method == "classwise_nms":
            return suppress.classwise_nms(
                frames, scores, score_thresh=0.5, iou_thresh=0.5, count=40
            )
        call = getattr(suppress, method)
        position, label, score = call(frames, scores, iou_thresh=0.5, top_k=50, count=40)
        empty = score < 0  # whatever stands in such a place
        return position.masked_fill(empty, 0), label.masked_fill(empty, 0), score

    assert_near(*both(detect), tol=1e-6, what=method)


@same_on_both
def test_suppressed_masks(device):
    solid = disks(30).flatten(1).bool().to(device)
    labels, scores = torch.arange(30, device=device) % 2, drawn(30).abs().float().to(device)
    return (
        suppress.pairwise_mask_iou(solid),
        suppress.mask_nms(solid, labels, scores, iou_thresh=0.3),
        suppress.matrix_nms(solid, labels, scores),
        suppress.matrix_nms(solid, labels, scores, kernel="linear"),
        suppress.point_nms(drawn(2, 3, 9, 11).abs().to(device)),
        suppress.largest_better_overlap(drawn_boxes(20).to(device)),
    )


def test_mask_overlaps_in_mixed_precision():
    """Sums of more than 256 pixels are no bf16 numbers."""
    solid = disks(30).flatten(1).bool()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = suppress.pairwise_mask_iou(solid.to(DEVICE))
    assert_near(found, suppress.pairwise_mask_iou(solid), tol=1e-7)
