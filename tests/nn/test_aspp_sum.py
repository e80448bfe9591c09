import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.nn.aspp_sum import SummedASPP


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def zero_stuffed(weight: Tensor, rate: int, side: int) -> Tensor:
    """A 3x3 kernel with its taps `rate` apart, in the middle of a kernel of side x side."""
    kernel = weight.new_zeros(*weight.shape[:2], side, side)
    first = side // 2 - rate
    kernel[:, :, first::rate, first::rate][:, :, :3, :3] = weight
    return kernel


@pytest.mark.parametrize("rates", [(6, 12, 18, 24), (3, 6, 9, 12), (2, 4, 8, 12), (1, 5)])
def test_the_sum_is_one_convolution_with_a_large_sparse_kernel(rates: tuple[int, ...]) -> None:
    """ASPP-L has a 49x49 kernel; all branches share its centre, so 33 taps are not zero."""
    aspp = SummedASPP(4, 3, rates=rates).double()
    for conv in aspp.classify:
        torch.nn.init.normal_(conv.bias)
    side = 2 * max(rates) + 1
    kernel = sum(zero_stuffed(c.weight, r, side) for c, r in zip(aspp.classify, rates, strict=True))
    bias = sum(c.bias for c in aspp.classify)  # one per branch, all of them count
    x = torch.randn(2, 4, 33, 29, dtype=torch.float64)
    torch.testing.assert_close(aspp(x), F.conv2d(x, kernel, bias, padding=side // 2))
    assert (kernel[0, 0] != 0).sum() == 8 * len(rates) + 1
    if rates == (6, 12, 18, 24):
        assert side == 49


def test_vgg_branches_are_fc6_fc7_fc8_each() -> None:
    rates = (1, 2, 3)
    aspp = SummedASPP(3, 4, rates=rates, width=6).eval()
    x = torch.randn(2, 3, 11, 9)
    total = torch.zeros(2, 4, 11, 9)
    for context, classify, rate in zip(aspp.context, aspp.classify, rates, strict=True):
        fc6, fc7 = context.fc6, context.fc7
        y = F.relu(F.conv2d(x, fc6.weight, fc6.bias, padding=rate, dilation=rate))
        total += F.conv2d(F.relu(F.conv2d(y, fc7.weight, fc7.bias)), classify.weight, classify.bias)
    torch.testing.assert_close(aspp(x), total)
    assert (aspp.train()(x) != aspp(x)).any()  # dropout within the branches


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"in_channels": 2048}, 4 * (2048 * 9 + 1) * 21),
        (
            {"in_channels": 512, "width": 1024},
            4 * ((512 * 9 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 21),
        ),
    ],
)
def test_parameters(options: dict[str, int], parameters: int) -> None:
    with torch.device("meta"):
        assert count(SummedASPP(num_classes=21, **options)) == parameters


def test_a_map_smaller_than_the_rates_leaves_the_centre_taps() -> None:
    aspp = SummedASPP(2, 3).double()
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    centre = sum(c.weight[:, :, 1:2, 1:2] for c in aspp.classify)
    torch.testing.assert_close(aspp(x), F.conv2d(x, centre))
