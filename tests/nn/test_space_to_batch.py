import copy

import pytest
import torch
from torch import Tensor, nn

from pixelwise.nn.aspp_sum import SummedASPP
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.space_to_batch import SpaceToBatchConv, use_space_to_batch
from pixelwise.systems import create


def both(net: nn.Module, x: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many convolutions were changed, what the network gave before, and what it gives after."""
    other = copy.deepcopy(net)
    changed = use_space_to_batch(other)
    with torch.no_grad():
        before, after = net(x), other(x)
    assert list(other.state_dict()) == list(net.state_dict())
    return changed, before, after


@pytest.mark.parametrize("width", [0, 32])
def test_deeplab_v2s_aspp_is_the_same(width: int) -> None:
    """The layer that was published in both forms, at its own size: 2048 channels, 41 x 41 cells."""
    torch.manual_seed(0)
    aspp = SummedASPP(2048, 21, width=width).eval()
    changed, direct, rearranged = both(aspp, torch.randn(1, 2048, 41, 41))
    assert changed == 4
    torch.testing.assert_close(rearranged, direct, rtol=1e-4, atol=1e-4 * float(direct.abs().max()))


def test_in_double_precision_nothing_is_left_of_the_difference() -> None:
    aspp = SummedASPP(16, 5).double()
    _, direct, rearranged = both(aspp, torch.randn(2, 16, 41, 37, dtype=torch.float64))
    torch.testing.assert_close(rearranged, direct, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(97, 65), (64, 50)])
def test_a_whole_system_is_the_same(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = create("deeplabv2", backbone="resnet18", num_classes=3, rates=(2, 5)).eval().double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        before = net(x).logits
        # layer3 and layer4: two blocks of two 3x3 convolutions, dilated in every block.
        assert use_space_to_batch(net) == 4 + 4 + 2
        torch.testing.assert_close(net(x).logits, before)
    assert use_space_to_batch(net) == 0


def test_the_count_of_the_published_network() -> None:
    with torch.device("meta"):
        assert use_space_to_batch(create("deeplabv2")) == 23 + 3 + 4


def test_groups_and_gradients() -> None:
    conv = nn.Conv2d(6, 6, 3, padding=3, dilation=3, groups=6).double()
    other = copy.deepcopy(conv)
    assert use_space_to_batch(nn.Sequential(other)) == 1
    x = torch.randn(2, 6, 8, 7, dtype=torch.float64)
    conv(x).square().sum().backward()
    other(x).square().sum().backward()
    torch.testing.assert_close(other.weight.grad, conv.weight.grad)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2},
        {"kernel_size": 4, "padding": 6, "dilation": 4},
        {"kernel_size": 3, "padding": 0, "dilation": 2},
        {"kernel_size": 3, "padding": (2, 1), "dilation": (2, 1)},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "reflect"},
    ],
)
def test_what_it_cannot_do_stays_as_it_is(options: dict) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, **options))
    assert use_space_to_batch(net) == 0
    assert not isinstance(net[0], SpaceToBatchConv)


def test_a_backbone_alone() -> None:
    net = build_backbone("test_vgg", style="deeplab", output_stride=8, levels=(5,)).double()
    x = torch.randn(1, 3, 70, 65, dtype=torch.float64)
    before = net(x)[0]
    assert use_space_to_batch(net) == 1  # conv5
    torch.testing.assert_close(net(x)[0], before)
