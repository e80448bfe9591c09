import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.systems import create
from pixelwise.systems.pspnet import PSPNetConfig
from pixelwise.types import IGNORE, ImageSize, SemanticTarget

TINY = {"backbone": "test_resnet", "num_classes": 3, "branch_width": 4, "head_width": 8}


def tiny(**options) -> nn.Module:
    torch.manual_seed(0)
    return create("pspnet", **{**TINY, **options})


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"backbone": "resnet50"}, 49_081_578),
        ({"backbone": "resnet101", "num_classes": 19}, 68_072_166),
        ({"backbone": "resnet50", "backbone_style": "v1c"}, 48_977_034),
    ],
    ids=["semseg 50", "semseg 101", "mmseg 50"],
)
def test_parameters_of_the_released_networks(options: dict, count: int) -> None:
    with torch.device("meta"):
        net = create("pspnet", **options)
    assert sum(p.numel() for p in net.parameters()) == count


def test_the_authors_backbone_has_a_deep_stem_and_uniform_dilation() -> None:
    with torch.device("meta"):
        backbone = create("pspnet_resnet50").backbone
    assert [part.conv.out_channels for part in backbone.stem] == [64, 64, 128]
    assert {block.conv2.dilation for block in backbone.layer3} == {(2, 2)}
    assert {block.conv2.dilation for block in backbone.layer4} == {(4, 4)}
    assert backbone.strides == (8, 8)


@pytest.mark.parametrize("side", [(64, 64), (65, 97), (33, 50), (1, 7)])
def test_any_size_runs(side: tuple[int, int]) -> None:
    net = tiny().eval()
    logits = net(torch.randn(2, 3, *side)).logits
    assert logits.shape == (2, 3, -(-side[0] // 8), -(-side[1] // 8))


def test_with_the_branches_zeroed_the_head_sees_only_the_map() -> None:
    net = tiny(with_mean_norm=False).eval()
    for project in net.pyramid.project:
        for parameter in project.parameters():
            nn.init.zeros_(parameter)
    images = torch.randn(1, 3, 64, 72)
    x = net.backbone(images)[-1]
    kernels = net.fuse.conv.weight[:, : x.shape[1]]  # those that read the map
    expected = net.classify(F.relu(net.fuse.norm(F.conv2d(x, kernels, padding=1))))
    torch.testing.assert_close(net(images).logits, expected)


def test_the_auxiliary_head_reads_stage_4_and_is_weighted() -> None:
    net = tiny(aux_weight=0.4).eval()
    images = torch.randn(2, 3, 65, 65)
    labels = torch.randint(0, 3, (2, 65, 65))
    labels[:, :9] = IGNORE
    losses = net.loss(images, [SemanticTarget(labels=one) for one in labels])
    maps = net.backbone(images)
    for key, logits, weight in (
        ("pixel", net(images).logits, 1.0),
        ("auxiliary", net.auxiliary(maps[0]), 0.4),
    ):
        full = F.interpolate(logits, (65, 65), mode="bilinear", align_corners=True)
        expected = weight * F.cross_entropy(full, labels, ignore_index=IGNORE)
        torch.testing.assert_close(losses[key], expected)
    assert "auxiliary" not in tiny(aux_weight=0.0).loss(
        images, [SemanticTarget(labels=labels[0])] * 2
    )


@pytest.mark.parametrize("align_corners", [True, False])
def test_decoding_resizes_as_the_loss_does(align_corners: bool) -> None:
    net = tiny(align_corners=align_corners).eval()
    raw = net(torch.randn(1, 3, 41, 57))
    (found,) = net.decode(raw, [ImageSize.same((41, 57))])
    full = F.interpolate(raw.logits, (41, 57), mode="bilinear", align_corners=align_corners)
    assert torch.equal(found.labels, full.argmax(1)[0].to(torch.uint8))


def test_a_map_of_an_earlier_level_is_pooled() -> None:
    net = tiny(level=3, output_stride=32, aux_weight=0.0, head_kernels=(1, 3)).eval()
    assert net(torch.randn(1, 3, 64, 64)).logits.shape == (1, 3, 8, 8)
    assert net.classify.kernel_size == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": ()}, "bins"),
        ({"bins": (0, 2)}, "bins"),
        ({"head_kernels": (2, 1)}, "head_kernels"),
        ({"level": 3}, "aux_weight"),
        ({"map_place": "middle"}, "middle.*first"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"num_classes": 0}, "num_classes"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PSPNetConfig(**options)
