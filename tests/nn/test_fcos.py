"""FCOS: which points learn what, closed forms of its losses, the choice of detections."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixelwise.nn.fcos import (
    PointOutput,
    Selection,
    best_pairs,
    box_targets,
    fcos_detect,
    fcos_loss,
    gather_objects,
    match_points,
    positives_of,
    suppress,
)
from pixelwise.ops.matching import BACKGROUND, IGNORED
from pixelwise.ops.points import Points, box_centerness, place_points
from pixelwise.types import InstanceTarget, MaskCrops

GRIDS, STRIDES = [(8, 8), (4, 4)], (8, 16)
CELLS = [64, 16]
SELECTION = Selection(
    score_thresh=0.05, with_centerness=False, per_level=20, iou_thresh=0.6, count=10
)


def points() -> Points:
    return place_points(GRIDS, STRIDES, (30.0,), torch.zeros(0))


def target(boxes: list[list[float]], labels: list[int], crowd: list[bool]) -> InstanceTarget:
    return InstanceTarget(
        boxes=torch.tensor(boxes).view(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=MaskCrops.empty((64, 64)),
        crowd=torch.tensor(crowd, dtype=torch.bool),
    )


def example() -> list[InstanceTarget]:
    """A crowd before the object, so that positions among objects are not those in the target."""
    return [
        target([[40, 40, 64, 64], [4, 4, 28, 28]], [1, 2], [True, False]),
        target([], [], []),
        target([[0, 0, 62, 62], [30, 30, 30, 40]], [0, 1], [False, False]),
    ]


def test_matches_name_objects_crowds_and_background() -> None:
    found = match_points(points(), example())
    assert set(found[0].tolist()) == {BACKGROUND, IGNORED, 1}
    crowded = points().xy[found[0] == IGNORED]
    assert crowded.min() >= 40
    assert (found[1] == BACKGROUND).all()
    assert set(found[2].tolist()) == {BACKGROUND, 0}  # a box without area is no object
    assert (points().strides[found[2] == 0] == 16).all()  # 31 pixels are too many for stride 8


def test_values_of_objects_reach_their_points() -> None:
    matches = match_points(points(), example())
    found = positives_of(matches)
    labels = gather_objects([t.labels for t in example()], found)
    assert labels.tolist() == [2 if image == 0 else 0 for image in found.image.tolist()]
    ltrb = box_targets(points(), found, example())
    xy = points().xy[found.point] / points().strides[found.point, None]
    boxes = gather_objects([t.boxes for t in example()], found)
    torch.testing.assert_close(
        (ltrb[:, 0] + ltrb[:, 2]) * points().strides[found.point], boxes[:, 2] - boxes[:, 0]
    )
    assert (ltrb[:, :2] < xy + 1e-6).all()


def output(logit: float = 0.0) -> PointOutput:
    return PointOutput(
        torch.full((3, 80, 3), logit), torch.full((3, 80, 4), 1.5), torch.zeros(3, 80)
    )


def test_closed_form_of_the_losses() -> None:
    """At p = 1/2: focal loss alpha_t / 4 log 2, cross entropy log 2."""
    matches = match_points(points(), example())
    positives = int((matches >= 0).sum())
    counted = int((matches != IGNORED).sum())
    losses = fcos_loss(output(), points(), matches, example())
    focal = (0.25 * positives + 0.75 * (3 * counted - positives)) * 0.25 * math.log(2)
    assert losses["class"].item() == pytest.approx(focal / positives, rel=1e-5)
    assert losses["centerness"].item() == pytest.approx(math.log(2), rel=1e-5)


def test_a_perfect_box_costs_nothing_whatever_its_kind() -> None:
    matches = match_points(points(), example())
    found = positives_of(matches)
    ltrb = output().ltrb.clone()
    ltrb[found.image, found.point] = box_targets(points(), found, example())
    for kind in ("log", "linear", "giou"):
        losses = fcos_loss(output()._replace(ltrb=ltrb), points(), matches, example(), kind=kind)
        assert losses["box"].item() == pytest.approx(0, abs=1e-6)


def test_boxes_weigh_by_their_centerness() -> None:
    matches = match_points(points(), example())
    found = positives_of(matches)
    wanted = box_targets(points(), found, example())
    weights = box_centerness(wanted)
    ltrb = output().ltrb.clone()
    ltrb[found.image, found.point] = wanted
    ltrb[found.image[0], found.point[0]] = 0  # one empty box: 1 - IoU is nearly 1
    losses = fcos_loss(output()._replace(ltrb=ltrb), points(), matches, example(), kind="linear")
    area = (wanted[0, :2] + wanted[0, 2:]).prod()
    expected = weights[0] / weights.sum() * (1 - 1 / (area + 1))
    torch.testing.assert_close(losses["box"], expected)


def test_without_objects_only_the_classes_learn() -> None:
    empty = [target([], [], [])] * 3
    losses = fcos_loss(output(), points(), match_points(points(), empty), empty)
    assert losses["box"] == losses["centerness"] == 0
    assert losses["class"] > 0


def scene(scores: dict[tuple[int, int], float]) -> PointOutput:
    """One image; probabilities by point and class, all others 0.01, boxes of 2 strides."""
    probs = torch.full((1, 80, 3), 0.01)
    for (point, label), value in scores.items():
        probs[0, point, label] = value
    return PointOutput(probs.logit(), torch.ones(1, 80, 4), torch.full((1, 80), 20.0))


def test_scores_are_roots_and_neighbours_fall() -> None:
    found = fcos_detect(
        scene({(9, 0): 0.81, (10, 0): 0.5, (40, 2): 0.25}), points(), CELLS, SELECTION
    )
    assert found.valid[0].tolist() == [True] * 3 + [False] * 7
    torch.testing.assert_close(found.scores[0, :3], torch.tensor([0.9, 0.5**0.5, 0.5]))
    assert found.points[0, :3].tolist() == [9, 10, 40]
    assert found.labels[0, :3].tolist() == [0, 0, 2]
    assert found.boxes[0, 0].tolist() == [4, 4, 20, 20]  # point (12, 12), 8 to each side
    # Two boxes shifted by half of their width have an IoU of 1/3.
    strict = replace(SELECTION, iou_thresh=0.3)
    found = fcos_detect(scene({(9, 0): 0.81, (10, 0): 0.5, (10, 1): 0.5}), points(), CELLS, strict)
    assert found.points[0][found.valid[0]].tolist() == [9, 10]
    assert found.labels[0][found.valid[0]].tolist() == [0, 1]


def test_the_threshold_may_hold_for_the_product() -> None:
    given = scene({(9, 0): 0.08})._replace(centerness=torch.zeros(1, 80))  # centerness 1/2
    assert fcos_detect(given, points(), CELLS, SELECTION).valid.sum() == 1
    product = replace(SELECTION, with_centerness=True)
    assert fcos_detect(given, points(), CELLS, product).valid.sum() == 0


def test_pairs_are_chosen_level_by_level() -> None:
    scores = torch.arange(12.0).view(6, 2)  # four points of one level, two of the next
    values, point, label = best_pairs(scores, [4, 2], 3)
    assert values.tolist() == [7, 6, 5, 11, 10, 9]
    assert point.tolist() == [3, 3, 2, 5, 5, 4]
    assert label.tolist() == [1, 0, 1, 1, 0, 1]


def test_more_places_than_candidates() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(3, 1)
    parts = suppress(
        boxes,
        torch.tensor([0.5, -1.0, -1.0]),
        torch.tensor([2, 0, 1]),
        torch.zeros(3, dtype=torch.int64),
        iou_thresh=0.5,
        count=5,
    )
    shapes: list[Tensor] = list(parts)
    assert [len(part) for part in shapes] == [5] * 5
    assert shapes[3].tolist() == [True] + [False] * 4
    assert shapes[4].tolist() == [2, 0, 0, 0, 0]
