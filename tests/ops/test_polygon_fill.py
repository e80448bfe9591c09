"""Filling of polygons, beside a pixel by pixel test and Bresenham's loop."""

import numpy as np
import pytest

from pixelwise.ops import rle
from pixelwise.ops.polygon_fill import fill_polygons


def line_pixels(a: tuple[int, int], b: tuple[int, int]) -> set[tuple[int, int]]:
    """Bresenham's algorithm with its running error, from the left end to the right one."""
    (x, y), (x1, y1) = (a, b) if a[0] <= b[0] else (b, a)
    dx, dy, down = x1 - x, abs(y1 - y), 1 if y1 > y else -1
    steep = dy > dx
    error = (dy - 2 * dx) if steep else (dx - 2 * dy)
    pixels = {(x, y)}
    for _ in range(max(dx, dy)):
        if error < 0:
            x, y = (x + 1, y) if steep else (x, y + down)
            error += 2 * max(dx, dy)
        x, y = (x, y + down) if steep else (x + 1, y)
        error -= 2 * min(dx, dy)
        pixels.add((x, y))
    return pixels


def by_hand(corners: list[tuple[int, int]], size: tuple[int, int]) -> np.ndarray:
    """A pixel is inside if an odd number of sides lies below it, or on a side's line."""
    mask = np.zeros(size, np.uint8)
    sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
    for y in range(size[0]):
        for x in range(size[1]):
            below = 0
            for (x0, y0), (x1, y1) in (sorted(side) for side in sides):
                if x0 <= x < x1:  # the row of the side at x, times x1 - x0
                    below += y0 * (x1 - x0) + (y1 - y0) * (x - x0) > y * (x1 - x0)
            mask[y, x] = below % 2
    for a, b in sides:
        for x, y in line_pixels(a, b):
            mask[y, x] = 1
    return mask


@pytest.mark.parametrize("count", [3, 5, 9])
def test_random_polygons_that_cross_themselves(count: int) -> None:
    size = (19, 23)
    generator = np.random.default_rng(count)
    corners = np.stack([generator.integers(0, n, (25, count)) for n in (size[1], size[0])], axis=2)
    found = rle.decode(fill_polygons(corners, size))
    for polygon, mask in zip(corners.tolist(), found, strict=True):
        np.testing.assert_array_equal(mask, by_hand([(x, y) for x, y in polygon], size))


@pytest.mark.parametrize(
    ("corners", "area", "why"),
    [
        ([(2, 3), (2, 3), (2, 3)], 1, "a point is a pixel"),
        ([(2, 3), (6, 3), (2, 3)], 5, "a line"),
        ([(2, 1), (2, 7), (2, 1)], 7, "an upright line"),
        ([(1, 1), (1, 4), (5, 4), (5, 1)], 20, "a rectangle with its border"),
        ([(5, 1), (5, 4), (1, 4), (1, 1)], 20, "the same the other way round"),
    ],
)
def test_outlines_belong_to_the_mask(corners: list, area: int, why: str) -> None:
    assert rle.areas(fill_polygons(np.array([corners]), (9, 9)))[0] == area, why


def test_no_polygons_and_windows_are_tight() -> None:
    assert len(fill_polygons(np.zeros((0, 5, 2), np.int64), (4, 4))) == 0
    found = fill_polygons(np.array([[(3, 2), (7, 2), (5, 6)]]), (20, 30))
    assert found.windows.tolist() == [[3, 2, 8, 7]]


def test_many_polygons_are_drawn_in_groups() -> None:
    corners = np.tile(np.array([[(0, 0), (0, 999), (999, 999), (999, 0)]]), (60, 1, 1))
    assert (rle.areas(fill_polygons(corners, (1000, 1000))) == 10**6).all()
