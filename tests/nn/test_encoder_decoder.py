import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise.nn.encoder_decoder import (
    ContractingPath,
    DoubleConv,
    ExpandingPath,
    UpBlock,
    crop_centre,
    pad_mirrored,
    valid_margin,
    valid_output_size,
)

WIDTHS = (2, 3, 4, 5, 6)


def paths(padding: str, **options) -> tuple[ContractingPath, ExpandingPath]:
    down = ContractingPath(WIDTHS, in_channels=1, padding=padding)
    skips = WIDTHS[-2::-1]
    return down, ExpandingPath(WIDTHS[-1], skips, skips, padding=padding, **options)


def sides(padding: str, side: int) -> tuple[list[int], list[int]]:
    """Sides of the maps of both paths, for a square image."""
    with torch.device("meta"):
        down, up = paths(padding)
        maps = down(torch.empty(1, 1, side, side))
        grown = up(maps[-1], maps[-2::-1])
    return [m.shape[2] for m in maps], [m.shape[2] for m in grown]


def test_the_sizes_of_the_papers_figure() -> None:
    down, up = sides("valid", 572)
    assert down == [568, 280, 136, 64, 28]
    assert up == [52, 100, 196, 388]
    # What a block cuts off the skip on each side, from twice the size of the map below.
    below = [28, *up[:-1]]
    assert [(s - 2 * b) // 2 for s, b in zip(down[-2::-1], below, strict=True)] == [4, 16, 40, 88]


@pytest.mark.parametrize("side", [188, 204, 300, 572])
def test_valid_convolutions_lose_184_pixels(side: int) -> None:
    assert side % 16 == 12
    assert sides("valid", side)[1][-1] == side - 184


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 20, 21, 100, 388, 389])
def test_the_next_valid_size_covers_and_fits(levels: int, size: int) -> None:
    output, margin = valid_output_size(size, levels), valid_margin(levels)
    assert size <= output < size + 2 ** (levels - 1)
    with torch.device("meta"):
        down = ContractingPath(WIDTHS[:levels], in_channels=1, padding="valid")
        side = output + 2 * margin
        assert down(torch.empty(1, 1, side, side))[-1].shape[2] > 0
    for _ in range(levels - 1):  # every pool meets an even size
        side -= 4
        assert side % 2 == 0
        side //= 2


def test_margin_of_the_paper() -> None:
    assert valid_margin(5) == 92


def pass_through(conv: nn.Conv2d, channel: int) -> None:
    """Make a convolution hand one channel on, as it is."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    with torch.no_grad():
        conv.weight[:, channel, 1, 1] = 1


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_what_comes_through_a_skip_stays_in_its_place(padding: str) -> None:
    """With kernels that hand the skip on, a delta image comes out where it went in."""
    down, up = paths(padding)
    for module in down.modules():
        if isinstance(module, nn.Conv2d):
            pass_through(module, 0)
    for module in up.modules():
        if isinstance(module, nn.Conv2d):
            pass_through(module, 0)  # the skip is first
    image = torch.zeros(1, 1, 204, 220)
    image[..., 97, 111] = 1
    maps = down(image)
    out = up(maps[-1], maps[-2::-1])[-1]
    lost = valid_margin(5) if padding == "valid" else 0
    expected = torch.zeros_like(out)
    expected[..., 97 - lost, 111 - lost] = 1
    assert torch.equal(out, expected)


def test_the_middle_is_cut_out() -> None:
    x = torch.arange(7.0).expand(1, 1, 9, 7)
    assert crop_centre(x, (3, 3))[0, 0].tolist() == [[2, 3, 4]] * 3
    assert crop_centre(x, (9, 4))[0, 0, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("upsample", ["deconv", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(16, 32), (17, 31), (1, 2), (5, 100)])
def test_padded_forms_take_any_size(upsample: str, size: tuple[int, int]) -> None:
    down, up = paths("same", upsample=upsample)
    maps = down(torch.randn(2, 1, *size))
    for m, stride in zip(maps, down.strides, strict=True):
        assert m.shape[2:] == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    for grown, skip in zip(up(maps[-1], maps[-2::-1]), maps[-2::-1], strict=True):
        assert grown.shape[2:] == skip.shape[2:]


@pytest.mark.parametrize("upsample", ["deconv", "bilinear", "nearest"])
def test_the_three_ways_up(upsample: str) -> None:
    torch.manual_seed(0)
    block = UpBlock(6, 3, 4, upsample=upsample).eval()
    x, skip = torch.randn(1, 6, 5, 4), torch.randn(1, 3, 10, 8)
    if upsample == "deconv":
        joined = [skip, F.conv_transpose2d(x, block.reduce.weight, block.reduce.bias, stride=2)]
    elif upsample == "bilinear":
        joined = [skip, block.reduce(F.interpolate(x, (10, 8), mode="bilinear"))]
    else:
        joined = [x.repeat_interleave(2, 2).repeat_interleave(2, 3), skip]
    torch.testing.assert_close(block(x, skip), block.fuse(torch.cat(joined, 1)))


def test_a_block_without_skip() -> None:
    block = UpBlock(6, 0, 4, upsample="nearest")
    assert block(torch.randn(1, 6, 5, 4), None).shape == (1, 4, 10, 8)


def test_weights_start_with_the_papers_deviation() -> None:
    torch.manual_seed(0)
    block = UpBlock(256, 64, 64)
    first = block.fuse[0].conv.weight
    assert first.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert block.reduce.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert not DoubleConv(4, 4)[1].conv.bias.any()


def test_norms_take_the_place_of_biases() -> None:
    with_norm, without = DoubleConv(2, 3, norm="batch"), DoubleConv(2, 3)
    assert with_norm[0].conv.bias is None
    assert isinstance(with_norm[0].norm, nn.BatchNorm2d)
    assert without[0].conv.bias is not None


@pytest.mark.parametrize("amounts", [(0, 0, 0, 0), (3, 1, 0, 4), (6, 6, 4, 4)])
def test_mirroring_is_reflection(amounts: tuple[int, int, int, int]) -> None:
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(pad_mirrored(x, amounts), F.pad(x, amounts, mode="reflect"))


def test_mirroring_goes_on_as_often_as_it_takes() -> None:
    wide = pad_mirrored(torch.arange(3.0).view(1, 1, 1, 3), (5, 6, 2, 1))
    assert wide.shape == (1, 1, 4, 14)
    zigzag = [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert (wide[0, 0] == torch.tensor(zigzag)).all()


def test_frozen_levels_stay_in_evaluation() -> None:
    down = ContractingPath((2, 3, 4), norm="batch")
    down.freeze(2)
    down.train()
    assert [level.training for level in down.levels] == [False, False, True]
    trained = {key.split(".")[1] for key, p in down.named_parameters() if p.requires_grad}
    assert trained == {"2"}
