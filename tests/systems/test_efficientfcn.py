import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.ops.resize import resize
from pixelwise.systems import create
from pixelwise.systems.efficientfcn import EfficientFCNConfig
from pixelwise.types import IGNORE, ImageSize, SemanticTarget

TINY = {
    "backbone": "test_resnet",
    "num_classes": 3,
    "compress_width": 8,
    "codewords": 4,
    "codeword_width": 8,
}
IMAGENET_FC = 2048 * 1000 + 1000  # in the released files, and used by nothing


def tiny(**options) -> nn.Module:
    torch.manual_seed(0)
    return create("efficientfcn", **{**TINY, **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "codewords", "classes", "expected"),
    [("resnet50", 256, 59, 33_249_155), ("resnet101", 600, 150, 53_806_878)],
)
def test_parameters_of_the_released_models(backbone, codewords, classes, expected) -> None:
    with torch.device("meta"):
        net = create("efficientfcn", backbone=backbone, codewords=codewords, num_classes=classes)
    assert count(net) + IMAGENET_FC == expected


def test_nothing_is_dilated() -> None:
    with torch.device("meta"):
        net = create("efficientfcn")
    assert net.backbone.strides == (8, 16, 32)
    assert {m.dilation for m in net.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}


def test_resnets_have_the_released_stem_and_shortcuts_unless_told() -> None:
    with torch.device("meta"):
        net = create("efficientfcn_resnet50")
        plain = create("efficientfcn_resnet50", backbone_style="pytorch")
    assert [part.conv.out_channels for part in net.backbone.stem] == [32, 32, 64]
    assert not isinstance(net.backbone.layer2[0].shortcut.pool, nn.Identity)
    assert [part.conv.kernel_size for part in plain.backbone.stem] == [(7, 7)]
    assert isinstance(plain.backbone.layer2[0].shortcut.pool, nn.Identity)


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet18"])
@pytest.mark.parametrize("side", [(64, 64), (65, 97), (33, 50), (1, 7)])
def test_logits_have_stride_eight(backbone: str, side: tuple[int, int]) -> None:
    raw = tiny(backbone=backbone).eval()(torch.randn(2, 3, *side))
    assert raw.logits.shape == (2, 3, -(-side[0] // 8), -(-side[1] // 8))


def test_the_codebook_is_made_where_maps_are_smallest() -> None:
    net = tiny().eval()
    seen: dict[str, torch.Size] = {}
    net.codebook.register_forward_hook(lambda _, x, out: seen.update(coarse=x[0].shape))
    net.assembly.register_forward_hook(lambda _, x, out: seen.update(fine=x[0].shape))
    net(torch.randn(1, 3, 70, 96))
    at8 = net.backbone.channels[0]
    assert seen == {"coarse": (1, at8 + 16, 3, 3), "fine": (1, at8 + 16, 9, 12)}


def test_far_pixels_reach_every_other_through_the_codebook() -> None:
    net = tiny().eval()
    images = torch.randn(1, 3, 256, 256)
    before = net(images).logits
    images[..., :4, :4] += 100
    assert ((net(images).logits - before).abs().amax(1) > 0).all()


def test_loss_is_the_mean_over_valid_pixels() -> None:
    net = tiny(dropout=0.0).eval()
    images, labels = torch.randn(1, 3, 33, 32), torch.randint(0, 3, (1, 33, 32))
    labels[:, :9] = IGNORE
    logits = resize(net(images).logits, (33, 32))  # corners of the pictures aligned, not centres
    expected = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
    loss = net.loss(images, [SemanticTarget(labels=labels[0])])["pixel"]
    torch.testing.assert_close(loss, expected)


def test_labels_are_decoded_from_logits_resized_without_aligned_corners() -> None:
    net = tiny().eval()
    raw = net(torch.randn(1, 3, 64, 80))
    raw = raw._replace(logits=torch.randn_like(raw.logits))
    found = net.decode(raw, [ImageSize.same((64, 80))])[0].labels
    assert torch.equal(found.long(), resize(raw.logits, (64, 80)).argmax(1)[0])
    assert not torch.equal(
        found.long(), resize(raw.logits, (64, 80), align_corners=True).argmax(1)[0]
    )


def test_a_single_image_trains() -> None:
    net = tiny().train()
    target = SemanticTarget(labels=torch.randint(0, 3, (64, 64)))
    net.loss(torch.randn(1, 3, 64, 64), [target])["pixel"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codewords": 0}, "codewords is at least 1"),
        ({"codeword_width": 0}, "codeword_width is at least 1"),
        ({"compress_width": -1}, "compress_width is at least 1"),
        ({"num_classes": 0}, "num_classes is at least 1"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"class_weights": (1.0,)}, "one per class"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EfficientFCNConfig(**options)
