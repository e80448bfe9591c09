"""Rays: beside a loop over rays, round trips through polygons, the traps of the encoding."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelwise.ops import rle
from pixelwise.ops.contours import Contours, centroids, largest_contours
from pixelwise.ops.polar import NO_RAY, contour_rays, polar_centerness, ray_angles, ray_ends
from pixelwise.ops.polygon_fill import fill_polygons

SIZE = (160, 200)


def rays_by_hand(contour: Tensor, point: list[float], rays: int) -> list[float]:
    """The paper's rule, one ray after another."""
    by_degree: dict[int, float] = {}
    for x, y in contour.tolist():
        degree = math.floor(math.degrees(math.atan2(x - point[0], y - point[1])) + 1e-9) % 360
        distance = math.hypot(x - point[0], y - point[1])
        by_degree[degree] = max(distance, by_degree.get(degree, 0.0))
    lengths: list[float] = []
    for ray in range(rays):
        degree = 360 * ray // rays
        near = (degree + offset for offset in (0, 1, -1, 2, -2, 3, -3))
        found = next((by_degree[d] for d in near if d in by_degree), NO_RAY)
        lengths.append(max(found, NO_RAY))
    return lengths


def contours_of(masks: np.ndarray) -> Contours:
    crops = rle.crops_from_dense(torch.from_numpy(masks.astype(np.uint8)))
    return largest_contours(crops, torch.arange(len(masks)))


@pytest.mark.parametrize("rays", [4, 36, 50, 72, 360])
def test_all_at_once_equals_a_loop_over_rays(rays: int) -> None:
    generator = np.random.default_rng(rays)
    masks = generator.random((4, 30, 40)) < 0.7
    contours = contours_of(masks)
    points = torch.from_numpy(generator.integers(-3, 33, (9, 2))).float()
    owner = torch.from_numpy(generator.integers(0, 4, 9))
    found = contour_rays(contours, points, owner, rays=rays)
    for lengths, point, i in zip(found, points.tolist(), owner.tolist(), strict=True):
        contour = contours.xy[contours.starts[i] : contours.starts[i + 1]]
        expected = torch.tensor(rays_by_hand(contour, point, rays))
        torch.testing.assert_close(lengths, expected, rtol=1e-6, atol=0)


def test_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    contours = contours_of(np.random.default_rng(0).random((3, 20, 20)) < 0.8)
    points, owner = torch.rand(7, 2).mul(20).floor(), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    whole = contour_rays(contours, points, owner, rays=36)
    monkeypatch.setattr("pixelwise.ops.polar._PAIRS_CHUNK", 50)
    assert torch.equal(contour_rays(contours, points, owner, rays=36), whole)


def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return x, y


def star(points: int = 7, depth: float = 0.25) -> np.ndarray:
    """A star-shaped blob whose radius swings around 60 pixels."""
    x, y = grid()
    angle = np.arctan2(x - 100, y - 80)
    return np.hypot(x - 100, y - 80) < 60 * (1 + depth * np.cos(points * angle))


def round_trip(mask: np.ndarray, rays: int) -> float:
    """IoU of a mask with the polygon of its rays from its mass centre."""
    contours = contours_of(mask[None])
    centre = centroids(contours).float()
    ends = ray_ends(centre, contour_rays(contours, centre, torch.zeros(1).long(), rays=rays))
    drawn = rle.decode(fill_polygons(ends.round().long().numpy(), SIZE))[0] != 0
    return float((mask & drawn).sum() / (mask | drawn).sum())


def test_more_rays_describe_a_mask_better() -> None:
    ious = [round_trip(star(), rays) for rays in (18, 36, 72)]
    assert ious == sorted(ious)
    assert ious[1] > 0.9
    assert ious[2] > 0.96


@pytest.mark.parametrize(("rays", "expected"), [(18, 0.980), (36, 0.995), (72, 0.999)])
def test_a_circle_loses_what_its_inscribed_polygon_loses(rays: int, expected: float) -> None:
    ends = ray_ends(torch.zeros(2, dtype=torch.float64), torch.ones(rays, dtype=torch.float64))
    x, y = ends.T
    area = 0.5 * (x * y.roll(-1) - x.roll(-1) * y).sum().abs()
    assert (area / math.pi).item() == pytest.approx(expected, abs=5e-4)


def test_zero_degrees_point_down_and_ninety_right() -> None:
    ends = ray_ends(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(
        ends, torch.tensor([[10.0, 21.0], [12.0, 20.0], [10.0, 17.0], [6.0, 20.0]])
    )
    assert ray_angles(36, ends).tolist() == list(range(0, 360, 10))
    assert ray_angles(50, ends)[:4].tolist() == [0, 7, 14, 21]


def test_four_rays_are_the_distances_of_fcos() -> None:
    """Of a box about its centre: bottom, right, top, left; with 36 rays, those at 0, 90, ...."""
    mask = np.zeros(SIZE, bool)
    mask[30:91, 40:121] = True  # 81 x 61 pixels around (80, 60)
    contours = contours_of(mask[None])
    centre = centroids(contours).float()
    assert centre.tolist() == [[80, 60]]
    few = contour_rays(contours, centre, torch.zeros(1).long(), rays=4)[0]
    many = contour_rays(contours, centre, torch.zeros(1).long(), rays=36)[0]
    # The farthest pixel of a degree may stand one or two rows beside the axis.
    torch.testing.assert_close(few, torch.tensor([30.0, 40.0, 30.0, 40.0]), rtol=2e-4, atol=0)
    assert torch.equal(many[[0, 9, 18, 27]], few)


def test_a_u_has_rays_that_end_nowhere() -> None:
    mask = np.zeros(SIZE, bool)
    mask[20:120, 40:140] = True
    mask[20:100, 60:120] = False  # the mass centre falls into the bay
    contours = contours_of(mask[None])
    centre = centroids(contours).float()
    x, y = (int(v) for v in centre[0])
    assert not mask[y, x]
    rays = contour_rays(contours, centre, torch.zeros(1).long(), rays=36)
    assert (rays == NO_RAY).sum() >= 3
    assert polar_centerness(rays).item() < 1e-3


def test_of_several_crossings_the_farthest_counts() -> None:
    mask = np.zeros(SIZE, bool)
    mask[60:100, 20:180] = True
    mask[70:90, 120:160] = False  # a bay that opens upwards
    mask[60:70, 120:160] = False
    contours = contours_of(mask[None])
    rays = contour_rays(contours, torch.tensor([[60.0, 75.0]]), torch.zeros(1).long(), rays=4)
    assert rays[0, 1].item() == pytest.approx(179 - 60, rel=1e-3)


def test_the_first_ray_does_not_look_back_over_zero() -> None:
    """A released quirk: degrees 357 to 359 belong to no ray, 1 to 3 to the first."""
    for degree in range(360):
        angle = math.radians(degree + 0.5)
        pixel = [[round(3000 * math.sin(angle)), round(3000 * math.cos(angle))]]
        contours = Contours(torch.tensor(pixel), torch.tensor([0, 1]))
        rays = contour_rays(contours, torch.zeros(1, 2), torch.zeros(1).long(), rays=36)[0]
        met = (rays > 1).nonzero()[:, 0].tolist()
        expected = [
            a // 10
            for a in range(0, 360, 10)
            if abs(degree - a) <= 3  # and not across 0
        ]
        assert met == expected, degree


def test_a_point_on_the_outline_has_no_length_zero() -> None:
    contours = Contours(torch.tensor([[5, 5]]), torch.tensor([0, 1]))
    rays = contour_rays(contours, torch.tensor([[5.0, 5.0]]), torch.zeros(1).long(), rays=36)
    assert (rays == np.float32(NO_RAY)).all()


def test_nothing_to_measure() -> None:
    contours = Contours(torch.zeros(0, 2).long(), torch.zeros(1).long())
    rays = contour_rays(contours, torch.zeros(0, 2), torch.zeros(0).long(), rays=36)
    assert rays.shape == (0, 36)


def test_centerness() -> None:
    assert polar_centerness(torch.full((36,), 7.0)).item() == 1
    rays = torch.rand(50, 36) + 0.1
    values = polar_centerness(rays)
    assert ((values > 0) & (values <= 1)).all()
    torch.testing.assert_close(polar_centerness(3 * rays), values)
    assert polar_centerness(torch.tensor([1.0, 4.0, 2.0])).item() == pytest.approx(0.5)


@pytest.mark.parametrize("rays", [18, 36, 72])
def test_rays_end_where_the_released_order_of_rounding_puts_them(rays: int) -> None:
    """Whole pixels are truncated, so the last bit of an angle moves an end by a pixel."""
    lengths = torch.arange(1, 200, dtype=torch.float32)[:, None].expand(-1, rays)
    angles = torch.arange(0, 360, 360 // rays, dtype=torch.float32) / 180 * math.pi
    ends = 60 + lengths[..., None] * torch.stack([angles.sin(), angles.cos()], dim=-1)
    assert torch.equal(ray_ends(torch.tensor([60.0, 60.0]), lengths), ends)
