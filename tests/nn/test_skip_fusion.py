import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.skip_fusion import Crops, SkipFusion, border_crops
from pixelwise.ops.alignment import Window
from pixelwise.ops.resize import resize

K = 3
CHANNELS = (6, 5, 4)
SIZES = ((4, 5), (7, 9), (14, 18))  # of an image of 112 x 137: an odd row and column are cut


def fusion(**options) -> SkipFusion:
    torch.manual_seed(0)
    net = SkipFusion(K, CHANNELS, **options)
    for parameter in net.score.parameters():
        nn.init.normal_(parameter)
    return net


def maps(sizes=SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, c, *size, generator=generator)
        for c, size in zip(CHANNELS, sizes, strict=True)
    ]


def test_a_convolution_of_the_concatenation_is_the_sum_of_two() -> None:
    """The claim of the docstring, and a step of the fusion: the bias is counted once."""
    a, b = torch.randn(1, 6, 4, 4), torch.randn(1, 5, 4, 4)
    one, other = nn.Conv2d(6, K, 1), nn.Conv2d(5, K, 1, bias=False)
    weight = torch.cat([one.weight, other.weight], 1)
    whole = F.conv2d(torch.cat([a, b], 1), weight, one.bias)
    torch.testing.assert_close(whole, one(a) + other(b))


@pytest.mark.parametrize("learn", [True, False])
def test_a_reference_in_five_lines(learn: bool) -> None:
    net = fusion(learn=learn)
    given = maps()
    scores = [layer(x) for layer, x in zip(net.score, given, strict=True)]
    total = scores[0]
    for i, score in enumerate(scores[1:]):
        size = score.shape[-2:]
        doubled = net.doublings[i](total) if learn else resize(total, size)
        total = doubled[:, :, : size[0], : size[1]] + score
    torch.testing.assert_close(net(given, (112, 137)), total)
    assert len(net.doublings) == (2 if learn else 0)
    assert all(p.requires_grad for p in net.parameters())


def test_without_skips_only_bilinear_upsampling_is_left() -> None:
    """Twice x2 of the deepest scores, off the border, where a transposed convolution fades."""
    net = fusion()
    for layer in net.score[1:]:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    given = maps(((8, 9), (16, 18), (32, 36)))
    coarse = net.score[0](given[0])
    expected = resize(resize(coarse, (16, 18)), (32, 36))
    inside = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(net(given, (256, 288))[inside], expected[inside])


def test_new_score_layers_change_nothing() -> None:
    """Stage by stage: FCN-16s starts as what FCN-32s has learnt, upsampled."""
    torch.manual_seed(0)
    coarse, fine = SkipFusion(K, CHANNELS[:1]), SkipFusion(K, CHANNELS[:2])
    nn.init.normal_(coarse.score[0].weight)
    missing, unexpected = fine.load_state_dict(coarse.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {"score.1.weight", "score.1.bias", "doublings.0.weight"}
    given = maps()[:2]
    before = coarse(given[:1], (112, 137))
    expected = fine.doublings[0](before)[:, :, :7, :9]
    torch.testing.assert_close(fine(given, (112, 137)), expected)


def test_scaled_maps_with_larger_weights_are_the_unscaled_ones() -> None:
    """Trained at once (0.01 and 0.0001) or stage by stage, the function is the same."""
    staged, at_once = fusion(), fusion(scales=(1.0, 0.01, 0.0001))
    at_once.load_state_dict(staged.state_dict())
    given = maps()
    assert not torch.allclose(at_once(given, (112, 137)), staged(given, (112, 137)))
    with torch.no_grad():
        at_once.score[1].weight *= 100
        at_once.score[2].weight *= 10_000
    torch.testing.assert_close(at_once(given, (112, 137)), staged(given, (112, 137)))


@pytest.mark.parametrize(
    ("backbone", "kernel", "levels", "expected"),
    [  # the numbers of the released networks
        ("vgg16", 7, (5,), Crops((), 19, 32, 64)),
        ("vgg16", 7, (5, 4), Crops((5,), 27, 16, 32)),
        ("vgg16", 7, (5, 4, 3), Crops((5, 9), 31, 8, 16)),
        ("alexnet", 6, (5,), Crops((), 18, 32, 63)),
    ],
)
def test_the_cuts_of_the_release(
    backbone: str, kernel: int, levels: tuple[int, ...], expected: Crops
) -> None:
    with torch.device("meta"):
        net = build_backbone(backbone, style="fcn", levels=levels)
    paths = [net.windows(level) for level in levels]
    paths[0].append(Window(kernel))
    assert border_crops(paths, 2 ** levels[-1]) == expected


@pytest.mark.parametrize("levels", [(5, 4), (5, 4, 3)])
def test_maps_between_each_others_cells_have_no_cut(levels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        net = build_backbone("alexnet", style="fcn", levels=levels)
    paths = [net.windows(level) for level in levels]
    paths[0].append(Window(6))
    with pytest.raises(ValueError, match="no whole number"):
        border_crops(paths, 2 ** levels[-1])


def test_with_a_border_maps_are_cut_and_the_last_kernel_is_fixed() -> None:
    crops = Crops((1, 2), 3, 8, 16)
    net = fusion(crops=crops, learn=False)
    given = maps(((4, 5), (13, 14), (26, 29)))
    a, b, c = (layer(x) for layer, x in zip(net.score, given, strict=True))
    up = F.conv_transpose2d(a, net.doublings[0].weight, stride=2) + b[:, :, 1:11, 1:13]
    up = F.conv_transpose2d(up, net.doublings[1].weight, stride=2) + c[:, :, 2:24, 2:28]
    whole = F.conv_transpose2d(up, net.last.weight, stride=8)[:, :, 3:163, 3:193]
    torch.testing.assert_close(net(given, (160, 190)), whole)
    trainable = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trainable == {"score"}
    assert not fusion(crops=crops).last.weight.requires_grad
    assert fusion(crops=crops).doublings[0].weight.requires_grad
