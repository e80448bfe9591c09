import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import semantic_loss
from pixelwise.ops.resize import resize
from pixelwise.systems import create
from pixelwise.systems.bisenet import BiSeNetConfig, ContextPath
from pixelwise.types import IGNORE, SemanticTarget

TINY = {
    "backbone": "test_resnet",
    "num_classes": 3,
    "spatial_widths": (4, 4, 8),
    "context_width": 8,
    "fusion_width": 8,
    "head_width": 8,
    "aux_width": 4,
}


def tiny(**options) -> nn.Module:
    torch.manual_seed(0)
    return create("bisenet", **{**TINY, **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("gate", ["norm", "norm_relu"])
def test_parameters_of_the_released_form(gate: str) -> None:
    with torch.device("meta"):
        net = create("bisenet", spatial_widths=(64, 64, 64, 128), gate=gate)
    assert count(net) == 13_425_721
    assert [count(head) for head in net.auxiliary] == [75_091] * 2


def test_parameters_of_the_form_in_the_text() -> None:
    """Three 3x3 convolutions in the spatial path, two bare layers in the gate."""
    with torch.device("meta"):
        paper = create("bisenet")
        thin = create("bisenet_xception39")
    assert count(paper.spatial_path) == 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128)
    assert count(paper.fusion) == 256 * 256 + 2 * 256 + 2 * 256 * 256
    assert count(thin.backbone) == 299_448


@pytest.mark.parametrize("backbone", ["test_resnet", "xception39"])
@pytest.mark.parametrize("side", [(64, 64), (65, 97), (33, 50), (1, 7)])
def test_logits_have_stride_eight(backbone: str, side: tuple[int, int]) -> None:
    raw = tiny(backbone=backbone).eval()(torch.randn(2, 3, *side))
    assert raw.logits.shape == (2, 3, -(-side[0] // 8), -(-side[1] // 8))


def test_three_outputs_in_training_and_one_in_evaluation() -> None:
    net = tiny()
    images, target = torch.randn(2, 3, 64, 64), SemanticTarget(labels=torch.zeros(64, 64).long())
    shapes: list[tuple[int, ...]] = []
    for head in [net.head, *net.auxiliary]:
        head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    net.train().loss(images, [target] * 2)
    assert shapes == [(2, 3, 8, 8), (2, 3, 8, 8), (2, 3, 4, 4)]
    shapes.clear()
    net.eval()(images)
    assert shapes == [(2, 3, 8, 8)]


def loss_by_hand(net: nn.Module, images: Tensor, labels: Tensor, kind: str) -> list[Tensor]:
    """The loss of each of the three heads, on logits resized to the labels."""
    detail = net.spatial_path(images)
    near, far = net.context_path(*net.backbone(images), detail.shape[-2:])
    heads = zip([net.head, *net.auxiliary], [net.fusion(detail, near), near, far], strict=True)
    return [
        semantic_loss(resize(head(x), labels.shape[1:]), labels, kind=kind) for head, x in heads
    ]


@pytest.mark.parametrize("kind", ["ohem", "cross_entropy"])
def test_loss_is_the_main_one_and_alpha_times_both_auxiliary_ones(kind: str) -> None:
    net = tiny(aux_weight=0.25, loss=kind).eval()
    images, labels = torch.randn(2, 3, 48, 64), torch.randint(0, 3, (2, 48, 64))
    labels[:, :5] = IGNORE
    main, first, second = loss_by_hand(net, images, labels, kind)
    losses = net.loss(images, [SemanticTarget(labels=one) for one in labels])
    torch.testing.assert_close(losses["pixel"], main)
    torch.testing.assert_close(losses["auxiliary"], 0.25 * (first + second))


def test_by_default_hard_pixels_count_and_alpha_is_one() -> None:
    cfg = BiSeNetConfig()
    assert (cfg.loss, cfg.aux_weight) == ("ohem", 1.0)
    net = tiny(aux_weight=0.0).eval()
    images, labels = torch.randn(1, 3, 32, 32), torch.zeros(1, 32, 32).long()
    logits = resize(net(images).logits, (32, 32))
    nll = -logits.log_softmax(1)[:, 0]
    hard = nll[nll > -torch.tensor(0.7).log()]
    assert len(hard) >= 64  # a sixteenth of the pixels
    loss = net.loss(images, [SemanticTarget(labels=labels[0])])["pixel"]
    torch.testing.assert_close(loss, hard.mean())


def test_without_auxiliary_heads() -> None:
    with_them, without = tiny(), tiny(aux_weight=0.0)
    assert len(without.auxiliary) == 0
    target = SemanticTarget(labels=torch.zeros(32, 32).long())
    assert set(without.loss(torch.randn(2, 3, 32, 32), [target] * 2)) == {"pixel"}
    shared = {k: v for k, v in with_them.state_dict().items() if not k.startswith("auxiliary")}
    without.load_state_dict(shared)
    images = torch.randn(1, 3, 40, 40)
    assert torch.equal(without.eval()(images).logits, with_them.eval()(images).logits)


@pytest.mark.parametrize("sides", [((8, 12), (4, 6), (2, 3)), ((9, 13), (5, 7), (3, 4))])
def test_the_context_is_enlarged_by_repeating_cells(sides) -> None:
    at8, at16, at32 = sides
    torch.manual_seed(0)
    path = ContextPath((5, 6), 4, norm="batch").eval()
    x16, x32 = torch.randn(2, 5, *at16), torch.randn(2, 6, *at32)
    pooled = path.image_pool(x32.mean((2, 3), keepdim=True))

    def repeat(x: Tensor, size: tuple[int, int]) -> Tensor:
        rows = torch.arange(size[0]) * x.shape[2] // size[0]
        columns = torch.arange(size[1]) * x.shape[3] // size[1]
        return x[:, :, rows][..., columns]

    deep = path.smooth32(repeat(path.attend32(x32) + pooled, at16))
    near = path.smooth16(repeat(path.attend16(x16) + deep, at8))
    found = path(x16, x32, at8)
    torch.testing.assert_close(found[0], near)
    torch.testing.assert_close(found[1], deep)
    assert not torch.allclose(near, path.smooth16(resize(path.attend16(x16) + deep, at8)))


def test_the_image_mean_reaches_every_pixel() -> None:
    net = tiny().eval()
    images = torch.randn(1, 3, 256, 256)
    before = net(images).logits
    images[..., :4, :4] += 100
    assert ((net(images).logits - before).abs().amax(1) > 0).all()


def test_a_single_image_trains() -> None:
    net = tiny().train()
    target = SemanticTarget(labels=torch.randint(0, 3, (64, 64)))
    sum(net.loss(torch.randn(1, 3, 64, 64), [target]).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_class_weights_count() -> None:
    net = tiny(loss="cross_entropy", class_weights=(1.0, 2.0, 0.5), aux_weight=0.0).eval()
    images, labels = torch.randn(1, 3, 32, 32), torch.randint(0, 3, (1, 32, 32))
    logits = resize(net(images).logits, (32, 32))
    expected = F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2.0, 0.5]))
    loss = net.loss(images, [SemanticTarget(labels=labels[0])])["pixel"]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_widths": (64, 128)}, "three.*four"),
        ({"gate": "softmax"}, "softmax.*two_layer"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"num_classes": 0}, "num_classes"),
        ({"class_weights": (1.0,)}, "one per class"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BiSeNetConfig(**options)
