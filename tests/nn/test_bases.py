"""Bottom modules: sizes, what they read, the protonet against its parts."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.nn.bases import BOTTOMS, DecoderBases, MergedBases


def pyramid(sizes: tuple[tuple[int, int], ...] = ((9, 13), (5, 7), (3, 4), (2, 2))) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 6, *size) for size in sizes]


@pytest.mark.parametrize("kind", BOTTOMS)
@pytest.mark.parametrize("convs", [0, 1, 2])
def test_bases_have_twice_the_resolution_of_the_finest_level(kind: str, convs: int) -> None:
    net = BOTTOMS[kind](6, 8, 4, convs=convs).eval()
    assert net(pyramid()).shape == (2, 4, 18, 26)
    assert net(pyramid(((1, 1),) * 3)).shape == (2, 4, 2, 2)


def test_parameters_of_the_released_protonet() -> None:
    """Three laterals from 256, three convolutions and one, without biases; norms; projection."""
    net = MergedBases(256, 128, 4, convs=3)
    convs = 3 * 256 * 128 * 9 + 4 * 128 * 128 * 9
    assert sum(p.numel() for p in net.parameters()) == convs + 7 * 2 * 128 + 4 * 128 + 4


def test_levels_are_summed_at_the_finest_size() -> None:
    net = MergedBases(6, 8, 4, convs=0).eval()
    p3, p4, p5, _ = pyramid()
    parts = [
        F.interpolate(conv(x), size=p3.shape[-2:], mode="bilinear", align_corners=False)
        for conv, x in zip(net.lateral, (p3, p4, p5), strict=True)
    ]
    enlarged = F.interpolate(sum(parts), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(net(pyramid()), net.project(net.refine(enlarged)))


def test_which_levels_are_read() -> None:
    for kind, read in ((MergedBases, [0, 1, 2]), (DecoderBases, [0, 2])):
        levels = [x.requires_grad_() for x in pyramid()]
        kind(6, 8, 4, convs=1).eval()(levels).sum().backward()
        assert [i for i, x in enumerate(levels) if x.grad is not None] == read


def test_bases_are_not_rectified() -> None:
    """Unlike YOLACT's prototypes: a basis may speak against a pixel."""
    assert (MergedBases(6, 8, 4, convs=1).eval()(pyramid()) < 0).any()
