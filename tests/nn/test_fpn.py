import pytest
import torch
from torch import nn

from pixelwise.nn.fpn import FPN


def features(sizes, channels=(8, 16, 32), batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, c, *s) for c, s in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize(
    "sizes", [[(16, 24), (8, 12), (4, 6)], [(19, 26), (10, 13), (5, 7)], [(1, 3), (1, 2), (1, 1)]]
)
def test_every_level_keeps_its_size_and_one_more_follows(sizes):
    levels = FPN((8, 16, 32), 12)(features(sizes))
    assert [tuple(x.shape[-2:]) for x in levels[:3]] == sizes
    assert all(x.shape[1] == 12 for x in levels)
    assert torch.equal(levels[3], levels[2][..., ::2, ::2])


def test_it_is_the_papers_sum():
    torch.manual_seed(1)
    net = FPN((8, 16), 4)
    fine, coarse = features([(6, 8), (3, 4)], (8, 16))
    top = net.lateral[1](coarse)
    doubled = top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(net([fine, coarse])[0], net.output[0](net.lateral[0](fine) + doubled))


def test_parameters_of_the_paper():
    # 1x1: (256 + 512 + 1024 + 2048) * 256 + 4 * 256; 3x3: 4 * (9 * 256 * 256 + 256)
    count = sum(p.numel() for p in FPN((256, 512, 1024, 2048)).parameters())
    assert count == 3840 * 256 + 1024 + 4 * (589_824 + 256)


def test_a_norm_takes_the_place_of_the_biases():
    net = FPN((8, 16), 32, norm="group")
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.bias is None for conv in convs)
    assert sum(isinstance(m, nn.GroupNorm) for m in net.modules()) == len(convs) == 4


def test_the_deepest_level_reaches_the_finest():
    net = FPN((8, 16, 32), 4)
    inputs = [x.requires_grad_() for x in features([(8, 8), (4, 4), (2, 2)])]
    net(inputs)[0].sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in inputs)
