"""Convolution at points: equal to the whole convolution, forwards and backwards."""

import torch
from torch.nn import functional as F

from pixelwise.ops.point_conv import convolve_at

SIZES = [(5, 7), (3, 4), (1, 1)]


def test_equal_to_the_whole_convolution_at_every_point() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 3, *size, requires_grad=True) for size in SIZES]
    weight, bias = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    whole = torch.cat([F.conv2d(x, weight, bias, padding=1).flatten(2) for x in levels], dim=2)
    count = whole.shape[2]
    image = torch.tensor([0, 1]).repeat_interleave(count)
    point = torch.arange(count).repeat(2)
    found = convolve_at(levels, image, point, weight=weight, bias=bias)
    wanted = whole.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, wanted)
    factors = torch.randn_like(found)
    inputs = [*levels, weight, bias]
    ours = torch.autograd.grad((found * factors).sum(), inputs)
    theirs = torch.autograd.grad((wanted * factors).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_points_may_repeat_and_be_none() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(1, 3, *size) for size in SIZES]
    weight, bias = torch.randn(2, 3, 3, 3), torch.randn(2)
    twice = convolve_at(
        levels, torch.tensor([0, 0]), torch.tensor([36, 36]), weight=weight, bias=bias
    )
    torch.testing.assert_close(twice[0], twice[1])
    none = torch.zeros(0, dtype=torch.int64)
    assert convolve_at(levels, none, none, weight=weight, bias=bias).shape == (0, 2)
