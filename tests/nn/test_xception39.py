import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.backbones.xception39 import ThinBlock, Xception39


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_number_in_its_name_is_its_cost() -> None:
    """39 million multiply-adds of convolutions for a picture of ImageNet's size."""
    net, costs = Xception39().eval(), []
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        conv.register_forward_hook(
            lambda conv, _, out: costs.append(out[0, 0].numel() * conv.weight.numel())
        )
    net(torch.randn(1, 3, 224, 224))
    assert sum(costs) == 39_475_968


def test_parameters_follow_from_the_layer_table() -> None:
    def separable(c_in: int, c_out: int) -> int:
        return 9 * c_in + c_in * c_out + 2 * c_out  # depthwise, pointwise, norm

    total, channels = 3 * 8 * 9 + 2 * 8, 8
    for blocks, width in ((4, 16), (8, 32), (4, 64)):
        total += separable(channels, 4 * width)  # the shortcut that halves the map
        for _ in range(blocks):
            total += separable(channels, width) + separable(width, width)
            total += separable(width, 4 * width)
            channels = 4 * width
    assert count(Xception39()) == total == 299_448


@pytest.mark.parametrize("side", [(64, 96), (65, 33), (1, 7)])
def test_maps_of_all_levels(side: tuple[int, int]) -> None:
    net = build_backbone("xception39", levels=(1, 2, 3, 4, 5)).eval()
    assert net.strides == (2, 4, 8, 16, 32)
    assert net.channels == (8, 8, 64, 128, 256)
    for x, channels, stride in zip(
        net(torch.randn(1, 3, *side)), net.channels, net.strides, strict=True
    ):
        assert x.shape == (1, channels, *(math.ceil(n / stride) for n in side))


def test_stages_that_nobody_asks_for_are_not_built() -> None:
    net = build_backbone("xception39", levels=(2, 3))
    assert len(net.stages) == 1
    assert [x.shape[1] for x in net(torch.randn(2, 3, 32, 32))] == [8, 64]


def test_a_block_is_three_separable_convolutions_beside_a_shortcut() -> None:
    block = ThinBlock(6, 4, stride=2, norm=None)
    x = torch.randn(2, 6, 9, 8)

    def separable(part: nn.Sequential, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        deep, point = part[0].conv, part[1].conv
        x = F.conv2d(x, deep.weight, stride=stride, padding=1, groups=x.shape[1])
        return F.conv2d(x, point.weight, point.bias)

    y = separable(block.residual[0], x, 2).relu()
    y = separable(block.residual[2], separable(block.residual[1], y).relu())
    expected = (y + separable(block.shortcut, x, 2)).relu()
    torch.testing.assert_close(block(x), expected)


def test_blocks_that_keep_the_size_add_their_input() -> None:
    block = ThinBlock(16, 4, stride=1, norm="batch")
    nn.init.zeros_(block.residual[2][1].norm.weight)
    x = torch.rand(2, 16, 5, 5)
    torch.testing.assert_close(block(x), x)


def test_frozen_stages_stand_still() -> None:
    net = Xception39()
    net.freeze(2)
    net.train()
    assert not net.stem.norm.training
    assert not net.stages[0].training
    assert net.stages[1].training
    assert all(p.requires_grad == name.startswith(("stages.1", "stages.2"))
               for name, p in net.named_parameters())  # fmt: skip


def test_there_is_no_atrous_form() -> None:
    with pytest.raises(UsageError, match="output_stride 32 only"):
        build_backbone("xception39", output_stride=16)
