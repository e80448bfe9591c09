from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.depthwise import (
    depthwise_conv2d,
    depthwise_input_gradient,
    depthwise_weight_gradient,
)
from pixelwise.types import Size

CASES = [  # sides, stride, padding, dilation
    ((5, 5), (1, 1), (2, 2), (1, 1)),
    ((5, 5), (2, 2), (0, 0), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((7, 4), (1, 2), (3, 0), (1, 1)),
    ((3, 5), (3, 1), (2, 4), (1, 1)),
    ((5, 5), (1, 1), (4, 4), (2, 2)),
]


def drawn(sides: Size, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 17, 14), (6, 1, *sides), (6,))
    x, weight, bias = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize(("sides", "stride", "padding", "dilation"), CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_a_grouped_convolution_with_its_gradients(
    sides: Size, stride: Size, padding: Size, dilation: Size, layout: torch.memory_format
) -> None:
    x, weight, bias = drawn(sides)
    x = x.contiguous(memory_format=layout)
    mine, theirs = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    y = depthwise_conv2d(*mine, stride=stride, padding=padding, dilation=dilation)
    z = F.conv2d(*theirs, stride, padding, dilation, groups=6)
    assert torch.equal(y, z)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    y.backward(grad)
    z.backward(grad)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    assert mine[0].grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("sides", "stride", "padding", "dilation"), CASES[:-1])
def test_gradients_by_themselves(sides: Size, stride: Size, padding: Size, dilation: Size) -> None:
    x, weight, _ = (t.requires_grad_() for t in drawn(sides))
    y = F.conv2d(x, weight, None, stride, padding, groups=6)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    for_x, for_weight = torch.autograd.grad(y, (x, weight), grad)
    where = {"stride": stride, "padding": padding}
    mine = depthwise_input_gradient(grad, weight.detach(), (17, 14), **where)
    assert torch.allclose(mine, for_x, rtol=1e-12, atol=1e-12)
    mine = depthwise_weight_gradient(x.detach(), grad, sides, **where)
    assert torch.allclose(mine, for_weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("sides", "stride"), [((5, 5), (1, 1)), ((3, 3), (2, 2))])
def test_bf16_under_autocast_is_as_precise_as_a_grouped_convolution(
    sides: Size, stride: Size
) -> None:
    exact = [t.requires_grad_() for t in drawn(sides)[:2]]
    F.conv2d(*exact, None, stride, (1, 1), groups=6).square().sum().backward()
    errors: list[float] = []
    for convolve in (depthwise_conv2d, lambda *args, **kw: F.conv2d(*args, **kw, groups=6)):
        x, weight = (t.requires_grad_() for t in drawn(sides, torch.float32)[:2])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = convolve(x, weight, stride=stride, padding=(1, 1))
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        assert (x.grad.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
        errors += [
            float((a.grad - b.grad).norm() / b.grad.norm())
            for a, b in zip((x, weight), exact, strict=True)
        ]
    assert max(errors[:2]) < 0.02
    assert errors[0] < 1.5 * errors[2] + 1e-3
    assert errors[1] < 1.5 * errors[3] + 1e-3


def test_only_wanted_gradients_are_computed() -> None:
    x, weight, bias = drawn((5, 5))
    weight.requires_grad_()
    depthwise_conv2d(x, weight, bias).sum().backward()
    assert x.grad is None
    assert bias.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("dilation", [2, 4])
@pytest.mark.parametrize("width", [20, 40])
def test_dilated_gradients_in_bfloat16_are_right_at_any_width(dilation: int, width: int) -> None:
    """PyTorch's own are not from 32 columns on (2.14, channels last, oneDNN with AVX-512)."""
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 96, 24, width), (96, 1, 3, 3), (96,))
    given = [torch.randn(s, generator=g).bfloat16() for s in shapes]
    given[0] = given[0].contiguous(memory_format=torch.channels_last)
    mine = [t.clone().requires_grad_() for t in given]
    wanted = [t.double().requires_grad_() for t in given]
    where = {"padding": (dilation, dilation), "dilation": (dilation, dilation)}
    y = depthwise_conv2d(*mine, **where)
    z = F.conv2d(*wanted, 1, *where.values(), groups=96)
    grad = torch.randn(y.shape, generator=g).bfloat16()
    y.backward(grad)
    z.backward(grad.double())
    for a, b in zip(mine, wanted, strict=True):
        assert (a.grad.double() - b.grad).abs().max() < 0.005 * b.grad.abs().max()
