import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.predict import Segmenter
from pixelwise.spec import InputSpec
from pixelwise.systems import create
from pixelwise.systems.unet import UNetConfig
from pixelwise.types import IGNORE, SemanticTarget

TINY = {"widths": (4, 6, 8), "decoder_widths": (6, 4), "num_classes": 3}
SAME = {**TINY, "padding": "same", "norm": "batch"}


def tiny(**options) -> nn.Module:
    torch.manual_seed(0)
    return create("unet", **{**TINY, **options})


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("unet", {"in_channels": 1}, 31_030_658),
        ("unet_s5_d16", {"num_classes": 19}, 29_062_886),
        ("unet_resnet34", {"num_classes": 21}, 24_439_269),
    ],
)
def test_parameters_of_the_published_networks(name: str, options: dict, count: int) -> None:
    with torch.device("meta"):
        net = create(name, **options)
    assert sum(p.numel() for p in net.parameters()) == count


def test_the_paper_has_no_norm_no_padding_and_dropout_at_the_bottom() -> None:
    with torch.device("meta"):
        net = create("unet")
    kinds = [type(module) for module in net.modules()]
    assert nn.BatchNorm2d not in kinds
    assert {m.padding for m in net.modules() if isinstance(m, nn.Conv2d)} == {(0, 0)}
    assert net.dropout.p == 0.5
    assert net.margin_px == 92


@pytest.mark.parametrize("options", [{}, SAME, {**SAME, "upsample": "bilinear"}])
@pytest.mark.parametrize("side", [(40, 40), (41, 67), (16, 13), (1, 7)])
def test_logits_have_the_size_of_the_image(options: dict, side: tuple[int, int]) -> None:
    net = tiny(**options).eval()
    assert net(torch.randn(2, 3, *side)).logits.shape == (2, 3, *side)


@pytest.mark.parametrize(
    ("backbone", "levels"), [("test_resnet", (1, 2, 3, 4, 5)), ("test_convnext", (2, 3, 4, 5))]
)
def test_any_backbone_even_without_a_map_at_stride_2(backbone: str, levels: tuple) -> None:
    net = create(
        "unet_resnet34", backbone=backbone, levels=levels, decoder_widths=(8, 8, 8, 8, 8)
    ).eval()
    assert net(torch.randn(1, 3, 75, 53)).logits.shape == (1, 2, 75, 53)
    skips = [block.fuse[0].conv.in_channels for block in net.decoder.blocks]
    assert (skips[3] == 8) == (1 not in levels)
    assert skips[4] == 8


def test_valid_convolutions_see_a_mirrored_image_and_nothing_else() -> None:
    """The logits are those of a larger picture that continues as the mirror does."""
    net = tiny().eval()
    margin = net.margin_px
    assert margin == 20
    image = torch.randn(1, 3, 36, 44)  # 4 + 4n: nothing is added at the end
    wide = F.pad(image, (margin,) * 4, mode="reflect")
    maps = net.backbone(wide)
    out = net.classify(net.decoder(maps[-1], maps[-2::-1])[-1])
    torch.testing.assert_close(net(image).logits, out)
    assert not torch.allclose(net(image).logits[..., 0], net(image).logits[..., 1])


def test_an_interior_pixel_sees_its_surroundings_only() -> None:
    """What lies further than the margin does not matter: tiles may be cut there."""
    net = tiny().eval()
    margin = net.margin_px
    image = torch.randn(1, 3, 84, 84)
    part = net(image[:, :, 16:, 8:]).logits  # by multiples of the deepest stride
    whole = net(image).logits[:, :, 16:, 8:]
    torch.testing.assert_close(
        part[:, :, margin:, margin:], whole[:, :, margin:, margin:], rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(part[:, :, 0], whole[:, :, 0], atol=1e-3)


def segmenter(**options) -> Segmenter:
    spec = InputSpec(mean=(0.5,) * 3, std=(0.25,) * 3)
    return Segmenter(
        tiny(**options),
        name="unet",
        task="semantic",
        classes=("a", "b", "c"),
        input=spec,
        device="cpu",
    )


@pytest.mark.parametrize(("padding", "same"), [("valid", True), ("same", False)])
def test_overlapping_tiles_give_what_the_whole_picture_gives(padding: str, same: bool) -> None:
    """Tiles of 64 overlap by twice the margin of 20 px, and start at multiples of stride 4.

    Padded convolutions know no margin: zeros at the borders of tiles show in the result.
    """
    picture = np.random.default_rng(0).integers(0, 256, (100, 136, 3)).astype(np.uint8)
    model = segmenter(padding=padding)
    whole = model.predict(picture).semantic.labels
    tiled = model.predict(picture, tile=64, overlap=0.0 if same else 0.625).semantic.labels
    assert len(whole.unique()) > 1
    assert torch.equal(tiled, whole) == same


def test_the_loss_is_weighted_per_pixel() -> None:
    net = tiny().eval()
    images, labels = torch.randn(1, 3, 20, 24), torch.randint(0, 3, (20, 24))
    labels[:4] = IGNORE
    weights = torch.from_numpy(np.random.default_rng(0).uniform(1, 11, (20, 24))).float()
    found = net.loss(images, [SemanticTarget(labels=labels, weights=weights)])["pixel"]
    losses = F.cross_entropy(
        net(images).logits, labels[None], ignore_index=IGNORE, reduction="none"
    )[0]
    valid = labels != IGNORE
    expected = (losses * weights)[valid].sum() / weights[valid].sum()
    torch.testing.assert_close(found, expected)


def test_the_auxiliary_head_reads_the_map_at_stride_2() -> None:
    net = tiny(**SAME, head_width=5, aux_weight=0.4).eval()
    images, labels = torch.randn(2, 3, 21, 30), torch.randint(0, 3, (2, 21, 30))
    losses = net.loss(images, [SemanticTarget(labels=one) for one in labels])
    coarse = net.auxiliary(net.expand(images)[-2])
    assert coarse.shape == (2, 3, 11, 15)
    full = F.interpolate(coarse, (21, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(losses["auxiliary"], 0.4 * F.cross_entropy(full, labels))
    torch.testing.assert_close(losses["pixel"], F.cross_entropy(net(images).logits, labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_widths": (8,)}, "1 values.*4 doublings"),
        ({"widths": (8,), "decoder_widths": ()}, "two levels"),
        ({"backbone": "resnet18", "levels": ()}, "levels is empty"),
        ({"backbone": "resnet18", "decoder_widths": (8,) * 5}, "resnet18.*needs padding='same'"),
        ({"aux_weight": 0.4}, "aux_weight.*needs padding='same'"),
        ({"aux_weight": 0.4, "widths": (8, 16), "decoder_widths": (8,)}, "at stride 2"),
        ({"padding": "full"}, "full.*same"),
        ({"upsample": "cubic"}, "cubic.*deconv"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"head_kernel": 2}, "head_kernel"),
        ({"class_weights": (1.0,)}, "one per class"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UNetConfig(**options)
