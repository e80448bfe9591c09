import pytest
import torch
from torch import nn

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.errors import UsageError
from pixelwise.ops.resize import resize
from pixelwise.systems import create
from pixelwise.systems.deeplabv3plus import DeepLabV3PlusConfig
from pixelwise.types import IGNORE, ImageSize, SemanticTarget

TINY = {"backbone": "test_resnet", "aspp_width": 8, "decoder_width": 8, "num_classes": 3}


def tiny(**options) -> nn.Module:
    torch.manual_seed(0)
    return create("deeplabv3plus", **{**TINY, **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_paper() -> None:
    """The backbone, ASPP, its projection and the decoder with its classifier, as specified."""
    with torch.device("meta"):
        net = create("deeplabv3plus")
    projection = count(net.context.project)
    assert projection == 328_192
    assert count(net.context) - projection == 2_691_584
    assert count(net.decoder) + count(net.classify) == 168_325
    assert count(net) == 41_055_413


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # 32 low-level channels: 16 fewer rows of the reduction, inputs of the first convolution
        ({"low_level_width": 32}, 41_055_413 - 16 * (256 + 2) - 16 * (9 + 2 + 256)),
        ({"output_stride": 8, "aspp_rates": (12, 24, 36)}, 41_055_413),
        ({"backbone": "xception71"}, 41_055_413 + 40_289_736 - 37_867_312),
        # smp: one convolution, nothing within a pair, a 3x3 after the projection
        (
            {"conv": "bare_separable", "projection": "1x1+3x3", "decoder_depth": 1},
            41_042_005,
        ),
        # mmseg
        (
            {
                "backbone": "resnet50",
                "backbone_style": "v1c",
                "projection": "3x3",
                "aspp_width": 512,
                "decoder_width": 512,
                "aux_weight": 0.4,
            },
            43_591_418,
        ),
    ],
)
def test_parameters_of_variants(options: dict, parameters: int) -> None:
    with torch.device("meta"):
        assert count(create("deeplabv3plus", **options)) == parameters


def test_norms_of_the_backbone_have_another_epsilon_than_those_of_the_head() -> None:
    with torch.device("meta"):
        net = create("deeplabv3plus")

    def epsilons(module: nn.Module) -> set[float]:
        return {m.eps for m in module.modules() if isinstance(m, nn.BatchNorm2d)}

    assert epsilons(net.backbone) == {1e-3}
    assert epsilons(net.context) | epsilons(net.decoder) == {1e-5}


@pytest.mark.parametrize("name", ["deeplabv3plus_resnet50", "deeplabv3plus_resnet101"])
def test_resnets_have_the_multi_grid_of_deeplabv3(name: str) -> None:
    with torch.device("meta"):
        backbone = create(name).backbone
    assert [block.conv2.dilation[0] for block in backbone.layer4] == [2, 4, 8]


def test_one_state_dict_serves_both_output_strides() -> None:
    coarse = tiny(backbone="resnet18", output_stride=16).eval()
    dense = tiny(backbone="resnet18", output_stride=8, aspp_rates=(12, 24, 36)).eval()
    dense.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 65, 97)
    assert coarse(images).logits.shape == dense(images).logits.shape == (1, 3, 17, 25)
    assert coarse.context(coarse.backbone(images)[-1]).shape[-2:] == (5, 7)
    assert dense.context(dense.backbone(images)[-1]).shape[-2:] == (9, 13)


@pytest.mark.parametrize("side", [(64, 64), (65, 97), (33, 50)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits_have_stride_four(side: tuple[int, int], output_stride: int) -> None:
    net = tiny(output_stride=output_stride).eval()
    logits = net(torch.randn(1, 3, *side)).logits
    assert logits.shape == (1, 3, -(-side[0] // 4), -(-side[1] // 4))


def test_without_the_shallow_map_the_decoder_sees_the_context_alone() -> None:
    net = tiny().eval()
    nn.init.zeros_(net.decoder.reduce.norm.weight)
    nn.init.zeros_(net.decoder.reduce.norm.bias)
    context = torch.randn(1, 8, 4, 4)
    outs = [net.decoder(context, torch.randn(1, 32, 16, 16)) for _ in range(2)]
    assert torch.equal(*outs)
    assert not torch.equal(outs[0], net.decoder(context + 1, torch.randn(1, 32, 16, 16)))


def loss_of(net: nn.Module, *targets: SemanticTarget) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return net.loss(torch.randn(len(targets), 3, 32, 32), list(targets))


def test_loss_is_the_mean_over_valid_pixels() -> None:
    net = tiny(align_corners=False).eval()
    labels = torch.randint(0, 3, (32, 32))
    labels[:9] = IGNORE
    torch.manual_seed(1)
    images = torch.randn(1, 3, 32, 32)
    logits = resize(net(images).logits, (32, 32))
    expected = nn.functional.cross_entropy(logits, labels[None], ignore_index=IGNORE)
    torch.testing.assert_close(loss_of(net, SemanticTarget(labels=labels))["pixel"], expected)


def test_pixel_weights_of_one_target_count() -> None:
    net = tiny().eval()
    labels = torch.randint(0, 3, (32, 32))
    weights = torch.ones(32, 32)
    weights[:, :16] = 0
    masked = labels.clone()
    masked[:, :16] = IGNORE
    a = loss_of(net, SemanticTarget(labels=labels, weights=weights), SemanticTarget(labels=labels))
    b = loss_of(net, SemanticTarget(labels=masked), SemanticTarget(labels=labels))
    torch.testing.assert_close(a["pixel"], b["pixel"])


def test_class_weights_are_no_part_of_the_checkpoint() -> None:
    plain, weighted = tiny().eval(), tiny(class_weights=[1.0, 5.0, 0.5]).eval()
    assert plain.state_dict().keys() == weighted.state_dict().keys()
    assert weighted.cfg.class_weights == (1.0, 5.0, 0.5)
    weighted.load_state_dict(plain.state_dict())
    target = SemanticTarget(labels=torch.arange(32 * 32).view(32, 32) % 3)
    a, b = loss_of(plain, target)["pixel"], loss_of(weighted, target)["pixel"]
    assert not torch.isclose(a, b)


def test_nothing_valid_costs_nothing() -> None:
    net = tiny(aux_weight=0.4)
    losses = loss_of(net, SemanticTarget(labels=torch.full((32, 32), IGNORE)))
    assert {k: v.item() for k, v in losses.items()} == {"pixel": 0.0, "auxiliary": 0.0}


def test_batch_size_one_trains() -> None:
    net = tiny().train()
    losses = loss_of(net, SemanticTarget(labels=torch.zeros(32, 32, dtype=torch.int64)))
    losses["pixel"].backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_auxiliary_head_stays_out_of_the_main_graph() -> None:
    net = tiny(aux_weight=0.4).eval()
    with_aux = net(images := torch.randn(1, 3, 32, 32)).logits
    for parameter in net.auxiliary.parameters():
        nn.init.constant_(parameter, float("nan"))
    assert torch.equal(net(images).logits, with_aux)


@pytest.mark.parametrize("align_corners", [False, True])
def test_decode_shows_where_the_logits_are(align_corners: bool) -> None:
    """A square at known pixels comes back within half a pixel, from any size of the original."""
    net = tiny(align_corners=align_corners)
    grid = torch.arange(16)
    inside = (grid >= 4) & (grid < 12)
    logits = torch.zeros(1, 3, 16, 16)
    logits[0, 1] = (inside[:, None] & inside).float() * 2 - 1
    for original in ((64, 64), (97, 131), (31, 33)):
        size = ImageSize(original=original, content=(64, 64), input=(64, 64))
        labels = net.decode(type(net(torch.zeros(1, 3, 32, 32)))(logits), [size])[0].labels
        for axis, side in enumerate(original):
            hit = labels.eq(1).any(1 - axis).nonzero().flatten()
            centre = (hit[0] + hit[-1] + 1) / 2
            assert abs(centre.item() - side / 2) <= 0.5


def test_probabilities_on_request() -> None:
    net = tiny().eval()
    raw, size = net(torch.randn(1, 3, 32, 32)), ImageSize.same((32, 32))
    assert net.decode(raw, [size])[0].probs is None
    probs = net.decode(raw, [size], with_probs=True)[0].probs
    torch.testing.assert_close(probs.sum(0), torch.ones(32, 32))


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(channels: int) -> None:
    net = tiny(in_channels=channels).eval()
    assert net(torch.randn(1, channels, 32, 32)).logits.shape == (1, 3, 8, 8)


MMSEG = {"backbone_style": "v1c", "projection": "3x3", "aux_weight": 0.4, "low_level_width": 12}
SMP = {"conv": "bare_separable", "projection": "1x1+3x3", "decoder_depth": 1}
PLAIN = {"backbone_style": "deeplab-pytorch", "conv": "plain"}
VARIANTS = [
    ("mmseg", {"backbone": "resnet18", **MMSEG, "aspp_width": 128, "decoder_width": 128}),
    ("mmseg", {"backbone": "resnet101", **MMSEG, "num_classes": 19, "aux_weight": 0.0}),
    ("smp", {"backbone": "resnet101", "backbone_style": "smp", **SMP, "num_classes": 4}),
    ("smp", {"backbone": "xception71", "backbone_style": "timm", **SMP, "decoder_width": 64,
             "aspp_width": 64}),
    ("deeplab-pytorch", {"backbone": "resnet101", **PLAIN}),
    ("deeplab-pytorch", {"backbone": "resnet50", **PLAIN, "num_classes": 182}),
]  # fmt: skip


@pytest.mark.parametrize(("origin", "options"), VARIANTS)
def test_variants_convert_both_ways(origin: str, options: dict) -> None:
    """Depth, widths, class count and heads are read from the shapes of the origin's names."""
    with torch.device("meta"):
        net = create("deeplabv3plus", **options)
        theirs = invert(origins("deeplabv3plus")[origin].rules(net.cfg), net.state_dict())
        imported = import_checkpoint(theirs, origin=origin, name="deeplabv3plus")
    assert not imported.translation.dropped
    shapes = [
        {k: v.shape for k, v in system.state_dict().items()} for system in (net, imported.system)
    ]
    assert shapes[0] == shapes[1]
    for key, value in options.items():
        assert getattr(imported.system.cfg, key) == value, key


def test_deeplab_pytorchs_decoder_under_its_own_names() -> None:
    """Its source names `reduce`, and in `fc2` the parts conv1, conv2 and conv3, the classifier."""
    with torch.device("meta"):
        net = create("deeplabv3plus", backbone="resnet50", **PLAIN, num_classes=5)
        rules = origins("deeplabv3plus")["deeplab-pytorch"].rules(net.cfg)
        shapes = {k: v.shape for k, v in invert(rules, net.state_dict()).items()}
    torch.manual_seed(0)
    theirs = {
        key: torch.zeros((), dtype=torch.int64)
        if key.endswith("num_batches_tracked")
        else torch.rand(shape) + 0.5
        if key.endswith("running_var")
        else 0.1 * torch.randn(shape)
        for key, shape in shapes.items()
    }
    named = import_checkpoint(theirs, origin="deeplab-pytorch", name="deeplabv3plus").system
    named.backbone, named.context = nn.Identity(), nn.Identity()  # V3's, with a fixture of theirs

    def block(x: torch.Tensor, name: str, padding: int) -> torch.Tensor:
        x = nn.functional.conv2d(x, theirs[f"{name}.conv.weight"], padding=padding)
        norm = [f"{name}.bn.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
        return nn.functional.batch_norm(x, *(theirs[key] for key in norm)).relu()

    low, context = torch.randn(1, 256, 9, 13), torch.randn(1, 256, 3, 4)
    x = torch.cat([resize(context, (9, 13)), block(low, "reduce", 0)], 1)
    x = block(block(x, "fc2.conv1", 1), "fc2.conv2", 1)
    expected = nn.functional.conv2d(x, theirs["fc2.conv3.weight"], theirs["fc2.conv3.bias"])
    with torch.no_grad():
        logits = named.classify(named.decoder(context, low))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"class_weights": (1.0,)}, "one per class"),
        ({"aspp_rates": ()}, "aspp_rates"),
        ({"conv": "separated"}, "separated.*separable"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"projection": "5x5"}, "5x5.*1x1"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DeepLabV3PlusConfig(**options)
