import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.systems import create
from pixelwise.systems.parsenet import ParseNetConfig
from pixelwise.types import IGNORE, ImageSize, SemanticTarget


def tiny(**options) -> nn.Module:
    torch.manual_seed(0)
    small = {"backbone": "test_vgg", "fc_width": 12, "fc_rate": 2, "num_classes": 3}
    return create("parsenet", **{**small, **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "skipped"),
    [("parsenet", 0), ("parsenet_conv45", 512 + 512), ("parsenet_conv345", 256 + 512 + 512)],
)
def test_parameters_are_largefovs_and_the_context(name: str, skipped: int) -> None:
    """DeepLab-LargeFOV has 20,505,429; the context doubles fc8's inputs and adds two scales."""
    with torch.device("meta"):
        net = create(name)
    added = 21 * 1024 + 2 * 1024  # weights of fc8 for the average, scales of both norms
    extra = skipped * (21 + 1) + 21 * (len(net.classify) - 1)  # weights, scales, biases
    assert count(net) == 20_505_429 + added + extra


def test_parameters_on_the_base_of_fcn32s() -> None:
    with torch.device("meta"):
        net = create("parsenet_fcn32s")
    assert count(net) == 134_346_581 + 21 * 4096 + 2 * 4096


@pytest.mark.parametrize(("skips", "stride"), [((), 8), ((4, 5), 8), ((3, 4, 5), 4)])
@pytest.mark.parametrize("cells", [5, 8])
def test_scores_have_the_finest_stride(skips: tuple[int, ...], stride: int, cells: int) -> None:
    """An image of 8n + 1 pixels has n + 1 cells at stride 8, 2n + 1 at stride 4."""
    side = 8 * cells + 1
    net = tiny(skips=skips).eval()
    assert net(torch.randn(1, 3, side, side + 8)).logits.shape == (
        1,
        3,
        (side - 1) // stride + 1,
        (side + 7) // stride + 1,
    )


@pytest.mark.parametrize("side", [(64, 64), (65, 97), (33, 50), (1, 7)])
@pytest.mark.parametrize("skips", [(), (3, 4, 5)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_any_size_runs(side: tuple[int, int], skips: tuple[int, ...], align_corners: bool) -> None:
    net = tiny(skips=skips, align_corners=align_corners).eval()
    raw = net(torch.randn(1, 3, *side))
    assert net.decode(raw, [ImageSize.same(side)])[0].labels.shape == side


def test_maps_are_taken_before_their_pools() -> None:
    """conv3 to conv5 are convolutions; fc6 reads the last pool."""
    net = tiny(skips=(3, 4, 5)).eval()
    images = torch.randn(1, 3, 65, 65)
    seen: dict[str, torch.Tensor] = {}
    for i in range(1, 6):
        conv = net.backbone.get_submodule(f"conv{i}_1")
        conv.register_forward_hook(lambda _, __, out, i=i: seen.update({f"conv{i}": out.relu()}))
    net.head.register_forward_pre_hook(lambda _, args: seen.update(fc6=args[0]))
    maps = net.backbone(images)
    net(images)
    for level, x in zip((3, 4, 5), maps, strict=True):
        assert torch.equal(x, seen[f"conv{level}"])
    pooled = nn.functional.max_pool2d(seen["conv5"], 3, 1, 1)
    assert torch.equal(seen["fc6"], pooled)


def test_early_fusion_is_the_sum_of_late_scores() -> None:
    """One classifier of [fc7, average] is two whose scores are added; the bias counts once."""
    net = tiny().eval()
    images = torch.randn(1, 3, 65, 65)
    fc7 = net.head(net.pool(net.backbone(images)[0]))
    weight, bias = net.classify[0].weight, net.classify[0].bias
    local = nn.functional.conv2d(net.context.local_norm(fc7), weight[:, :12], bias)
    mean = net.context.global_norm(fc7.mean((2, 3), keepdim=True))
    late = local + nn.functional.conv2d(mean, weight[:, 12:])
    torch.testing.assert_close(net(images).logits, late, rtol=1e-4, atol=1e-5)


def test_fused_scores_are_the_sum_of_each_level_on_its_grid() -> None:
    net = tiny(skips=(3, 4)).eval()
    images = torch.randn(1, 3, 65, 81)
    third, fourth, fifth = net.backbone(images)
    deep = net.context(net.head(net.pool(fifth)))
    fine = net.classify[0](net.norms[0](third))
    size = fine.shape[-2:]
    assert size == (17, 21)
    expected = fine
    for score in (net.classify[1](net.norms[1](fourth)), net.classify[2](deep)):
        assert score.shape[-2:] == (9, 11)
        # 8n + 1 pixels: every second fine cell lies on a coarse one.
        expected = expected + nn.functional.interpolate(
            score, size=size, mode="bilinear", align_corners=True
        )
    torch.testing.assert_close(net(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_average_reaches_where_no_kernel_does() -> None:
    images = torch.randn(1, 3, 257, 257)
    changed = images.clone()
    changed[..., :9, :9] += 10
    net = tiny(fc_rate=1).eval()
    with torch.no_grad():
        assert (net(images).logits - net(changed).logits)[0, :, -1, -1].abs().min() > 1e-6
        net.classify[0].weight[:, 12:] = 0
        assert torch.equal(net(images).logits[..., -1, -1], net(changed).logits[..., -1, -1])


def test_without_the_norm_the_larger_layer_decides() -> None:
    """conv3 a thousand times larger: with the norms nothing changes, without it drowns fc7."""
    images = torch.randn(1, 3, 65, 65)
    for with_norm in (True, False):
        net = tiny(skips=(3,), with_norm=with_norm).eval()
        third, fifth = net.backbone(images)
        moved: list[torch.Tensor] = []
        for factor in (1.0, 1000.0):
            maps = [third * factor, fifth]
            net.backbone.forward = lambda _, maps=maps: maps
            moved.append(net(images).logits)
        change = (moved[1] - moved[0]).abs().max() / moved[0].abs().max()
        assert change < 1e-3 if with_norm else change > 10


def test_loss_is_the_mean_over_valid_pixels() -> None:
    net = tiny().eval()
    labels = torch.randint(0, 3, (65, 49))
    labels[:9] = IGNORE
    images = torch.randn(1, 3, 65, 49)
    logits = nn.functional.interpolate(
        net(images).logits, size=(65, 49), mode="bilinear", align_corners=True
    )
    expected = nn.functional.cross_entropy(logits, labels[None], ignore_index=IGNORE)
    torch.testing.assert_close(net.loss(images, [SemanticTarget(labels=labels)])["pixel"], expected)


def test_nothing_valid_costs_nothing() -> None:
    net = tiny(skips=(4, 5))
    target = SemanticTarget(labels=torch.full((32, 32), IGNORE))
    assert net.loss(torch.randn(1, 3, 32, 32), [target])["pixel"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"fc_kernel": 4}, "odd"),
        ({"fc_rate": 0}, "fc_rate"),
        ({"skips": (5, 4)}, "in order"),
        ({"skips": (1,)}, "levels from 2 to 5"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ParseNetConfig(**options)
