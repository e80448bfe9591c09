import pytest
import torch
from torch import nn

from pixelwise.nn.global_context import GlobalContext, L2Norm


def norm(channels: int, **options) -> L2Norm:
    """With a scale of its own per channel."""
    module = L2Norm(channels, **options)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.5, 2.0, channels))
    return module


def test_every_position_has_length_one_before_the_scale() -> None:
    module = norm(6)
    y = module(torch.randn(2, 6, 4, 5)) / module.weight[:, None, None]
    torch.testing.assert_close(y.square().sum(1).sqrt(), torch.ones(2, 4, 5))


def test_equals_the_loop_over_positions() -> None:
    module, x = norm(5), torch.randn(2, 5, 3, 4)
    y = module(x)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                length = sum(float(v) ** 2 for v in x[b, :, i, j]) ** 0.5
                torch.testing.assert_close(y[b, :, i, j], module.weight * x[b, :, i, j] / length)


@pytest.mark.parametrize("factor", [1e-2, 3.0, 1e4])
def test_the_scale_of_the_input_does_not_matter(factor: float) -> None:
    module, x = norm(6), torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(module(factor * x), module(x), rtol=1e-4, atol=1e-5)


def test_positions_do_not_meet() -> None:
    """The norm runs over channels: shuffled positions give the shuffled result."""
    module, x = norm(6), torch.randn(1, 6, 4, 5)
    order = torch.randperm(20)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(module(shuffled).flatten(2), module(x).flatten(2)[:, :, order])


def test_the_scale_starts_at_ten_in_every_channel() -> None:
    assert torch.equal(L2Norm(4).weight, torch.full((4,), 10.0))
    assert torch.equal(L2Norm(4, 20).weight, torch.full((4,), 20.0))


def test_zeros_stay_zeros_with_a_finite_gradient() -> None:
    module = norm(6)
    x = torch.zeros(1, 6, 2, 2, requires_grad=True)
    y = module(x)
    assert torch.equal(y, torch.zeros_like(x))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_half_precision_does_not_overflow() -> None:
    module = norm(512).half()
    y = module(torch.full((1, 512, 1, 1), 60.0).half())  # the squared length is beyond 65504
    torch.testing.assert_close(
        y.float()[0, :, 0, 0], module.weight.float() / 512**0.5, rtol=2e-3, atol=0
    )


def test_gradients_are_the_papers_closed_forms() -> None:
    """With u = x / |x| and v = scale * dy: dx = (v - u <u, v>) / |x| and dscale = sum of u dy."""
    module = norm(5).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    module(x).backward(upstream)
    length = x.detach().square().sum(1, keepdim=True).sqrt()
    unit = x.detach() / length
    inner = module.weight.detach()[:, None, None] * upstream
    expected = (inner - unit * (unit * inner).sum(1, keepdim=True)) / length
    torch.testing.assert_close(x.grad, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        module.weight.grad, (unit * upstream).sum((0, 2, 3)), rtol=1e-7, atol=1e-7
    )


def test_gradcheck() -> None:
    module = norm(3).double()
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


def test_context_is_constant_over_space_and_comes_last() -> None:
    module, x = GlobalContext(6), torch.randn(2, 6, 4, 5)
    y = module(x)
    assert y.shape == (2, module.out_channels, 4, 5)
    torch.testing.assert_close(y[:, :6], module.local_norm(x))
    torch.testing.assert_close(y[:, 6:], y[:, 6:, :1, :1].expand_as(x))
    mean = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(y[:, 6:, :1, :1], module.global_norm(mean))


def test_without_norm_it_is_the_map_and_its_mean() -> None:
    x = torch.randn(2, 6, 4, 5)
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    module = GlobalContext(6, with_norm=False)
    assert torch.equal(module(x), torch.cat([x, mean], 1))
    assert not list(module.parameters())


def test_early_fusion_equals_late_fusion() -> None:
    """A classifier of the concatenation is the sum of two classifiers; the bias counts once."""
    module, x = GlobalContext(6), torch.randn(2, 6, 4, 5)
    early = nn.Conv2d(12, 3, 1)
    local, context = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1, bias=False)
    with torch.no_grad():
        local.weight.copy_(early.weight[:, :6])
        local.bias.copy_(early.bias)
        context.weight.copy_(early.weight[:, 6:])
    late = local(module.local_norm(x)) + context(module.global_norm(x.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(early(module(x)), late, rtol=1e-4, atol=1e-5)
