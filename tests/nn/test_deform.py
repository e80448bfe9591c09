"""Deformable convolution: where it starts, how it moves, and its form for exporters."""

import pytest
import torch
from torch.nn import functional as F

from pixelwise.nn.deform import DeformConv


def picture(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_starts_as_half_a_convolution() -> None:
    conv, x = DeformConv(4, 6, stride=2), picture(4, 9, 12)
    conv.bias.fill_(0.25)
    expected = 0.5 * F.conv2d(x, conv.weight, stride=2, padding=1) + 0.25
    torch.testing.assert_close(conv(x), expected)


@torch.no_grad()
def test_offsets_are_down_then_right_in_pixels() -> None:
    """All taps one row down and two columns right read the picture shifted by as much."""
    conv, x = DeformConv(1, 1), picture(1, 8, 10)
    assert conv.offset_mask.bias is not None
    conv.offset_mask.bias[0:18:2] = 1.0
    conv.offset_mask.bias[1:18:2] = 2.0
    shifted = F.pad(x, (0, 2, 0, 1))[:, :, 1:, 2:]
    expected = 0.5 * F.conv2d(shifted, conv.weight, padding=1)
    torch.testing.assert_close(conv(x)[:, :, 1:-1, 2:-1], expected[:, :, 1:-1, 2:-1])


@pytest.mark.parametrize("knobs", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}])
@torch.no_grad()
def test_sampling_gives_the_same(knobs: dict[str, int]) -> None:
    torch.manual_seed(0)
    conv, x = DeformConv(4, 6, **knobs), picture(4, 9, 12)
    torch.nn.init.normal_(conv.offset_mask.weight, std=0.5)
    offsets, weights = conv.taps(x)
    assert offsets.abs().max() > 3, "some taps leave the picture"
    torch.testing.assert_close(conv.sample(x, offsets, weights), conv(x), rtol=1e-4, atol=1e-4)


def test_mixed_precision_samples_in_full_precision() -> None:
    """A CPU has no bf16 kernel, and bf16 would round places in large maps to even numbers."""
    torch.manual_seed(0)
    conv = DeformConv(1, 1, kernel=1)
    assert conv.offset_mask.bias is not None
    conv.offset_mask.bias.data[1] = -1.0  # one column to the left
    torch.nn.init.ones_(conv.weight)
    x = (torch.arange(600) % 2).float().view(1, 1, 1, 600)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[..., 1:].float(), x[..., :-1] / 2)
    found.float().sum().backward()
    assert conv.offset_mask.weight.grad is not None
