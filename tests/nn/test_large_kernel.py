import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise.nn.bilinear_deconv import BilinearDeconv, bilinear_kernel
from pixelwise.nn.large_kernel import BoundaryRefinement, GlobalConv
from pixelwise.ops.resize import resize


def zero_biases(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_identical_halves_give_twice_the_dense_kernel(kernel: int) -> None:
    """Rank one: both branches apply the outer product of a column and a row (single channel)."""
    block = GlobalConv(1, 1, kernel=kernel).double()
    zero_biases(block)
    column, row = torch.randn(kernel).double(), torch.randn(kernel).double()
    with torch.no_grad():
        for conv, values, side in (
            (block.down_across[0], column, (kernel, 1)),
            (block.down_across[1], row, (1, kernel)),
            (block.across_down[0], row, (1, kernel)),
            (block.across_down[1], column, (kernel, 1)),
        ):
            conv.weight.copy_(values.view(1, 1, *side))
    x = torch.randn(1, 1, 20, 23).double()
    dense = (column[:, None] * row[None, :])[None, None]
    expected = F.conv2d(x, dense, padding=kernel // 2)
    torch.testing.assert_close(block.down_across(x), block.across_down(x))
    torch.testing.assert_close(block(x), 2 * expected)


@pytest.mark.parametrize("kernel", [1, 3, 7, 15])
def test_an_impulse_spreads_over_exactly_k_by_k_cells(kernel: int) -> None:
    block = GlobalConv(2, 3, kernel=kernel)
    x = torch.zeros(1, 2, 31, 33)
    x[..., 15, 16] = 1
    response = block(x).detach().abs().amax(1)[0]
    rows, columns = response.nonzero().T
    half = kernel // 2
    assert response.count_nonzero() == kernel * kernel
    assert (rows.min(), rows.max()) == (15 - half, 15 + half)
    assert (columns.min(), columns.max()) == (16 - half, 16 + half)


def test_the_first_halves_run_down_and_across() -> None:
    block = GlobalConv(4, 2, kernel=5)
    assert [c.kernel_size for c in block.down_across] == [(5, 1), (1, 5)]
    assert [c.kernel_size for c in block.across_down] == [(1, 5), (5, 1)]


@pytest.mark.parametrize(("channels", "classes", "kernel"), [(64, 21, 15), (7, 3, 9)])
def test_parameters_grow_with_k_not_its_square(channels: int, classes: int, kernel: int) -> None:
    count = sum(p.numel() for p in GlobalConv(channels, classes, kernel=kernel).parameters())
    assert count == 2 * kernel * classes * (channels + classes) + 4 * classes
    assert count < kernel**2 * channels * classes


def test_refinement_without_weights_is_the_identity() -> None:
    block = BoundaryRefinement(5)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 5, 7, 6)
    assert torch.equal(block(x), x)


def test_refinement_adds_two_convolutions_with_relu_between() -> None:
    block = BoundaryRefinement(3)
    x = torch.randn(1, 3, 9, 9)
    inner = F.relu(F.conv2d(x, block.conv1.conv.weight, block.conv1.conv.bias, padding=1))
    outer = F.conv2d(inner, block.conv2.conv.weight, block.conv2.conv.bias, padding=1)
    torch.testing.assert_close(block(x), x + outer)
    assert (block(x) < 0).any()


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_deconv_starts_as_bilinear_interpolation(factor: int) -> None:
    up = BilinearDeconv(2, factor).double()
    x = torch.randn(1, 2, 6, 7).double()
    y = up(x)
    assert y.shape == (1, 2, 6 * factor, 7 * factor)
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    expected = resize(x, (6 * factor, 7 * factor))
    torch.testing.assert_close(y[inside], expected[inside], rtol=0, atol=1e-6)


def test_kernels_of_the_literature() -> None:
    expected = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(bilinear_kernel(4), expected[:, None] * expected)
    odd = torch.tensor([0.5, 1.0, 0.5])
    torch.testing.assert_close(bilinear_kernel(3), odd[:, None] * odd)
