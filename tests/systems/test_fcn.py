from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise import checkpoint
from pixelwise.class_rows import load_by_class
from pixelwise.errors import UsageError
from pixelwise.export import Passport, export_onnx, export_program, open_dimensions
from pixelwise.ops.resize import resize
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems import create
from pixelwise.systems.fcn import FCNConfig
from pixelwise.types import IGNORE, SemanticTarget

TINY = {"backbone": "test_vgg", "num_classes": 3, "fc_width": 16}
BORDERS = ["fcn32s_vgg16_pad100", "fcn16s_vgg16_pad100", "fcn8s_vgg16_pad100"]


def tiny(name: str = "fcn", **options) -> nn.Module:
    """A narrow network whose scores are not all zero, as they are at the start."""
    torch.manual_seed(0)
    net = create(name, **{**TINY, **options})
    if net.fusion is not None:
        for layer in net.fusion.score:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return net


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "bare", "whole"),
    [  # without and with the K x K kernels of the upsampling
        ("fcn32s_alexnet_pad100", 56_954_261, 58_704_590),
        ("fcn32s_vgg16_pad100", 134_346_581, 136_152_917),
        ("fcn16s_vgg16_pad100", 134_357_354, 134_815_994),
        ("fcn8s_vgg16_pad100", 134_362_751, 134_489_759),
        ("fcn8s_vgg16", 134_362_751, 134_362_751 + 2 * 21 * 21 * 16),
        ("fcn32s_vgg16", 134_346_581, 134_346_581),
    ],
)
def test_parameters_of_the_paper(name: str, bare: int, whole: int) -> None:
    with torch.device("meta"):
        net = create(name)
    assert count(net) == whole
    upsampling = sum(
        p.numel()
        for key, p in net.named_parameters()
        if ".score" not in key and key.startswith("fusion")
    )
    assert whole - upsampling == bare


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("fcn_resnet50", {}, 35_322_218),
        ("fcn_resnet101", {}, 54_314_346),
        ("fcn_resnet50", {"aux_weight": 0.0}, 35_322_218 - (1024 * 256 * 9 + 512 + 257 * 21)),
        ("fcn_resnet50_v1c", {}, 49_499_274),
    ],
)
def test_parameters_of_the_resnets(name: str, options: dict, parameters: int) -> None:
    with torch.device("meta"):
        assert count(create(name, **options)) == parameters


def test_the_light_row_has_no_wide_layers() -> None:
    with torch.device("meta"):
        net = create("fcn_efficientnet_lite0", num_classes=11)
    assert net.classifier is None
    assert count(net.fusion) == 11 * (320 + 112 + 40 + 3) + 2 * 11 * 11 * 16
    assert count(net) < 4e6


def test_maps_of_a_side_of_97_pixels() -> None:
    """The worked example of the release: 148, 74, 37, 19, 10; fc6 4; 10, 22, 184."""
    with torch.device("meta"):
        net = create("fcn8s_vgg16_pad100", backbone="test_vgg", fc_width=8)
        maps = net.backbone(torch.empty(1, 3, 97, 97))
        deep = net.classifier(maps[-1])
        first = net.fusion.doublings[0](net.fusion.score[0](deep))
        second = net.fusion.doublings[1](first)
        sides = [x.shape[-1] for x in (*maps, deep, first, second, net.fusion.last(second))]
    assert sides == [37, 19, 10, 4, 10, 22, 184]
    assert net.fusion.crops == ((5, 9), 31, 8, 16)


def cells_beside(net: nn.Module, side: int) -> Iterator[int]:
    """What is left of every map behind the part that is used of it; negative would be too little.

    The cuts could not tell: they are paddings, and would fill up with zeros.
    """
    fusion = net.fusion
    maps = net.backbone(torch.empty(1, 3, side, side))
    total = fusion.score[0](net.classifier(maps[-1]))
    for i, x in enumerate(maps[-2::-1]):
        total = fusion.doublings[i](total)
        yield x.shape[-1] - fusion.crops.skips[i] - total.shape[-1]
    yield fusion.last(total).shape[-1] - fusion.crops.whole - side


SIDES = [*range(1, 70), 97, 127, 500, 513]


@pytest.mark.parametrize("sides", [SIDES, pytest.param(range(1, 1200), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*BORDERS, "fcn32s_alexnet_pad100"])
def test_the_border_is_wide_enough_for_every_side(name: str, sides: list[int]) -> None:
    with torch.device("meta"):
        backbone = "alexnet" if "alexnet" in name else "test_vgg"
        net = create(name, backbone=backbone, fc_width=8).eval()
        for side in sides:
            assert min(cells_beside(net, side)) >= 0, side


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 31), (64, 50)])
@pytest.mark.parametrize("name", [*BORDERS, "fcn32s_alexnet_pad100"])
def test_with_the_border_logits_have_the_size_of_the_image(name: str, size) -> None:
    with torch.device("meta"):
        options = {} if "alexnet" in name else {"backbone": "test_vgg"}
        net = create(name, fc_width=8, num_classes=3, **options)
        assert net(torch.empty(2, 3, *size)).logits.shape == (2, 3, *size)


@pytest.mark.parametrize("backbone", ["test_vgg", "alexnet", "test_resnet", "resnet18"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_aligned_logits_have_one_cell_per_stride(backbone: str, stride: int) -> None:
    with torch.device("meta"):
        net = create("fcn", **{**TINY, "backbone": backbone}, output_stride=stride).eval()
        for height, width in [(1, 1), (7, 33), (64, 96), (97, 130), (65, 31)]:
            logits = net(torch.empty(1, 3, height, width)).logits
            assert logits.shape == (1, 3, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("name", ["fcn32s_vgg16", "fcn8s_vgg16", "fcn8s_vgg16_pad100"])
def test_a_shift_by_the_stride_shifts_the_scores(name: str) -> None:
    """By the deepest stride, off the border: zeros around the image do not shift with it."""
    net = tiny(name, fc_kernel=3).eval()
    cell = 1 if net.cfg.with_border else net.cfg.output_stride
    images = torch.randn(1, 3, 416, 416)
    with torch.no_grad():
        whole = net(images).logits
        moved = net(images[..., 32:, 32:]).logits
    step, edge = 32 // cell, 192 // cell
    side = moved.shape[-1]
    inner = slice(edge, side - edge // 2)
    shifted = slice(edge + step, side - edge // 2 + step)
    assert inner.stop - inner.start >= 2
    found, expected = moved[..., inner, inner], whole[..., shifted, shifted]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-3


def test_a_cell_off_the_border_is_the_network_on_its_own_patch() -> None:
    """With zeros around the maps only cells whose field misses the border have that property."""
    net = tiny("fcn32s_vgg16", fc_kernel=3).eval()
    images = torch.randn(1, 3, 32 * 9, 32 * 9)
    # The field of view, 158 pixels, of cell 4 lies within the 7 cells around it.
    patch = images[..., 32 : 32 * 8, 32 : 32 * 8]
    with torch.no_grad():
        whole, alone = net(images).logits, net(patch).logits
    torch.testing.assert_close(whole[..., 4, 4], alone[..., 3, 3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[..., 1, 1], alone[..., 0, 0], rtol=1e-2)


@pytest.mark.parametrize("with_border", [False, True])
def test_without_skips_the_8s_is_upsampled_from_the_deepest_scores(with_border: bool) -> None:
    net = tiny(with_border=with_border).eval()
    for layer in net.fusion.score[1:]:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    images = torch.randn(1, 3, 256, 320)
    with torch.no_grad():
        logits = net(images).logits
        x = net.fusion.score[0](net.classifier(net.backbone(images)[-1]))
        if with_border:
            for up in (*net.fusion.doublings, net.fusion.last):
                x = F.conv_transpose2d(x, up.weight, stride=up.stride)
            torch.testing.assert_close(logits, x[:, :, 31 : 31 + 256, 31 : 31 + 320])
            return
        for _ in range(2):
            x = resize(x, (2 * x.shape[2], 2 * x.shape[3]))
    inside = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(logits[inside], x[inside])


@pytest.mark.parametrize("with_border", [False, True])
def test_trained_at_once_or_in_stages_the_function_is_one(with_border: bool) -> None:
    staged = tiny(with_border=with_border).eval()
    at_once = tiny(with_border=with_border, skip_scales=(0.01, 0.0001)).eval()
    with torch.no_grad():
        at_once.fusion.score[1].weight *= 100
        at_once.fusion.score[2].weight *= 10_000
        images = torch.randn(1, 3, 70, 61)
        torch.testing.assert_close(at_once(images).logits, staged(images).logits)


@pytest.mark.parametrize("with_border", [False, True])
def test_the_stages_follow_each_other(with_border: bool) -> None:
    """FCN-32s's weights start FCN-16s, which starts FCN-8s: only what is new is missing."""
    nets = [tiny(output_stride=stride, with_border=with_border) for stride in (32, 16, 8)]
    for i, (coarse, fine) in enumerate(pairwise(nets)):
        state = {k: v for k, v in coarse.state_dict().items() if k != "fusion.last.weight"}
        missing, unexpected = fine.load_state_dict(state, strict=False)
        assert not unexpected
        new = {f"fusion.score.{i + 1}.weight", f"fusion.score.{i + 1}.bias"}
        new |= {f"fusion.doublings.{i}.weight"} | ({"fusion.last.weight"} if with_border else set())
        assert set(missing) == new


@pytest.mark.parametrize(
    ("options", "fixed"),
    [
        ({}, set()),
        ({"with_border": True}, {"fusion.last.weight"}),
        (
            {"with_border": True, "learn_upsampling": False},
            {"fusion.last.weight", "fusion.doublings.0.weight", "fusion.doublings.1.weight"},
        ),
    ],
)
def test_the_last_upsampling_never_learns(options: dict, fixed: set[str]) -> None:
    net = tiny(**options)
    assert {key for key, p in net.named_parameters() if not p.requires_grad} == fixed


@pytest.mark.parametrize("with_border", [False, True])
def test_score_layers_start_at_zero(with_border: bool) -> None:
    net = create("fcn", **TINY, with_border=with_border).eval()
    assert not net(torch.randn(1, 3, 40, 40)).logits.any()


@pytest.mark.parametrize("with_border", [False, True])
def test_loss_is_the_mean_over_valid_pixels(with_border: bool) -> None:
    net = tiny(with_border=with_border).eval()
    labels = torch.randint(0, 3, (49, 33))
    labels[:9] = IGNORE
    images = torch.randn(1, 3, 49, 33)
    logits = net(images).logits
    logits = logits if with_border else resize(logits, (49, 33))
    expected = F.cross_entropy(logits, labels[None], ignore_index=IGNORE)
    losses = net.loss(images, [SemanticTarget(labels=labels)])
    assert losses.keys() == {"pixel"}
    torch.testing.assert_close(losses["pixel"], expected)


def test_the_auxiliary_head_looks_at_the_fourth_stage() -> None:
    net = tiny("fcn_resnet50", backbone="resnet18", aux_weight=0.5, head_width=8).eval()
    labels, images = torch.randint(0, 3, (49, 33)), torch.randn(1, 3, 49, 33)
    fourth, fifth = net.backbone(images)
    assert (fourth.shape[1], fifth.shape[1]) == (256, 512)
    assert fourth.shape[2:] == fifth.shape[2:] == (7, 5)  # dilated: both at stride 8
    losses = net.loss(images, [SemanticTarget(labels=labels)])
    for name, weight, logits in (
        ("pixel", 1.0, net.head(fifth)),
        ("auxiliary", 0.5, net.auxiliary(fourth)),
    ):
        expected = F.cross_entropy(resize(logits, (49, 33)), labels[None])
        torch.testing.assert_close(losses[name], weight * expected)


def test_settings_of_the_heads_reach_them() -> None:
    with torch.device("meta"):
        net = create("fcn_resnet50_v1c", head_dilation=6, output_stride=16, aux_width=100)
    assert [c.conv.dilation for c in net.head.refine] == [(6, 6), (6, 6)]
    assert net.auxiliary.fuse.conv.dilation == (6, 6)
    assert net.auxiliary.classify.in_channels == 100
    assert net.head.fuse.conv.in_channels == 2048 + 512
    assert net.head.dropout.p == net.auxiliary.dropout.p == 0.1
    assert net.backbone.strides == (16, 16)


@pytest.mark.parametrize(
    ("name", "options"),
    [("fcn8s_vgg16_pad100", TINY), ("fcn_resnet50", {"backbone": "resnet18", "num_classes": 3})],
)
def test_known_classes_keep_their_rows_and_columns(tmp_path, name: str, options: dict) -> None:
    torch.manual_seed(0)
    old = create(name, **options)
    for key, p in old.named_parameters():
        if key.startswith(("fusion", "head.classify", "auxiliary.classify")):
            nn.init.normal_(p)
    path = tmp_path / "fcn.safetensors"
    checkpoint.save(path, old, name=name, classes=("a", "b", "c"), input=IMAGENET_RGB)
    fresh = create(name, **{**options, "num_classes": 2})
    load_by_class(fresh, path, classes=("c", "a"))
    stored, after = old.state_dict(), fresh.state_dict()
    changed = [key for key in after if after[key].shape != stored[key].shape]
    assert changed
    for key in changed:
        expected = stored[key][[2, 0]]
        if key.startswith(("fusion.doublings", "fusion.last")):
            expected = expected[:, [2, 0]]
        torch.testing.assert_close(after[key], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"output_stride": 4}, "output_stride=4.*32, 16, 8"),
        ({"head": "deconv"}, "deconv.*skips, convs, concat"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"loss": "hinge"}, "hinge"),
        ({"class_weights": (1.0,)}, "one per class"),
        ({"skip_scales": (0.01,)}, "1 values for 2 skips"),
        ({"aux_weight": 0.4}, "aux_weight"),
        ({"with_border": True, "backbone": "resnet50"}, "resnet50"),
        ({"with_border": True, "head": "convs"}, "head='skips'"),
        ({"with_border": True, "backbone_style": "torchvision"}, "style"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FCNConfig(**options)


def test_alexnet_with_a_border_has_no_skips() -> None:
    with torch.device("meta"), pytest.raises(UsageError, match="alexnet at output_stride 16"):
        create("fcn32s_alexnet_pad100", output_stride=16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn32s_vgg16", {}),
        ("fcn8s_vgg16", {}),
        ("fcn8s_vgg16", {"learn_upsampling": False}),
        ("fcn32s_vgg16_pad100", {}),
        ("fcn8s_vgg16_pad100", {}),
        ("fcn32s_alexnet", {"backbone": "alexnet"}),
        ("fcn32s_alexnet_pad100", {"backbone": "alexnet"}),
        ("fcn_resnet50_v1c", {"backbone": "resnet18", "head_width": 8}),
        ("fcn_efficientnet_lite0", {"backbone": "tf_efficientnet_lite0", "fc_width": 0}),
    ],
)
def test_exports_run_at_another_size(tmp_path, name: str, options: dict) -> None:
    """`export_program` and `export_onnx` compare at a second size; a side of it is odd."""
    pytest.importorskip("onnxruntime")
    net = tiny(name, **options)
    assert open_dimensions(net) == ("sizes32" if "lite0" in name else "sizes")
    example = torch.randn(1, 3, 64, 96)
    export_program(net, example)
    passport = Passport(name=name, task="semantic", classes=("a", "b", "c"), input=IMAGENET_RGB)
    export_onnx(net, tmp_path / "fcn.onnx", example, passport=passport)
