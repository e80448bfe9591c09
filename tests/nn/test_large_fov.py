import pytest
import torch
from torch.nn import functional as F

from pixelwise.nn.large_fov import LargeFOV, make_classifier


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def extent(kernel: int, rate: int, side: int = 61) -> tuple[int, int]:
    """(first, last) cell, relative to its own, that a cell of the result sees."""
    net = LargeFOV(1, 1, kernel=kernel, rate=rate).eval()
    for parameter in net.parameters():
        torch.nn.init.ones_(parameter)
    x = torch.zeros(1, 1, side, side, requires_grad=True)
    net(x)[0, 0, side // 2, side // 2].backward()
    seen = x.grad[0, 0].nonzero()[:, 0] - side // 2
    return int(seen.min()), int(seen.max())


@pytest.mark.parametrize(
    ("kernel", "rate", "cells"),
    [(7, 4, 25), (3, 12, 25), (4, 8, 25), (4, 4, 13), (3, 6, 13)],
)
def test_the_extent_is_the_rates_to_choose(kernel: int, rate: int, cells: int) -> None:
    """7x7 of rate 4 and 3x3 of rate 12 span 25 cells: 224 pixels of the paper's table 2."""
    assert extent(kernel, rate) == (-(cells // 2), cells // 2)


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (30, 13)])
@pytest.mark.parametrize(("kernel", "rate"), [(3, 12), (7, 4), (4, 4), (4, 8)])
def test_it_keeps_the_size(kernel: int, rate: int, shape: tuple[int, int]) -> None:
    net = LargeFOV(2, 4, kernel=kernel, rate=rate)
    assert net(torch.randn(2, 2, *shape)).shape == (2, 4, *shape)


def test_it_is_two_convolutions_with_relu_and_dropout() -> None:
    net = LargeFOV(3, 5, rate=2, dropout=0.5).eval()
    x = torch.randn(1, 3, 9, 8)
    y = F.relu(F.conv2d(x, net.fc6.weight, net.fc6.bias, padding=2, dilation=2))
    y = F.relu(F.conv2d(y, net.fc7.weight, net.fc7.bias))
    torch.testing.assert_close(net(x), y)
    dropped = (net.train()(x) == 0).float().mean() - (y == 0).float().mean()
    assert dropped > 0.1


def test_weights_shrink_to_a_fifth() -> None:
    """512 to 4096 by 7x7 and 4096 to 4096, against 512 to 1024 by 3x3 and 1024 to 1024."""
    with torch.device("meta"):
        naive, small = LargeFOV(512, 4096, kernel=7, rate=4), LargeFOV(512)
    assert count(naive) == (512 * 49 + 1) * 4096 + (4096 + 1) * 4096
    assert count(small) == (512 * 9 + 1) * 1024 + (1024 + 1) * 1024


def test_new_classifiers_start_alike() -> None:
    torch.manual_seed(0)
    conv = make_classifier(1024, 21, kernel=3, rate=6)
    assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert conv.bias is not None
    assert not conv.bias.any()
    assert conv(torch.zeros(1, 1024, 5, 4)).shape == (1, 21, 5, 4)
