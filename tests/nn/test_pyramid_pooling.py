import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.nn.pyramid_pooling import PyramidPooling, averaging_matrix, grid_means


def pyramid(**options) -> PyramidPooling:
    torch.manual_seed(0)
    return PyramidPooling(8, **options).eval()


def branch(module: PyramidPooling, number: int, x: Tensor) -> Tensor:
    """Channels of the result that come from one grid, the map being first."""
    return module(x)[:, 8 + 2 * number : 10 + 2 * number]


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 7])
def test_grid_means_are_adaptive_average_pooling(bins: int) -> None:
    """Sizes that the bins divide, that they do not, and maps with fewer cells than bins."""
    for height, width in [(1, 1), (2, 5), (6, 12), (7, 13), (60, 60), (65, 90), (97, 33)]:
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(
            grid_means(x, bins), F.adaptive_avg_pool2d(x, bins), rtol=0, atol=1e-6
        )


def test_bins_overlap_where_they_do_not_divide_the_size() -> None:
    matrix = averaging_matrix(7, 3, like=torch.zeros(1))
    covered = [row.nonzero()[:, 0].tolist() for row in matrix]
    assert covered == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    torch.testing.assert_close(matrix.sum(1), torch.ones(3))


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_a_constant_map_keeps_its_value(bins: int) -> None:
    x = torch.full((1, 2, 13, 17), 3.25)
    torch.testing.assert_close(grid_means(x, bins), torch.full((1, 2, bins, bins), 3.25))


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(12, 18), (13, 17)])
def test_flipping_the_map_flips_the_grid(bins: int, size: tuple[int, int]) -> None:
    x = torch.randn(1, 4, *size)
    for axis in (2, 3):
        torch.testing.assert_close(grid_means(x.flip(axis), bins), grid_means(x, bins).flip(axis))


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_coarsest_grid_is_constant_and_finer_ones_are_not(align_corners: bool) -> None:
    module, x = pyramid(align_corners=align_corners), torch.randn(2, 8, 11, 14)
    spread = [branch(module, i, x).std((2, 3)).max() for i in range(4)]
    assert spread[0] < 1e-6
    assert min(spread[1:]) > 1e-3


def test_the_result_has_twice_the_channels_and_holds_the_map() -> None:
    module, x = pyramid(), torch.randn(2, 8, 9, 10)
    joined = module(x)
    assert joined.shape == (2, 16, 9, 10)
    assert module.out_channels == 16
    assert torch.equal(joined[:, :8], x)
    last = PyramidPooling(8, map_place="last").eval()
    last.load_state_dict(module.state_dict())
    assert torch.equal(last(x), torch.cat([joined[:, 8:], x], 1))


def test_branches_come_in_the_order_of_the_grids() -> None:
    """Each is its projection of the pooled map, resized back with aligned corners."""
    module, x = pyramid(), torch.randn(1, 8, 13, 9)
    for i, (bins, project) in enumerate(zip((1, 2, 3, 6), module.project, strict=True)):
        expected = F.interpolate(
            project(F.adaptive_avg_pool2d(x, bins)), (13, 9), mode="bilinear", align_corners=True
        )
        torch.testing.assert_close(branch(module, i, x), expected)


def test_widths_and_grids_are_a_choice() -> None:
    module = pyramid(bins=(1, 4), width=5)
    assert module(torch.randn(1, 8, 6, 6)).shape == (1, 18, 6, 6)
    assert [part.conv.out_channels for part in module.project] == [5, 5]


def test_the_mean_may_be_without_norm() -> None:
    module = pyramid(with_mean_norm=False)
    assert isinstance(module.project[0].norm, nn.Identity)
    assert module.project[0].conv.bias is not None
    assert all(isinstance(part.norm, nn.BatchNorm2d) for part in module.project[1:])


def test_one_image_trains() -> None:
    """The mean of a single image has no variance; batch norm's running statistics step in."""
    module = PyramidPooling(8).train()
    module(torch.randn(1, 8, 6, 6)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
