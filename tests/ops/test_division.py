"""Quotients that are rounded: off by the last bit they are off by one."""

import torch

from pixelwise.ops.division import divide


def test_multiples_have_whole_quotients() -> None:
    for by in range(1, 60):
        n = torch.arange(2000.0)
        assert torch.equal(divide(n * by, by), n)


def test_the_reciprocal_would_not_do() -> None:
    x = torch.tensor(84.0)
    assert (x * (1 / torch.tensor(28.0))).ceil() == 4
    assert divide(x, 28).ceil() == 3


def test_type_shape_and_gradient_stay() -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    out = divide(x, 4)
    assert out.dtype == torch.float64
    out.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 0.25))
