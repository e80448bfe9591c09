import pytest
import torch
from torch.nn import functional as F

from pixelwise.ops.space_to_batch import atrous_conv, batch_to_space, space_to_batch

RATES = pytest.mark.parametrize("rate", [1, 2, 3, 4, 6])
SIZES = pytest.mark.parametrize("size", [(12, 12), (13, 7), (5, 17), (3, 2)])


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@RATES
@SIZES
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_equals_the_dilated_convolution(rate: int, size: tuple[int, int], kernel: int) -> None:
    x, weight, bias = maps(2, 3, *size), maps(4, 3, kernel, kernel), maps(4)
    expected = F.conv2d(x, weight, bias, padding=rate * (kernel // 2), dilation=rate)
    found = atrous_conv(x, weight, bias, rate=rate)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@RATES
@SIZES
def test_there_and_back(rate: int, size: tuple[int, int]) -> None:
    x = maps(3, 2, *size)
    assert torch.equal(batch_to_space(space_to_batch(x, rate), rate, size), x)


def test_order_of_the_sub_maps() -> None:
    """i over rows is the outer loop, j over columns the inner one, images the innermost."""
    x = maps(2, 1, 5, 7)
    parts = space_to_batch(x, 2)
    assert parts.shape == (8, 1, 3, 4)
    for i in range(2):
        for j in range(2):
            for n in range(2):
                wanted = x[n, :, i::2, j::2]
                part = parts[(i * 2 + j) * 2 + n]
                assert torch.equal(part[:, : wanted.shape[1], : wanted.shape[2]], wanted)
    assert (parts[4:, :, 2] == 0).all()  # row 5 is padding


def test_a_rate_beyond_the_map_leaves_the_centre_tap() -> None:
    """All other taps read zeros, so a 3x3 convolution degenerates to a 1x1."""
    x, weight = maps(2, 3, 9, 11), maps(4, 3, 3, 3)
    expected = F.conv2d(x, weight[:, :, 1:2, 1:2])
    torch.testing.assert_close(atrous_conv(x, weight, rate=11), expected)
    torch.testing.assert_close(F.conv2d(x, weight, padding=11, dilation=11), expected)
    assert not torch.allclose(atrous_conv(x, weight, rate=10), expected)


def test_gradients_are_those_of_the_dilated_convolution() -> None:
    x, weight = maps(2, 2, 7, 6).requires_grad_(), maps(3, 2, 3, 3).requires_grad_()
    ours = torch.autograd.grad(atrous_conv(x, weight, rate=3).square().sum(), (x, weight))
    direct = F.conv2d(x, weight, padding=3, dilation=3)
    theirs = torch.autograd.grad(direct.square().sum(), (x, weight))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
