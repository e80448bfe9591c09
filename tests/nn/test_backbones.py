import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise.convert.backbones import xception_rules
from pixelwise.convert.rules import translate
from pixelwise.errors import UsageError
from pixelwise.nn.backbones import build_backbone, resnet
from pixelwise.nn.backbones.resnet import Block, make_stage
from pixelwise.nn.backbones.xception import Unit, XceptionBlock


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def dilations(stage: nn.Module) -> list[int]:
    return [block.conv2.dilation[0] for block in stage]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # torchvision's and the paper's counts, without the classifier
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("resnet152", 58_143_808),
        ("resnext50_32x4d", 22_979_904),
        ("resnext101_32x8d", 86_742_336),
        ("wide_resnet50_2", 66_834_240),
        ("xception65", 37_867_312),
        ("xception71", 40_289_736),
        ("mobilenet_v3_large", 2_971_952),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(build_backbone(name)) == parameters


@pytest.mark.parametrize(
    ("style", "output_stride", "layer3", "layer4"),
    [
        ("pytorch", 32, [1] * 6, [1, 1, 1]),
        ("pytorch", 16, [1] * 6, [1, 2, 2]),  # contracted: the first keeps the old dilation
        ("pytorch", 8, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ("semseg", 16, [1] * 6, [2, 2, 2]),
        ("semseg", 8, [2] * 6, [4, 4, 4]),
        ("deeplab-pytorch", 8, [2] * 6, [4, 4, 4]),
    ],
)
def test_stride_becomes_dilation(
    style: str, output_stride: int, layer3: list[int], layer4: list[int]
) -> None:
    with torch.device("meta"):
        net = build_backbone("resnet50", style=style, output_stride=output_stride)
    assert (dilations(net.layer3), dilations(net.layer4)) == (layer3, layer4)


@pytest.mark.parametrize(
    ("style", "output_stride", "expected"),
    [
        ("uniform", 16, [2, 4, 8]),
        ("uniform", 8, [4, 8, 16]),
        ("v1c", 16, [1, 2, 4]),  # mmseg's multi-grid states the dilations themselves
        ("v1c", 8, [1, 2, 4]),
    ],
)
def test_multi_grid_in_each_style(style: str, output_stride: int, expected: list[int]) -> None:
    with torch.device("meta"):
        net = build_backbone(
            "resnet50", style=style, output_stride=output_stride, multi_grid=(1, 2, 4)
        )
    assert dilations(net.layer4) == expected


@pytest.mark.parametrize(("style", "second"), [("uniform", 2), ("mmseg", 1)])
def test_mmseg_dilates_only_the_first_of_two_convolutions(style: str, second: int) -> None:
    with torch.device("meta"):
        net = build_backbone("resnet18", style=style, output_stride=16)
    last = net.layer4[1]
    assert (last.conv1.dilation[0], last.conv2.dilation[0]) == (2, second)


def test_multi_grid_multiplies_the_last_stage() -> None:
    with torch.device("meta"):
        net = build_backbone("resnet50", style="semseg", output_stride=16, multi_grid=(1, 2, 4))
    assert dilations(net.layer4) == [2, 4, 8]
    assert dilations(net.layer3) == [1] * 6


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "xception41", "test_resnet", "test_convnext"]
)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_sizes_are_rounded_up_and_match_what_is_stated(name: str, output_stride: int) -> None:
    with torch.device("meta"):
        net = build_backbone(name, output_stride=output_stride, levels=(2, 3, 5))
        maps = net(torch.empty(2, 3, 97, 130))
    assert net.strides == (4, min(8, output_stride), output_stride)
    for channels, stride, out in zip(net.channels, net.strides, maps, strict=True):
        assert out.shape == (2, channels, math.ceil(97 / stride), math.ceil(130 / stride))


@pytest.mark.parametrize("name", ["resnet18", "xception41"])
def test_one_state_dict_serves_every_output_stride(name: str) -> None:
    with torch.device("meta"):
        keys = [
            {k: v.shape for k, v in build_backbone(name, output_stride=s).state_dict().items()}
            for s in (8, 16, 32)
        ]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize(("first", "same"), [(1, True), (2, False)])
def test_only_the_contracted_form_samples_what_the_strided_one_did(first: int, same: bool) -> None:
    """Every second cell of a dilated stage is the strided stage's cell, borders included."""
    torch.manual_seed(0)
    strided = make_stage("resnet50", 4, in_channels=8).eval()
    dilated = make_stage("resnet50", 4, in_channels=8, stride=1, dilations=(first, 2, 2)).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 8, 9, 7)
    with torch.no_grad():
        coarse, fine = strided(x), dilated(x)[..., ::2, ::2]
    assert torch.allclose(coarse, fine, rtol=1e-4, atol=1e-4) == same


@pytest.mark.parametrize(
    ("style", "on_1x1", "on_3x3"), [("pytorch", (1, 1), (2, 2)), ("caffe", (2, 2), (1, 1))]
)
def test_place_of_the_stride(style: str, on_1x1: tuple[int, int], on_3x3: tuple[int, int]) -> None:
    with torch.device("meta"):
        block = build_backbone("resnet50", style=style).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == (on_1x1, on_3x3)


@pytest.mark.parametrize(("style", "widths"), [("v1c", [32, 32, 64]), ("semseg", [64, 64, 128])])
def test_deep_stems(style: str, widths: list[int]) -> None:
    with torch.device("meta"):
        net = build_backbone("resnet50", style=style, in_channels=5)
    assert [part.conv.out_channels for part in net.stem] == widths
    assert net.stem[0].conv.in_channels == 5
    assert net.layer1[0].conv1.in_channels == widths[-1]


@pytest.mark.parametrize(("pool", "side"), [("floor", 33), ("ceil", 33), ("ceil_unpadded", 32)])
def test_rounding_of_the_pool(pool: str, side: int) -> None:
    net = resnet.ResNet("resnet18", levels=(2,), pool=pool)
    assert net(torch.randn(1, 3, 129, 129))[0].shape[-1] == side
    # 66 → stem 33 → 17 in every form; 68 → 34 → 17, but 18 with ceil and padding.
    even = net(torch.randn(1, 3, 68, 68))[0].shape[-1]
    assert even == {"floor": 17, "ceil": 18, "ceil_unpadded": 17}[pool]


@pytest.mark.parametrize("side", [(5, 5), (6, 8), (7, 2), (1, 1)])
def test_average_pooled_shortcut_counts_no_padding(side: tuple[int, int]) -> None:
    block = Block(4, 8, stride=2, bottleneck=False, avg_down=True)
    x = torch.randn(2, 4, *side)
    expected = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(block.shortcut.pool(x), expected)


def test_c4_trunk_and_its_fifth_stage() -> None:
    trunk = build_backbone("resnet50", levels=(4,), norm="frozen", style="caffe")
    assert not hasattr(trunk, "layer4")
    assert (trunk.channels, trunk.strides) == ((1024,), (16,))
    head = make_stage("resnet50", 4, norm="frozen", stride_in_1x1=True)
    assert head(torch.randn(3, 1024, 14, 14)).shape == (3, 2048, 7, 7)
    whole = build_backbone("resnet50", norm="frozen", style="caffe")
    assert count(trunk) + count(head) == count(whole)


@pytest.mark.parametrize("name", ["resnet18", "xception41", "test_resnet", "test_efficientnet"])
def test_freezing_stops_gradients_and_statistics(name: str) -> None:
    net = build_backbone(name)
    net.freeze(2)
    net.train()
    frozen = [p for p in net.parameters() if not p.requires_grad]
    assert 0 < len(frozen) < len(list(net.parameters()))
    still = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and not m.training]
    assert still
    before = [m.running_mean.clone() for m in still]
    net(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(m.running_mean, b) for m, b in zip(still, before, strict=True))
    free = build_backbone(name)
    free.freeze(0)
    assert all(p.requires_grad for p in free.parameters())


def test_xception_shortcut_adds_the_input_without_relu() -> None:
    block = XceptionBlock(
        4, Unit((4, 4, 4), 1, "identity"), stride=1, dilations=(1, 1, 1), norm="batch"
    ).eval()
    for conv in (block.conv1, block.conv2, block.conv3):
        nn.init.zeros_(conv.pointwise.conv.weight)
    x = torch.randn(1, 4, 5, 5)
    kept = x.clone()
    torch.testing.assert_close(block(x)[0], kept)
    torch.testing.assert_close(x, kept)  # nothing worked in place on the input


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("xception71", 16),
        pytest.param("xception71", 32, marks=pytest.mark.slow),
        pytest.param("xception65", 8, marks=pytest.mark.slow),
        pytest.param("xception65", 32, marks=pytest.mark.slow),
        pytest.param("xception41", 8, marks=pytest.mark.slow),
    ],
)
def test_xceptions_equal_timms(name: str, output_stride: int) -> None:
    """At stride 8 timm's Xception-71 lacks a shortcut of its other strides, so it has no row."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        name, features_only=True, output_stride=output_stride, out_indices=(1, 2, 3, 4)
    ).eval()
    ours = build_backbone(name, style="timm", output_stride=output_stride).eval()
    rules = xception_rules(separator="_")
    ours.load_state_dict(translate(rules, theirs.state_dict(), ours.state_dict()).state)
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        for a, b in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("style", "negative"), [("tf", True), ("timm", False)])
def test_xception_tap_before_or_after_relu(style: str, negative: bool) -> None:
    net = build_backbone("xception41", levels=(2, 5), style=style).eval()
    with torch.no_grad():
        tap, last = net(torch.randn(1, 3, 64, 64))
    assert (tap.shape[1], last.shape[1]) == (256, 2048)
    assert bool((tap < 0).any()) == negative


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5", {}, "did you mean resnet50"),
        ("resnet50", {"style": "coffee"}, "coffee.*caffe"),
        ("resnet50", {"output_stride": 4}, "output_stride"),
        ("vit_tiny_patch16_224", {}, "no pyramid"),
        ("swin_tiny_patch4_window7_224", {"output_stride": 16}, "output_stride"),
        ("test_resnet", {"style": "caffe"}, "does not take style"),
        ("test_resnet", {"norm": "group"}, "group"),
        ("test_convnext", {"levels": (1, 5)}, "stride 2"),
    ],
)
def test_what_cannot_be_built_is_said(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_backbone(name, **options)


def test_timm_version_of_our_own_and_other_channels() -> None:
    net = build_backbone("timm/resnet18", in_channels=4, levels=(2,))
    assert net(torch.randn(1, 4, 33, 33))[0].shape == (1, 64, 9, 9)


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("test_resnet", 32),  # average pools of ResNet-D
        ("test_resnet", 8),  # which lose their stride
        ("ese_vovnet19b_dw", 32),  # max-pools of 3x3
        ("hgnetv2_b0", 32),  # max-pools of stride 1
    ],
)
@pytest.mark.parametrize("side", [(64, 96), (61, 87)])
def test_pools_that_round_up_equal_those_of_timm(
    name: str, output_stride: int, side: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    options = {} if output_stride == 32 else {"output_stride": output_stride}
    theirs = timm.create_model(name, features_only=True, **options).eval()
    ours = build_backbone(f"timm/{name}", output_stride=output_stride, levels=(5,)).eval()
    assert any(getattr(m, "ceil_mode", False) for m in theirs.modules())
    assert not any(getattr(m, "ceil_mode", False) for m in ours.modules())
    ours.body.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, *side)
    with torch.no_grad():
        torch.testing.assert_close(ours.body(images)[-1], theirs(images)[-1])


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t"])
def test_frozen_norms_and_depthwise_convolutions_equal_those_of_timm(name: str) -> None:
    """Maps and gradients; the second family has norms without activations."""
    torch.manual_seed(0)
    net = build_backbone(f"timm/{name}", norm="frozen", levels=(3, 5)).train()
    theirs = timm.create_model(name, features_only=True, out_indices=(2, 4)).eval()
    state = {
        k: v + 0.3 * torch.rand_like(v) if v.ndim == 1 else v  # the norms
        for k, v in net.body.state_dict().items()
    }
    net.body.load_state_dict(state)
    theirs.load_state_dict(state, strict=False)
    image = torch.randn(1, 3, 66, 64)
    maps, expected = net(image), theirs(image)
    for a, b in zip(maps, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))
    for found in (maps, expected):
        sum(m.square().mean() for m in found).backward()
    for key, parameter in net.body.named_parameters():
        other = theirs.get_parameter(key).grad
        error = (parameter.grad - other).norm() / other.norm()
        assert error < 1e-3, key


def test_frozen_norms_of_timm_hold_no_parameters() -> None:
    net = build_backbone("test_resnet", norm="frozen")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
