"""Outlines of masks, beside a border follower that walks one pixel at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelwise.ops import rle
from pixelwise.ops.components import connected_components
from pixelwise.ops.contours import Contours, centroids, largest_contours, subdivide
from pixelwise.types import MaskCrops

# Neighbours clockwise on the screen, from the west.
AROUND = [(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1)]


def follow(mask: np.ndarray) -> list[tuple[int, int]]:
    """The outer border of the piece with the first pixel, by Suzuki and Abe, steps 3.1 to 3.5."""
    solid = np.pad(mask, 1)
    y, x = (int(v) for v in np.argwhere(solid)[0])

    def is_solid(y: int, x: int, k: int) -> bool:
        return bool(solid[y + AROUND[k % 8][0], x + AROUND[k % 8][1]])

    first = next((k for k in range(8) if is_solid(y, x, k)), None)
    if first is None:
        return [(x - 1, y - 1)]
    start, end = (y, x), (y + AROUND[first][0], x + AROUND[first][1])
    points, came = [], first
    while True:
        points.append((x - 1, y - 1))
        step = next(k for k in range(came - 1, came - 9, -1) if is_solid(y, x, k)) % 8
        ahead = (y + AROUND[step][0], x + AROUND[step][1])
        if ahead == start and (y, x) == end:
            return points
        (y, x), came = ahead, (step + 4) % 8


def twice_area(points: list[tuple[int, int]]) -> int:
    x, y = np.array(points).T
    return abs(int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()))


def largest_by_hand(mask: np.ndarray) -> list[tuple[int, int]]:
    pieces = connected_components(mask.astype(bool))
    borders = [follow(pieces == number) for number in range(1, int(pieces.max()) + 1)]
    return max(borders, key=twice_area)  # the first of equal ones


def drawn(rows: list[str]) -> Tensor:
    return torch.tensor([[c == "#" for c in row] for row in rows], dtype=torch.uint8)


def outlines(contours: Contours) -> list[list[tuple[int, int]]]:
    parts = contours.xy.split(contours.starts.diff().tolist())
    return [[(x, y) for x, y in part.tolist()] for part in parts]


@pytest.mark.parametrize("density", [0.2, 0.45, 0.6, 0.9])
def test_noise_of_many_sizes_equals_the_walk(density: float) -> None:
    """Pieces that touch at corners, holes, single pixels, lines; all masks in one call."""
    generator = np.random.default_rng(int(100 * density))
    masks = np.zeros((40, 24, 30), np.uint8)
    for i, mask in enumerate(masks):
        h, w = generator.integers(1, 24), generator.integers(1, 30)
        mask[:h, :w] = generator.random((h, w)) < density
        mask[i % 24, i % 30] = 1
    found = largest_contours(rle.crops_from_dense(torch.from_numpy(masks)), torch.arange(40))
    assert outlines(found) == [largest_by_hand(mask) for mask in masks]


def test_loose_windows_and_a_choice_of_masks() -> None:
    dense = torch.zeros(3, 9, 12, dtype=torch.uint8)
    dense[0, 2:5, 3:8] = 1
    dense[2, 1, 1] = 1
    windows = torch.tensor([[1, 0, 12, 9], [0, 0, 0, 0], [0, 0, 5, 7]])
    pixels = [dense[i, y0:y1, x0:x1].reshape(-1) for i, (x0, y0, x1, y1) in enumerate(windows)]
    masks = MaskCrops((9, 12), windows, torch.cat(pixels))
    found = outlines(largest_contours(masks, torch.tensor([2, 0, 1, 2])))
    assert [len(points) for points in found] == [1, 12, 0, 1]
    assert found[0] == found[3] == [(1, 1)]
    assert found[1] == largest_by_hand(dense[0].numpy())


def test_order_starts_at_the_first_pixel_and_goes_down() -> None:
    found = outlines(
        largest_contours(
            rle.crops_from_dense(drawn(["....", ".##.", ".##."])[None]), torch.arange(1)
        )
    )
    assert found == [[(1, 1), (1, 2), (2, 2), (2, 1)]]


def test_a_hole_is_filled_and_the_larger_part_kept() -> None:
    ring = ["#####..", "#...#..", "#.#.#.#", "#...#..", "#####.#"]
    (found,) = outlines(largest_contours(rle.crops_from_dense(drawn(ring)[None]), torch.arange(1)))
    assert set(found) == {(x, y) for x in range(5) for y in range(5) if {x, y} & {0, 4}}


def test_subdivided_outlines_pass_the_same_pixels() -> None:
    dense = torch.stack([drawn(["###.", "###.", "...."]), drawn(["...#", "..##", ".#.."])])
    pixels = largest_contours(rle.crops_from_dense(dense), torch.arange(2))
    fine = subdivide(pixels, 4)
    assert torch.equal(fine.xy[::4], pixels.xy.float())
    assert fine.starts.tolist() == [4 * start for start in pixels.starts.tolist()]
    for begin, end in pairwise(fine.starts.tolist()):
        own = fine.xy[begin:end]
        steps = (own.roll(-1, 0) - own).abs().amax(dim=1)  # also from the last to the first
        assert (steps == 0.25).all()


def test_no_masks() -> None:
    found = largest_contours(MaskCrops.empty((5, 5)), torch.zeros(0, dtype=torch.int64))
    assert found.starts.tolist() == [0]
    assert found.xy.shape == (0, 2)
    assert centroids(found).shape == (0, 2)
    assert subdivide(found, 4).xy.shape == (0, 2)


@pytest.mark.parametrize(
    ("rows", "expected", "why"),
    [
        (["#"], (0, 0), "one pixel"),
        (["#####"], (2, 0), "a line has no area: the mean of its points"),
        (["##"], (0, 0), "0.5, rounded down"),
        (["#..", ".#.", "..#"], (1, 1), "a slanted line"),
        (["####"] * 4, (1, 1), "1.5, rounded down"),
        (["######", "######", "##....", "##....", "##...."], (1, 1), "an L: 1.75 and 1.25"),
    ],
)
def test_centroids(rows: list[str], expected: tuple[int, int], why: str) -> None:
    masks = rle.crops_from_dense(drawn(rows)[None])
    assert centroids(largest_contours(masks, torch.arange(1)))[0].tolist() == list(expected), why


def test_centroids_of_polygons_beside_exact_arithmetic() -> None:
    """Green's theorem in whole numbers; a quotient that is whole may be rounded to one less."""
    generator = np.random.default_rng(1)
    masks = (generator.random((60, 16, 16)) < 0.75).astype(np.uint8)
    contours = largest_contours(rle.crops_from_dense(torch.from_numpy(masks)), torch.arange(60))
    for points, centre in zip(outlines(contours), centroids(contours).tolist(), strict=True):
        xy = np.array(points)
        ahead = np.roll(xy, -1, axis=0)
        cross = xy[:, 0] * ahead[:, 1] - ahead[:, 0] * xy[:, 1]
        moment = ((xy + ahead) * cross[:, None]).sum(0)
        for value, axis in zip(centre, moment.tolist(), strict=True):
            whole, rest = divmod(axis, 3 * int(cross.sum()))
            assert value in ((whole, whole - 1) if rest == 0 else (whole,))
