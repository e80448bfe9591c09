import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.systems import create
from pixelwise.systems.deeplabv2 import DeepLabV2, DeepLabV2Config
from pixelwise.types import IGNORE, ImageSize, SemanticTarget

TINY = {"backbone": "test_vgg", "num_classes": 3, "rates": (1, 2)}


def tiny(name: str = "deeplabv2", **options) -> DeepLabV2:
    torch.manual_seed(0)
    net = create(name, **{**TINY, **options})
    for conv in net.aspp.classify:  # scores that differ more than a new network's
        nn.init.normal_(conv.weight)
        nn.init.normal_(conv.bias)
    return net.eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("deeplabv2", {"norm": "batch"}, 44_048_532),
        ("deeplabv2_resnet101", {"norm": "batch", "num_classes": 182}, 55_919_384),
        ("deeplabv2_vgg16", {}, 37_877_652),
    ],
)
def test_parameters(name: str, options: dict, parameters: int) -> None:
    with torch.device("meta"):
        assert count(create(name, **options)) == parameters


def test_layers_of_the_resnet() -> None:
    with torch.device("meta"):
        net = create("deeplabv2")
        assert net(torch.empty(1, 3, 321, 321)).logits.shape == (1, 21, 41, 41)
    backbone = net.backbone
    assert [len(backbone.get_submodule(f"layer{i}")) for i in (1, 2, 3, 4)] == [3, 4, 23, 3]
    for stage, rate in ((1, 1), (2, 1), (3, 2), (4, 4)):
        for block in backbone.get_submodule(f"layer{stage}"):
            assert block.conv2.dilation == (rate, rate)  # the first block too
            assert block.conv2.stride == (1, 1)
    assert backbone.layer2[0].conv1.stride == (2, 2)
    assert [c.dilation[0] for c in net.aspp.classify] == [6, 12, 18, 24]
    assert all(c.bias is not None and c.in_channels == 2048 for c in net.aspp.classify)


def test_rates_do_not_depend_on_the_output_stride() -> None:
    with torch.device("meta"):
        for stride in (8, 16, 32):
            net = create("deeplabv2", output_stride=stride)
            assert [c.dilation[0] for c in net.aspp.classify] == [6, 12, 18, 24]
            assert net.backbone.strides == (stride,)


def test_batch_norm_stands_still_in_training() -> None:
    net = tiny(backbone="resnet18", norm="frozen")
    images = torch.randn(2, 3, 65, 65)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    evaluated = net(images).logits
    torch.testing.assert_close(net.train()(images).logits, evaluated)
    net.loss(images, [SemanticTarget(labels=torch.zeros(65, 65, dtype=torch.int64))] * 2)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not [k for k, _ in net.named_parameters() if "norm" in k]


@pytest.mark.parametrize("aligned", [True, False])
def test_the_maximum_is_nowhere_below_a_single_scale(aligned: bool) -> None:
    net = tiny(align_corners=aligned)
    images = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        first, *others = net.scores(images)
        fused = net(images).logits
    assert (fused >= first).all()
    assert (fused > first).any()
    single = tiny(align_corners=aligned, scales=())
    single.load_state_dict(net.state_dict())
    assert torch.equal(single(images).logits, first)
    assert len(others) == 2


def test_the_order_of_scales_changes_nothing() -> None:
    one, other = tiny(scales=(0.5, 0.75, 1.25)), tiny(scales=(1.25, 0.5, 0.75))
    other.load_state_dict(one.state_dict())
    images = torch.randn(1, 3, 60, 70)
    assert torch.equal(one(images).logits, other(images).logits)


def test_logits_are_compared_not_probabilities() -> None:
    """Scale 0.5 is sure of class 0, but all of its logits are smaller."""
    net = tiny(scales=(0.5,))
    large = torch.tensor([3.0, 4.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 3, 3)
    small = torch.tensor([1.0, -9.0, -9.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.equal(net.fuse([large, small]), large)
    assert small.softmax(1).max() > large.softmax(1).max()


def test_the_maximum_is_taken_under_the_same_pixel() -> None:
    """Cell i of scale 0.5 lies where cell 2 i of scale 1 lies, whatever the size."""
    net = tiny(scales=(0.5,))
    for side in (65, 69, 75):
        first, half = net.scores(torch.zeros(1, 3, side, side))
        rows, halves = first.shape[2], half.shape[2]
        low = torch.full_like(first, -1e9)
        ramp = torch.arange(halves, dtype=torch.float32).expand(1, 3, halves, halves)
        fused = net.fuse([low, ramp])
        expected = (torch.arange(rows) / 2).clamp(max=halves - 1)
        torch.testing.assert_close(fused, expected.expand(1, 3, rows, rows))


@pytest.mark.parametrize(
    ("aligned", "size", "sizes"),
    [
        (False, (97, 129), [(13, 17), (7, 9), (10, 13)]),  # 97 * 0.75 is 72, not 73
        (True, (97, 129), [(13, 17), (7, 9), (10, 13)]),
        (True, (321, 513), [(41, 65), (21, 33), (31, 49)]),  # images of 161 x 257, 241 x 385
        (True, (1, 1), [(1, 1)] * 3),
    ],
)
def test_every_scale_has_its_own_size(aligned: bool, size, sizes) -> None:
    net = tiny(align_corners=aligned)
    found = [tuple(s.shape[2:]) for s in net.scores(torch.randn(1, 3, *size))]
    assert found == sizes


@pytest.mark.parametrize(
    ("aligned", "side", "scale", "scaled"),
    [(False, 97, 0.75, 72), (False, 97, 0.5, 48), (True, 97, 0.75, 73), (True, 100, 0.75, 75)],
)
def test_sizes_of_scaled_images(aligned: bool, side: int, scale: float, scaled: int) -> None:
    image = torch.arange(side, dtype=torch.float32).expand(1, 3, side, side)
    found = tiny(align_corners=aligned).scaled(image, scale)
    assert found.shape == (1, 3, scaled, scaled)
    at = torch.arange(scaled)
    where = at / scale if aligned else (at + 0.5) / scale - 0.5
    torch.testing.assert_close(found[0, 0, 0], where.clamp(0, side - 1))


def as_pillow_shrinks(labels: Tensor, cells: tuple[int, int]) -> Tensor:
    pictures = [Image.fromarray(one.numpy().astype(np.uint8)) for one in labels]
    shrunk = [np.asarray(p.resize(cells[::-1], Image.Resampling.NEAREST)) for p in pictures]
    return torch.from_numpy(np.stack(shrunk).astype(np.int64))


def test_the_loss_of_deeplab_pytorch() -> None:
    """Four cross-entropies: scale 1, 0.5, 0.75 and their maximum, each at its own size."""
    net = tiny(align_corners=False)
    images, labels = torch.randn(2, 3, 97, 129), torch.randint(0, 3, (2, 97, 129))
    labels[1, :40] = IGNORE
    losses = net.loss(images, [SemanticTarget(labels=one) for one in labels])
    assert list(losses) == ["pixel", "pixel_0.5", "pixel_0.75", "pixel_max"]
    for name, logits in zip(losses, [*net.scores(images), net(images).logits], strict=True):
        target = as_pillow_shrinks(labels, tuple(logits.shape[2:]))
        expected = F.cross_entropy(logits, target, ignore_index=IGNORE)
        torch.testing.assert_close(losses[name], expected)


def test_the_loss_of_caffe_reads_the_labels_under_the_cells() -> None:
    net = tiny()
    images, labels = torch.randn(1, 3, 97, 97), torch.randint(0, 3, (1, 97, 97))
    losses = net.loss(images, [SemanticTarget(labels=labels[0])])
    first, half, most = net.scores(images)
    steps = {"pixel": (first, 8), "pixel_0.5": (half, 16), "pixel_max": (net(images).logits, 8)}
    for name, (logits, step) in steps.items():
        expected = F.cross_entropy(logits, labels[:, ::step, ::step])
        torch.testing.assert_close(losses[name], expected)
    at = torch.tensor([0, 11, 21, 32, 43, 53, 64, 75, 85, 96])  # 32 / 3 apart
    expected = F.cross_entropy(most, labels[:, at[:, None], at])
    torch.testing.assert_close(losses["pixel_0.75"], expected)


def test_a_single_scale_has_a_single_loss() -> None:
    net = tiny(scales=())
    target = SemanticTarget(labels=torch.zeros(33, 33, dtype=torch.int64))
    assert list(net.loss(torch.randn(1, 3, 33, 33), [target])) == ["pixel"]


def test_scales_share_their_weights() -> None:
    """The gradient of the whole loss is the sum of those of its terms, and each has one."""
    net = tiny()
    images = torch.randn(1, 3, 65, 65)
    target = SemanticTarget(labels=torch.randint(0, 3, (65, 65)))
    weight = net.backbone.get_submodule("conv1_1").weight
    losses = net.loss(images, [target])
    terms = [torch.autograd.grad(v, weight, retain_graph=True)[0] for v in losses.values()]
    whole = torch.autograd.grad(sum(losses.values()), weight)[0]
    torch.testing.assert_close(whole, sum(terms), rtol=1e-4, atol=1e-6)
    assert all(term.abs().max() > 0 for term in terms)


def test_vggs_network_is_v1s_without_the_average_pool() -> None:
    net = tiny("deeplabv2_vgg16", branch_width=8, scales=())
    images = torch.randn(1, 3, 49, 57)
    pool5 = net.backbone(images)[0]
    total = sum(
        classify(context(pool5))
        for context, classify in zip(net.aspp.context, net.aspp.classify, strict=True)
    )
    torch.testing.assert_close(net(images).logits, total)
    pools = [net.backbone.get_submodule(f"pool{i}").pool for i in range(1, 6)]
    assert [(p.kernel_size, p.stride) for p in pools] == [(3, 2)] * 3 + [(3, 1)] * 2


@pytest.mark.parametrize("aligned", [True, False])
def test_decoding_is_one_bilinear_resize(aligned: bool) -> None:
    net = tiny(align_corners=aligned)
    raw = net(torch.randn(1, 3, 65, 97))
    prediction = net.decode(raw, [ImageSize.same((65, 97))], with_probs=True)[0]
    logits = F.interpolate(raw.logits, size=(65, 97), mode="bilinear", align_corners=aligned)
    torch.testing.assert_close(prediction.probs, logits.softmax(1)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": ()}, "rates"),
        ({"rates": (6, 0)}, "rates"),
        ({"scales": (1.0, 0.5)}, "besides 1"),
        ({"scales": (0.5, 0.5)}, "different"),
        ({"scales": (-0.5,)}, "positive"),
        ({"num_classes": 0}, "num_classes"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DeepLabV2Config(**options)
