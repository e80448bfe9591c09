import pytest
import torch

from pixelwise.errors import UsageError
from pixelwise.ops.permutohedral import build_lattice


def points(count: int, dims: int, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(count, dims, generator=torch.Generator().manual_seed(dims))


def dense(features: torch.Tensor) -> torch.Tensor:
    """The filter as an [N, N] matrix."""
    return build_lattice(features).filter(torch.eye(len(features)))


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
def test_weights_are_barycentric(dims: int) -> None:
    lattice = build_lattice(points(200, dims))
    assert (lattice.weights > -1e-6).all()
    torch.testing.assert_close(lattice.weights.sum(1), torch.ones(200))


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_every_corner_knows_its_points(dims: int) -> None:
    lattice = build_lattice(points(50, dims))
    table = torch.zeros(len(lattice.starts) - 2, 50)
    for corner in range(len(table)):
        part = slice(int(lattice.starts[corner]), int(lattice.starts[corner + 1]))
        table[corner, lattice.points[part].long()] += lattice.point_weights[part]
    expected = torch.zeros_like(table)
    for point, (corners, weights) in enumerate(zip(lattice.corners, lattice.weights, strict=True)):
        expected[corners.long(), point] += weights
    torch.testing.assert_close(table, expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_neighbours_go_back_and_forth(dims: int) -> None:
    lattice = build_lattice(points(300, dims, spread=1.0))
    here = torch.arange(len(lattice.starts) - 2)
    for rows in lattice.neighbours.long():
        ahead, behind = rows[:-1, 1], rows[:-1, 2]
        there = ahead < len(here)
        assert there.any()
        assert torch.equal(rows[ahead[there], 2], here[there])
        there = behind < len(here)
        assert torch.equal(rows[behind[there], 1], here[there])
        assert (rows[-1] == len(here)).all()


@pytest.mark.parametrize(("dims", "step"), [(1, 0.1), (2, 0.25)])
def test_on_average_it_is_a_gaussian_of_deviation_one(dims: int, step: float) -> None:
    """Averaged over the places of a point in its simplex, the response has covariance 1."""
    side = torch.arange(-6, 6, step)
    grid = torch.cartesian_prod(*[side] * dims).view(-1, dims)
    middle = grid.norm(dim=1) < 2
    matrix = build_lattice(grid).filter(torch.eye(len(grid))[:, middle]).T  # [points, N]
    share = matrix / matrix.sum(1, keepdim=True)
    offset = grid - grid[middle][:, None]  # [points, N, dims]
    covariance = torch.einsum("pn,pni,pnj->pij", share, offset, offset).mean(0)
    torch.testing.assert_close(covariance, torch.eye(dims), rtol=0, atol=0.06)
    gaussian = (-offset.square().sum(2) / 2).exp()
    gaussian /= gaussian.sum(1, keepdim=True)
    assert (share - gaussian).abs().sum(1).mean() < 0.25


def test_far_points_do_not_meet() -> None:
    matrix = dense(torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [50, 0, 0]]))
    assert matrix[0, 1] > 0.5 * matrix[0, 0]
    assert matrix[0, 2] == matrix[2, 0] == 0


def test_scaled_is_a_product_with_diagonals() -> None:
    features, factors = points(40, 3), torch.rand(40)
    expected = factors[:, None] * dense(features) * factors
    found = build_lattice(features).scaled(factors).filter(torch.eye(40))
    torch.testing.assert_close(found, expected)


def test_shifting_by_a_period_of_the_lattice_changes_nothing() -> None:
    one = points(60, 1).double()
    period = 3**0.5 / 2  # of the lattice in one dimension, in standard deviations
    torch.testing.assert_close(dense(one), dense(one + period), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(dense(one), dense(one + 0.5 * period), rtol=1e-3, atol=1e-3)


def test_features_that_span_too_much_are_refused() -> None:
    with pytest.raises(UsageError, match="raise the sigmas"):
        build_lattice(torch.tensor([[0.0] * 5, [1e6] * 5]))
