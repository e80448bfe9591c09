"""Outlines: exact round trips through COCO's drawing rule, and hand-made polygons."""

import numpy as np
import pytest

from pixelwise.ops import rle
from pixelwise.ops.components import connected_components
from pixelwise.ops.polygons import (
    contains_point,
    is_self_crossing,
    join_rings,
    mask_to_polygons,
    polygon_area,
)


def draw(polygons, size):
    """Exteriors minus holes, each drawn by COCO's rule."""
    out = np.zeros(size, bool)
    for exterior, holes in polygons:
        piece = rle.decode(rle.from_polygons([[exterior.ravel().tolist()]], size))[0] > 0
        for hole in holes:
            piece &= ~(rle.decode(rle.from_polygons([[hole.ravel().tolist()]], size))[0] > 0)
        out |= piece
    return out


def random_mask(seed, size=(23, 31), share=0.5):
    rng = np.random.default_rng(seed)
    coarse = rng.random((size[0] // 3 + 1, size[1] // 3 + 1)) < share
    mask = np.kron(coarse, np.ones((3, 3))) > 0
    mask = mask[: size[0], : size[1]]
    return mask ^ (rng.random(size) < 0.03)


@pytest.mark.parametrize("seed", range(30))
def test_tracing_and_drawing_gives_the_same_mask(seed):
    mask = random_mask(seed, share=0.2 + 0.02 * seed)
    assert (draw(mask_to_polygons(mask), mask.shape) == mask).all()


@pytest.mark.parametrize("seed", range(30))
def test_joined_outline_draws_the_same_mask(seed):
    mask = random_mask(seed, share=0.2 + 0.02 * seed)
    if not mask.any():
        return
    rings = [r for exterior, holes in mask_to_polygons(mask) for r in (exterior, *holes)]
    joined = join_rings(rings)
    drawn = rle.decode(rle.from_polygons([[joined.ravel().tolist()]], mask.shape))[0] > 0
    assert (drawn == mask).all()


def test_ring_with_a_hole_and_an_island_in_it():
    mask = np.zeros((9, 9), int)
    mask[1:8, 1:8] = 1
    mask[3:6, 3:6] = 0
    mask[4, 4] = 1
    polygons = mask_to_polygons(mask, offset_xy=(10, 20))
    assert len(polygons) == 2
    (exterior, holes), (island, none) = sorted(polygons, key=lambda p: -polygon_area(p[0]))
    assert polygon_area(exterior) == 49
    assert [polygon_area(hole) for hole in holes] == [-9]
    assert (polygon_area(island), none) == (1, [])
    assert exterior.min(axis=0).tolist() == [11, 21]
    assert sorted(map(tuple, island)) == [(14, 24), (14, 25), (15, 24), (15, 25)]


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    polygons = mask_to_polygons(np.eye(2))
    assert [polygon_area(exterior) for exterior, _ in polygons] == [1, 1]
    assert not any(is_self_crossing(exterior) for exterior, _ in polygons)


def test_nothing_and_everything():
    assert mask_to_polygons(np.zeros((4, 5))) == []
    ((exterior, holes),) = mask_to_polygons(np.ones((4, 5)))
    assert polygon_area(exterior) == 20
    assert len(exterior) == 4
    assert holes == []


@pytest.mark.parametrize(
    ("points", "crosses", "why"),
    [
        ([(0, 0), (4, 0), (4, 4), (0, 4)], False, "square"),
        ([(0, 0), (4, 4), (4, 0), (0, 4)], True, "bow tie"),
        ([(0, 0), (4, 0), (0, 4)], False, "a triangle cannot"),
        ([(0, 0), (4, 0), (2, 0), (2, 3)], False, "a spike that goes back over itself touches"),
        ([(0, 0), (9, 0), (9, 9), (5, -1), (0, 9)], True, "a spike through the far side"),
        ([(0, 0), (4, 0), (4, 4), (2, 0), (0, 4)], False, "touches a side from inside"),
    ],
)
def test_self_crossing(points, crosses, why):
    assert is_self_crossing(np.array(points, float)) is crosses, why


def test_self_crossing_of_a_long_polygon():
    angle = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 100
    assert not is_self_crossing(circle)
    circle[[4000, 4001]] = circle[[4001, 4000]]
    assert is_self_crossing(circle)


def test_self_crossing_against_all_pairs():
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(300):
        points = rng.integers(0, 7, (int(rng.integers(4, 9)), 2)).astype(float)
        answers.append(is_self_crossing(points))
        assert answers[-1] is slow_self_crossing(points.tolist())
    assert 50 < sum(answers) < 290


def slow_self_crossing(points):
    def side(a, b, p):
        return np.sign((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]))

    sides = list(zip(points, points[1:] + points[:1], strict=True))
    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for a, b in sides
        for c, d in sides
    )


def test_contains_point():
    square = np.array([(0, 0), (4, 0), (4, 4), (0, 4)])
    assert contains_point(square, (2, 2))
    assert not contains_point(square, (5, 2))


def test_components_against_a_flood_fill():
    for seed in range(20):
        mask = random_mask(seed, share=0.4)
        found = connected_components(mask)
        assert ((found > 0) == mask).all()
        expected = flood_fill(mask)
        pairs = {(a, b) for a, b in zip(found[mask], expected[mask], strict=True)}
        assert len(pairs) == found.max(initial=0) == expected.max(initial=0)


def flood_fill(mask):
    labels = np.zeros(mask.shape, int)
    for y, x in np.argwhere(mask):
        if labels[y, x]:
            continue
        stack, number = [(y, x)], labels.max() + 1
        while stack:
            i, j = stack.pop()
            if (
                0 <= i < mask.shape[0]
                and 0 <= j < mask.shape[1]
                and mask[i, j]
                and not labels[i, j]
            ):
                labels[i, j] = number
                stack += [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return labels
