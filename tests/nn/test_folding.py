"""Folded batch norms: the same outputs from fewer layers, and only where nothing else looks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.folding import fold_batch_norms
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.nn.pointwise import use_onednn


def with_statistics(network: nn.Module) -> nn.Module:
    """As after training: no norm is the identity."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm) and module.running_mean is not None:
            for name in ("running_mean", "bias"):
                getattr(module, name).data.normal_(0, 0.1)
            for name in ("running_var", "weight"):
                getattr(module, name).data.uniform_(0.5, 2)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm) for m in network.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("resnet18", "frozen"),
        ("mobilenet_v3_large", "batch"),
        ("tf_efficientnet_lite0", "frozen"),
        ("mobilenetv4_conv_small", "batch"),
    ],
)
def test_backbones_compute_the_same_without_norms(name: str, norm: str) -> None:
    # In double precision: in single both differ from the truth by the same roundings.
    network = with_statistics(build_backbone(name, norm=norm)).double()
    folded = fold_batch_norms(network, torch.zeros(1, 3, 64, 64).double())
    assert norms(network) > 10
    assert norms(folded) == 0
    images = torch.randn(1, 3, 39, 70).double()  # neither the size nor the content of the example
    for one, other in zip(network(images), folded(images), strict=True):
        assert (one - other).abs().max() <= 1e-10 * one.abs().max()


@torch.no_grad()
def test_the_network_itself_stays_as_it_is_and_shares_the_rest() -> None:
    network = with_statistics(nn.Sequential(ConvNormAct(3, 4), nn.Conv2d(4, 2, 1)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norms(network.train(), torch.zeros(1, 3, 8, 8))
    assert network.training
    assert not folded.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
    assert folded[1].weight is network[1].weight
    assert folded[0].conv.weight is not network[0].conv.weight


class Shared(nn.Module):
    """A convolution that another layer, another norm or a function also uses."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        first = self.norm(y)
        if self.how == "added":
            return (first + y,)
        if self.how == "returned":
            return first, y
        if self.how == "two norms":
            return (first + self.other(self.conv(x)),)
        if self.how == "two convolutions":
            return (first + self.norm(F.conv2d(x, 2 * self.conv.weight)),)
        if self.how == "the weight":
            return (first * self.conv.weight.sum(),)
        assert self.how == "twice"
        return (first + self.norm(self.conv(x + 1)),)


@torch.no_grad()
@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("added", 2),
        ("returned", 2),
        ("two norms", 2),
        ("two convolutions", 2),
        ("the weight", 2),
        ("twice", 1),  # the same pair on two inputs is still a pair
    ],
)
def test_what_something_else_reads_is_not_folded(how: str, left: int) -> None:
    network = with_statistics(Shared(how))
    folded = fold_batch_norms(network, torch.zeros(1, 3, 4, 4))
    assert norms(folded) == left
    images = torch.randn(1, 3, 5, 6)
    for one, other in zip(network(images), folded(images), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_norms_of_the_batch_and_before_the_convolution_stay() -> None:
    layers = [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)]
    network = with_statistics(nn.Sequential(*layers[:2], nn.ReLU(), layers[2]))
    folded = fold_batch_norms(network, torch.zeros(1, 3, 4, 4))
    assert norms(folded) == 2


@torch.no_grad()
def test_pointwise_convolutions_give_the_same_through_onednn() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1, 2))
    images = torch.randn(2, 8, 31, 40)
    before = network(images)
    use_onednn(network)
    assert [c.dilation for c in network] == [(2, 2), (1, 1), (2, 2)]
    torch.testing.assert_close(network(images), before)
