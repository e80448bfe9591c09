"""Mean shift against a loop over single points, and on groups with a known answer."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelwise.losses.embedding import discriminative_loss
from pixelwise.ops.mean_shift import mean_shift, nearest_centres


def slow(points: Tensor, radius: float, min_points: int, max_seeds: int) -> list[int]:
    """The published procedure, one point and one number at a time."""
    rows = points.tolist()
    labels, free, found = [-1] * len(rows), list(range(len(rows))), 0
    for _ in range(max_seeds):
        if not free:
            break
        centre = rows[free[0]]
        members: list[int] = []
        while True:
            near = [i for i in free if math.dist(rows[i], centre) <= radius]
            if near == members:
                break
            members = near
            centre = [sum(rows[i][d] for i in near) / len(near) for d in range(len(centre))]
        if len(members) >= min_points:
            for i in members:
                labels[i] = found
            found += 1
        free = [i for i in free if i not in members]
    return labels


def groups(count: int, size: int, *, dims: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Groups at the corners of a lattice 3 apart, mixed; points within `spread` of a corner."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(count), size))
    corners = 3.0 * np.stack([(owner // 4**d) % 4 for d in range(dims)], axis=1)
    away = rng.standard_normal((len(owner), dims))
    away *= (spread * rng.random(len(owner)) / np.linalg.norm(away, axis=1))[:, None]
    return torch.from_numpy(corners + away), torch.from_numpy(owner)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("min_points", "max_seeds"), [(1, 1000), (4, 1000), (1, 3)])
def test_equal_to_the_slow_loop(seed: int, min_points: int, max_seeds: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(120, 2 + seed % 3, generator=generator, dtype=torch.float64)
    found = mean_shift(points, 0.7, min_points=min_points, max_seeds=max_seeds)
    assert found.labels.tolist() == slow(points, 0.7, min_points, max_seeds)
    assert int(found.labels.max()) + 1 == len(found.centres)


@pytest.mark.parametrize("dims", [2, 8])
def test_separated_groups_are_found_up_to_their_names(dims: int) -> None:
    points, owner = groups(12, 15, dims=dims, spread=0.25, seed=dims)
    found = mean_shift(points, 0.5)
    pairs = {(a, b) for a, b in zip(owner.tolist(), found.labels.tolist(), strict=True)}
    assert len(pairs) == 12, "one label for each group, one group for each label"
    assert found.labels.unique().tolist() == list(range(12))
    for label in range(12):
        mean = points[found.labels == label].mean(dim=0)
        torch.testing.assert_close(found.centres[label], mean)


def test_where_the_discriminative_loss_is_0_twice_its_radius_finds_the_instances() -> None:
    """Pixels anywhere within 0.5 of means that are 3 apart, most of them in two dense spots."""
    points, owner = groups(8, 40, dims=3, spread=0.49, seed=1)
    corners = torch.stack([points[owner == n].mean(dim=0).div(3).round() * 3 for n in range(8)])
    spots = torch.tensor([[0.45, 0.0, 0.0], [-0.45, 0.0, 0.0]], dtype=points.dtype)
    dense = (corners[:, None] + spots).flatten(0, 1).repeat_interleave(20, 0)
    points = torch.cat([points, dense])
    owner = torch.cat([owner, torch.arange(8).repeat_interleave(40)])
    terms = discriminative_loss(points.T, owner)
    assert terms.variance < 1e-3
    assert terms.distance < 1e-2
    for radius, clusters in ((1.0, 8), (1.9, 8)):
        labels = mean_shift(points, radius).labels
        assert len(set(zip(owner.tolist(), labels.tolist(), strict=True))) == clusters
        assert int(labels.max()) + 1 == clusters
    assert int(mean_shift(points, 0.5).labels.max()) + 1 > 8, "the two spots come apart"


def test_labels_follow_the_order_of_the_points() -> None:
    points = torch.tensor([[9.0], [0.0], [9.1], [5.0], [0.1]])
    assert mean_shift(points, 1.0).labels.tolist() == [0, 1, 0, 2, 1]


def test_the_centre_climbs_to_where_points_are_dense() -> None:
    points = torch.tensor([[0.0], [0.8], [1.0], [1.1], [1.2], [1.7]])
    found = mean_shift(points, 1.0)
    # From 0 to 0.6, 0.82 and 0.967; the first point remains, just within reach.
    assert found.labels.tolist() == [0] * 6
    assert found.centres.item() == pytest.approx(points.mean().item())


def test_small_clusters_are_dropped_and_leave_no_gap_in_the_numbers() -> None:
    points = torch.tensor([[9.0], [0.0], [0.1], [5.0], [5.1]])
    found = mean_shift(points, 1.0, min_points=2)
    assert found.labels.tolist() == [-1, 0, 0, 1, 1]
    torch.testing.assert_close(found.centres, torch.tensor([[0.05], [5.05]]))


@pytest.mark.parametrize("count", [0, 1])
def test_few_points(count: int) -> None:
    found = mean_shift(torch.ones(count, 3), 0.5)
    assert found.labels.tolist() == [0] * count
    assert found.centres.shape == (count, 3)


def test_what_is_not_a_number_belongs_to_none() -> None:
    points = torch.tensor([[math.nan], [0.0], [math.inf], [0.1]])
    assert mean_shift(points, 0.5).labels.tolist() == [-1, 0, -1, 0]


def test_far_from_the_origin_no_digit_is_lost() -> None:
    """The expanded square would round distances of 0.5 at 4096 to 0 or 2."""
    points, owner = groups(6, 10, dims=2, spread=0.2, seed=0)
    found = mean_shift((points + 4096).float(), 0.5)
    assert len({(a, b) for a, b in zip(owner.tolist(), found.labels.tolist(), strict=True)}) == 6


def test_nearest_centres() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 4, generator=generator)
    centres = torch.randn(9, 4, generator=generator)
    distances = (points[:, None] - centres).square().sum(dim=2).sqrt()
    wanted = distances.argmin(dim=1).masked_fill(distances.amin(dim=1) > 1.2, -1)
    assert torch.equal(nearest_centres(points, centres, 1.2), wanted)
    assert (wanted == -1).any()
    assert (nearest_centres(points, centres[:0], 1.2) == -1).all()
    assert nearest_centres(points[:0], centres, 1.2).shape == (0,)
    assert nearest_centres(torch.tensor([[1.0]]), torch.tensor([[0.0]]), 1.0).tolist() == [0]
