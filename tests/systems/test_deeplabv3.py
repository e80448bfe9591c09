import pytest
import torch
from torch import nn

from pixelwise import checkpoint
from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.errors import UsageError
from pixelwise.ops.resize import resize
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems import create
from pixelwise.systems.deeplabv3 import DeepLabV3Config
from pixelwise.types import IGNORE, ImageSize, SemanticTarget

TORCHVISION = {
    "backbone_style": "pytorch",
    "multi_grid": (1, 1, 1),
    "projection": "1x1+3x3",
    "aux_weight": 0.5,
}
MMSEG = {
    "backbone_style": "v1c",
    "multi_grid": (1, 1, 1),
    "aspp_width": 512,
    "projection": "3x3",
    "aux_weight": 0.4,
}


def tiny(**options) -> nn.Module:
    torch.manual_seed(0)
    small = {"backbone": "test_resnet", "aspp_width": 8, "num_classes": 3}
    return create("deeplabv3", **{**small, **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 58_040_661),  # the paper's form; deeplab-pytorch's count
        ({"output_stride": 8, "aspp_rates": (12, 24, 36)}, 58_040_661),
        ({"backbone": "resnet50", **TORCHVISION}, 42_004_074),
        ({"backbone": "resnet101", **TORCHVISION}, 60_996_202),
        ({"backbone": "resnet50", **MMSEG}, 68_114_570),
    ],
)
def test_parameters_of_the_released_networks(options: dict, parameters: int) -> None:
    with torch.device("meta"):
        assert count(create("deeplabv3", **options)) == parameters


def test_parameters_of_torchvisions_mobile_network() -> None:
    with torch.device("meta"):
        assert count(create("deeplabv3_mobilenet_v3_large")) == 11_029_328


@pytest.mark.parametrize(
    ("output_stride", "layer3", "layer4"), [(16, 1, [2, 4, 8]), (8, 2, [4, 8, 16])]
)
def test_the_papers_dilations(output_stride: int, layer3: int, layer4: list[int]) -> None:
    """Every block of a dilated stage has its rate, times the multi-grid in the last."""
    with torch.device("meta"):
        backbone = create("deeplabv3", output_stride=output_stride).backbone
    assert {block.conv2.dilation[0] for block in backbone.layer3} == {layer3}
    assert [block.conv2.dilation[0] for block in backbone.layer4] == layer4


@pytest.mark.parametrize("side", [(64, 64), (65, 97), (33, 50), (1, 7)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits_have_the_output_stride(side: tuple[int, int], output_stride: int) -> None:
    net = tiny(output_stride=output_stride).eval()
    logits = net(torch.randn(1, 3, *side)).logits
    assert logits.shape == (1, 3, -(-side[0] // output_stride), -(-side[1] // output_stride))


def test_one_checkpoint_serves_both_output_strides(tmp_path) -> None:
    """Saved at 16, loaded at 8 with twice the rates: the same weights, another network."""
    net = tiny(backbone="resnet18").eval()
    path = tmp_path / "v3.safetensors"
    checkpoint.save(path, net, name="deeplabv3", classes=["a", "b", "c"], input=IMAGENET_RGB)
    dense = checkpoint.load(path, changes={"output_stride": 8, "aspp_rates": (12, 24, 36)}).system
    own, other = net.state_dict(), dense.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in own.items())
    images = torch.randn(1, 3, 97, 129)
    assert net(images).logits.shape[-2:] == (7, 9)
    assert dense(images).logits.shape[-2:] == (13, 17)


def test_the_image_pool_sees_the_whole_image() -> None:
    """A change in one corner reaches the opposite one through the mean alone."""
    images = torch.randn(1, 3, 256, 256)
    changed = images.clone()
    changed[..., :16, :16] += 1
    for image_pool, reaches in (("first", True), ("none", False)):
        net = tiny(
            backbone="resnet18", aspp_rates=(1,), multi_grid=(1, 1, 1), image_pool=image_pool
        ).eval()
        with torch.no_grad():
            difference = (net(images).logits - net(changed).logits).abs()[0, :, -1, -1]
        assert bool((difference > 1e-5).any()) == reaches


def target_of(labels: torch.Tensor) -> list[SemanticTarget]:
    return [SemanticTarget(labels=labels)]


def test_loss_is_taken_on_enlarged_logits() -> None:
    net = tiny().eval()
    labels = torch.randint(0, 3, (49, 33))
    labels[:9] = IGNORE
    images = torch.randn(1, 3, 49, 33)
    logits = resize(net(images).logits, (49, 33), align_corners=True)
    expected = nn.functional.cross_entropy(logits, labels[None], ignore_index=IGNORE)
    torch.testing.assert_close(net.loss(images, target_of(labels))["pixel"], expected)


@pytest.mark.parametrize("align_corners", [True, False])
def test_loss_at_cells_sees_one_label_per_cell(align_corners: bool) -> None:
    """Labels that are wrong everywhere but under the cells cost nothing more."""
    net = tiny(loss_at_cells=True, align_corners=align_corners, aux_weight=0.4, aux_level=3).eval()
    images = torch.randn(1, 3, 48, 32)
    first = 0 if align_corners else 8
    labels = torch.full((48, 32), 2)
    labels[first::16, first::16] = torch.randint(0, 2, (3, 2))
    expected = nn.functional.cross_entropy(
        net(images).logits, labels[first::16, first::16][None], ignore_index=IGNORE
    )
    losses = net.loss(images, target_of(labels))
    torch.testing.assert_close(losses["pixel"], expected)
    auxiliary = net.auxiliary(net.backbone(images)[0])  # at stride 8
    assert auxiliary.shape[-2:] == (6, 4)
    begin = 0 if align_corners else 4
    beneath = labels[begin::8, begin::8][None]
    expected = 0.4 * nn.functional.cross_entropy(auxiliary, beneath, ignore_index=IGNORE)
    torch.testing.assert_close(losses["auxiliary"], expected)


def test_own_pixel_weights_count_in_both_forms_of_the_loss() -> None:
    labels = torch.randint(0, 3, (32, 32))
    weights = torch.ones(32, 32)
    weights[:, :16] = 0
    masked = labels.clone()
    masked[:, :16] = IGNORE
    images = torch.randn(1, 3, 32, 32)
    for loss_at_cells in (False, True):
        net = tiny(loss_at_cells=loss_at_cells).eval()
        a = net.loss(images, [SemanticTarget(labels=labels, weights=weights)])["pixel"]
        torch.testing.assert_close(a, net.loss(images, target_of(masked))["pixel"])


def test_nothing_valid_costs_nothing() -> None:
    net = tiny(aux_weight=0.4)
    losses = net.loss(torch.randn(1, 3, 32, 32), target_of(torch.full((32, 32), IGNORE)))
    assert {k: v.item() for k, v in losses.items()} == {"pixel": 0.0, "auxiliary": 0.0}


def test_the_auxiliary_head_stays_out_of_the_main_graph() -> None:
    net = tiny(aux_weight=0.4).eval()
    with_aux = net(images := torch.randn(1, 3, 32, 32)).logits
    for parameter in net.auxiliary.parameters():
        nn.init.constant_(parameter, float("nan"))
    assert torch.equal(net(images).logits, with_aux)


@pytest.mark.parametrize("align_corners", [False, True])
def test_decode_shows_where_the_logits_are(align_corners: bool) -> None:
    """A square at known pixels comes back within a pixel of where the upsampled logits have it."""
    net = tiny(align_corners=align_corners)
    logits = torch.zeros(1, 3, 5, 5)
    logits[0, 1, 1:4, 1:4] = 2
    logits[0, 0] = 1
    size = ImageSize(original=(65, 65), content=(65, 65), input=(65, 65))
    labels = net.decode(type(net(torch.zeros(1, 3, 32, 32)))(logits), [size])[0].labels
    # The scores are equal half way between the cells 0 and 1, 3 and 4.
    step, offset = (16, 0) if align_corners else (13, 6)
    rows = labels.eq(1).any(1).nonzero().flatten()
    assert abs(int(rows[0]) - (0.5 * step + offset)) <= 1
    assert abs(int(rows[-1]) - (3.5 * step + offset)) <= 1


VARIANTS = [
    ("torchvision", {"backbone": "resnet101", **TORCHVISION, "image_pool": "last"}),
    ("torchvision", {"backbone": "resnet50", **TORCHVISION, "aux_weight": 0.0, "num_classes": 7}),
    ("torchvision", {"backbone": "mobilenet_v3_large", "backbone_style": "torchvision",
                     "projection": "1x1+3x3", "aux_weight": 0.5, "aux_level": 3, "in_channels": 4}),
    ("mmseg", {"backbone": "resnet18", **MMSEG, "aspp_width": 128, "num_classes": 19}),
    ("mmseg", {"backbone": "resnet101", **MMSEG, "backbone_style": "mmseg", "aux_weight": 0.0}),
    ("mmseg", {"backbone": "resnet50", **MMSEG, "backbone_style": "v1d"}),
    ("smp", {"backbone": "resnet34", "backbone_style": "smp", "projection": "1x1+3x3"}),
    ("smp", {"backbone": "resnet18", "backbone_style": "smp", "projection": "1x1+3x3",
             "conv": "bare_separable", "aspp_width": 64, "num_classes": 1}),
    ("deeplab-pytorch", {"backbone": "resnet50", "backbone_style": "deeplab-pytorch",
                         "num_classes": 182}),
]  # fmt: skip


@pytest.mark.parametrize(("origin", "options"), VARIANTS)
def test_variants_convert_both_ways(origin: str, options: dict) -> None:
    """Depth, widths, class count, stem and heads are read from the shapes of the origin's names."""
    with torch.device("meta"):
        net = create("deeplabv3", **options)
        theirs = invert(origins("deeplabv3")[origin].rules(net.cfg), net.state_dict())
        imported = import_checkpoint(theirs, origin=origin, name="deeplabv3")
    back = imported.system
    assert {k: v.shape for k, v in back.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    for field in ("backbone", "backbone_style", "in_channels", "num_classes", "aspp_width", "conv"):
        assert getattr(back.cfg, field) == getattr(net.cfg, field), field
    assert not imported.translation.dropped


def test_old_names_of_smp_are_known() -> None:
    """Until 0.3 its decoder was a sequence: decoder.0, decoder.1, decoder.2."""
    with torch.device("meta"):
        net = create("deeplabv3", backbone="resnet18", projection="1x1+3x3", backbone_style="smp")
        rules = origins("deeplabv3")["smp"].rules(net.cfg)
        new = invert(rules, net.state_dict())
        names = {
            "decoder.aspp.": "decoder.0.",
            "decoder.conv.": "decoder.1.",
            "decoder.bn.": "decoder.2.",
        }
        old = {
            next((n + k.removeprefix(o) for o, n in names.items() if k.startswith(o)), k): v
            for k, v in new.items()
        }
        assert old.keys() != new.keys()
        assert import_checkpoint(old, origin="smp", name="deeplabv3").system.cfg == (
            import_checkpoint(new, origin="smp", name="deeplabv3").system.cfg
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"class_weights": (1.0,)}, "one per class"),
        ({"aspp_rates": ()}, "aspp_rates"),
        ({"projection": "5x5"}, "5x5.*1x1"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"aux_weight": 0.4, "aux_level": 5}, "aux_level"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DeepLabV3Config(**options)
