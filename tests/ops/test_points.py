"""Points of a pyramid: places, the assignment beside a plain loop, centerness."""

import math

import pytest
import torch
from torch import Tensor

from pixelwise.ops.matching import BACKGROUND
from pixelwise.ops.points import (
    Points,
    assign_points,
    box_centerness,
    boxes_to_ltrb,
    ltrb_to_boxes,
    place_points,
)

BOUNDS = (64.0, 128.0)


def pyramid(height: int = 96, width: int = 128) -> Points:
    grids = [(math.ceil(height / s), math.ceil(width / s)) for s in (8, 16, 32)]
    return place_points(grids, (8, 16, 32), BOUNDS, torch.zeros(0))


def test_points_are_the_middle_pixels_of_their_cells() -> None:
    points = place_points([(2, 3), (1, 2)], (8, 16), (64.0,), torch.zeros(0))
    assert points.xy.tolist() == [
        [4, 4],
        [12, 4],
        [20, 4],
        [4, 12],
        [12, 12],
        [20, 12],
        [8, 8],
        [24, 8],
    ]
    assert points.strides.tolist() == [8] * 6 + [16] * 2
    assert points.ranges.tolist() == [[-1, 64]] * 6 + [[64, math.inf]] * 2


def by_hand(points: Points, boxes: Tensor, centres: Tensor, radius: float) -> list[int]:
    """The paper's rules, one point and one object at a time."""
    owners: list[int] = []
    for (x, y), stride, (least, largest) in zip(*(part.tolist() for part in points), strict=True):
        best, owner = math.inf, BACKGROUND
        for i, ((x1, y1, x2, y2), (cx, cy)) in enumerate(
            zip(boxes.tolist(), centres.tolist(), strict=True)
        ):
            inside = max(cx - radius * stride, x1) < x < min(cx + radius * stride, x2) and max(
                cy - radius * stride, y1
            ) < y < min(cy + radius * stride, y2)
            far = max(x - x1, y - y1, x2 - x, y2 - y)
            area = (x2 - x1) * (y2 - y1)
            if inside and least <= far <= largest and area < best:
                best, owner = area, i
        owners.append(owner)
    return owners


@pytest.mark.parametrize("around_mass", [False, True])
def test_assignment_equals_a_plain_loop(around_mass: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(12, 2, generator=generator) * torch.tensor([90.0, 60.0])
    sides = torch.rand(12, 2, generator=generator) * 70 + 6
    boxes = torch.cat([corner, corner + sides], dim=1)
    centres = corner + sides * (torch.rand(12, 2, generator=generator) if around_mass else 0.5)
    points = pyramid()
    found = assign_points(points, boxes, centres if around_mass else None, radius=1.5)
    assert found.tolist() == by_hand(points, boxes, centres, 1.5)
    assert len(set(found.tolist())) > 6


def test_the_border_of_the_centre_region_is_outside_it() -> None:
    points = place_points([(8, 8)], (8,), (), torch.zeros(0))
    # Centre at (32, 32), reach 12: of 4, 12, 20, ... those in 20 < x < 44.
    found = assign_points(points, torch.tensor([[0.0, 0.0, 64.0, 64.0]]), radius=1.5)
    taken = points.xy[found == 0]
    assert taken.unique().tolist() == [28, 36]
    # Around a point of the grid there are nine.
    found = assign_points(
        points, torch.tensor([[0.0, 0.0, 64.0, 64.0]]), torch.tensor([[28.0, 36.0]]), radius=1.5
    )
    assert int((found == 0).sum()) == 9


def test_both_ends_of_a_range_belong_to_it() -> None:
    points = pyramid()
    # The right side is 64 pixels from the point (36, 36) of stride 8 ...
    boxes = torch.tensor([[30.0, 30.0, 100.0, 60.0]])
    found = assign_points(points, boxes, torch.tensor([[36.0, 36.0]]), radius=0.1)
    assert points.xy[found == 0].tolist() == [[36, 36]]
    # ... and from the point (40, 40) of stride 16, whose range begins there.
    boxes = torch.tensor([[30.0, 30.0, 104.0, 60.0]])
    found = assign_points(points, boxes, torch.tensor([[40.0, 40.0]]), radius=0.1)
    assert points.xy[found == 0].tolist() == [[40, 40]]
    assert points.strides[found == 0].tolist() == [16]


def test_the_smallest_object_wins_and_pixels_count_inclusively() -> None:
    points = place_points([(4, 4)], (8,), (), torch.zeros(0))
    boxes = torch.tensor([[0.0, 0.0, 30.0, 10.0], [0.0, 0.0, 20.0, 15.2]])  # 300 and 304
    near = torch.tensor([[12.0, 4.0]]).expand(2, 2)
    at = (points.xy == torch.tensor([12.0, 4.0])).all(dim=1).nonzero().item()
    assert assign_points(points, boxes, near, radius=1.0)[at] == 0
    # 31 x 11 = 341 and 21 x 16.2 = 340.2
    assert assign_points(points, boxes, near, radius=1.0, plus_one=True)[at] == 1


def test_no_objects() -> None:
    points = pyramid()
    found = assign_points(points, torch.zeros(0, 4), radius=1.5)
    assert (found == BACKGROUND).all()
    assert len(found) == len(points.xy)


def test_distances_and_boxes_are_inverse() -> None:
    xy = torch.tensor([[10.0, 20.0], [3.0, 4.0]])
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [0.0, 1.0, 5.0, 6.0]])
    assert boxes_to_ltrb(xy, boxes)[0].tolist() == [9, 18, 20, 20]
    assert torch.equal(ltrb_to_boxes(xy, boxes_to_ltrb(xy, boxes)), boxes)


@pytest.mark.parametrize(
    ("ltrb", "expected"),
    [([2, 2, 2, 2], 1.0), ([1, 4, 4, 4], 0.5), ([1, 1, 4, 4], 0.25), ([3, 5, 3, 5], 1.0)],
)
def test_centerness(ltrb: list[float], expected: float) -> None:
    values = torch.tensor(ltrb, dtype=torch.float32)
    torch.testing.assert_close(box_centerness(values), torch.tensor(expected))
    torch.testing.assert_close(box_centerness(7 * values), torch.tensor(expected))
