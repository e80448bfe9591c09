import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.ops.crf import PRESETS, dense_crf
from pixelwise.systems import create
from pixelwise.systems.deeplabv1 import DeepLabV1, DeepLabV1Config
from pixelwise.types import IGNORE, ImageSize, SemanticTarget

TINY = {"backbone": "test_vgg", "num_classes": 3, "fc_width": 16, "branch_width": 8}


def tiny(name: str = "deeplabv1", **options) -> DeepLabV1:
    torch.manual_seed(0)
    net = create(name, **{**TINY, **options})
    for conv in net.classify:  # scores that differ more than a new network's
        torch.nn.init.normal_(conv.weight)
        torch.nn.init.normal_(conv.bias)
    return net.eval()


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deeplabv1", 20_505_429),
        ("deeplabv1_7x7", 134_346_581),  # 134.3 M, 65.1 M and 20.5 M in the paper's table 2
        ("deeplabv1_4x4", 65_140_565),
    ],
)
def test_parameters_of_the_paper(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(create(name)) == parameters


def test_parameters_of_the_branches() -> None:
    """Each: 3x3 to 128, 1x1 to 128, 1x1 to K; on the image and pools 1 to 4."""
    with torch.device("meta"):
        more = count(create("deeplabv1_msc")) - count(create("deeplabv1"))
    inputs = (3, 64, 128, 256, 512)
    assert more == sum(9 * c * 128 + 128 + 129 * 128 + 129 * 21 for c in inputs)


@pytest.mark.parametrize("name", ["deeplabv1_7x7", "deeplabv1_4x4"])
def test_the_first_networks_give_39_rows_for_306_pixels(name: str) -> None:
    """The paper, section 3.2; so their pools are VGG's own."""
    with torch.device("meta"):
        assert create(name)(torch.empty(1, 3, 306, 306)).logits.shape == (1, 21, 39, 39)


@pytest.mark.parametrize("name", ["deeplabv1", "deeplabv1_msc", "deeplabv1_7x7"])
def test_layers_of_the_released_network(name: str) -> None:
    with torch.device("meta"):
        net = create(name)
        assert net(torch.empty(1, 3, 321, 321)).logits.shape == (1, 21, 41, 41)
    fc6 = net.head.fc6
    if name == "deeplabv1_7x7":
        assert (fc6.kernel_size, fc6.dilation, fc6.out_channels) == ((7, 7), (4, 4), 4096)
        assert isinstance(net.pool, torch.nn.Identity)
    else:
        assert (fc6.kernel_size, fc6.dilation, fc6.padding) == ((3, 3), (12, 12), (12, 12))
        assert fc6.out_channels == net.head.fc7.out_channels == 1024
        ones = net.pool(torch.ones(1, 1, 3, 3))  # the padding of pool5a counts
        torch.testing.assert_close(ones[0, 0, 0], torch.tensor([4 / 9, 6 / 9, 4 / 9]))
    assert [b.reduce.conv.stride[0] for b in net.branches] == (
        [8, 4, 2, 1, 1] if name == "deeplabv1_msc" else []
    )


@pytest.mark.parametrize("name", ["deeplabv1", "deeplabv1_msc"])
@pytest.mark.parametrize("side", [(1, 1), (9, 65), (97, 129), (161, 17)])
def test_one_row_for_every_eight_pixels(name: str, side: tuple[int, int]) -> None:
    expected = tuple((n - 1) // 8 + 1 for n in side)
    assert tiny(name)(torch.randn(1, 3, *side)).logits.shape == (1, 3, *expected)


@pytest.mark.parametrize("side", [(64, 50), (58, 57), (2, 8)])
def test_other_sizes_get_a_row_beyond_the_image(side: tuple[int, int]) -> None:
    for style in ("deeplab", "caffe", "torchvision"):
        net = tiny("deeplabv1_msc", backbone_style=style)
        if style == "torchvision" and min(side) < 8:
            continue  # its pools round down: nothing is left
        logits = net(torch.randn(1, 3, *side)).logits
        cells = {"deeplab": -(-(side[0] - 1) // 8) + 1, "caffe": -(-side[0] // 8)}
        assert logits.shape[2] == cells.get(style, side[0] // 8), style


def test_a_dense_network_holds_the_values_of_the_strided_one() -> None:
    """Stride 32 and fc6 of rate 1, against stride 8, conv5 of rate 2 and fc6 of rate 4."""
    options = {"backbone_style": "caffe", "fc_kernel": 7, "with_average_pool": False}
    strided = tiny(**options, fc_rate=1, output_stride=32)
    dense = tiny(**options, fc_rate=4, output_stride=8)
    dense.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 256, 192)
    with torch.no_grad():
        coarse, fine = strided(images).logits, dense(images).logits
    assert coarse.shape[2:] == (8, 6)
    assert fine.shape[2:] == (32, 24)
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, rtol=1e-4, atol=1e-4)


def test_a_pool_of_stride_one_holds_the_cells_of_stride_two() -> None:
    """The same for one pool and one convolution of V1's own kind, without any padding."""
    x, weight = torch.rand(1, 4, 31, 27), torch.randn(5, 4, 3, 3)
    coarse = F.conv2d(F.max_pool2d(x, 3, 2), weight)
    fine = F.conv2d(F.max_pool2d(x, 3, 1), weight, dilation=2)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)


def test_branches_are_one_classifier_on_concatenated_features() -> None:
    """The paper concatenates 640 more channels before the classifier; the sum is the same."""
    net = tiny("deeplabv1_msc")
    images = torch.randn(2, 3, 65, 49)
    with torch.no_grad():
        *early, deep = net.backbone(images)
        features = [net.head(net.pool(deep))]
        for branch, x in zip(net.branches, (images, *early), strict=True):
            y = F.conv2d(
                x, branch.reduce.conv.weight, branch.reduce.conv.bias, branch.stride, padding=1
            )
            assert y.shape[2:] == deep.shape[2:]
            features.append(F.relu(branch.mix.conv(F.relu(y))))
        weight = torch.cat([c.weight for c in net.classify], 1)
        bias = torch.stack([c.bias for c in net.classify]).sum(0)
        joined = F.conv2d(torch.cat(features, 1), weight, bias)
        torch.testing.assert_close(net(images).logits, joined, rtol=1e-4, atol=1e-4)


def test_a_branch_looks_at_the_windows_around_its_cells() -> None:
    """Where sizes do not fit, cell i of a branch still sees pixels 8 i - 1 to 8 i + 1."""
    net = tiny("deeplabv1_msc")
    images = torch.randn(1, 3, 60, 59)
    found = net.branches[0](images, (9, 8))
    conv = net.branches[0].reduce.conv
    padded = F.pad(images, (1, 20, 1, 20))
    for row, column in ((0, 0), (3, 5), (7, 7), (8, 7)):
        window = padded[..., 8 * row : 8 * row + 3, 8 * column : 8 * column + 3]
        y = F.relu(F.conv2d(window, conv.weight, conv.bias))
        expected = F.relu(net.branches[0].mix.conv(y))[..., 0, 0]
        torch.testing.assert_close(found[..., row, column], expected, rtol=1e-4, atol=1e-5)


def reference_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORE)


def test_the_target_is_the_label_map_subsampled_by_eight() -> None:
    net = tiny()
    images, labels = torch.randn(2, 3, 65, 97), torch.randint(0, 3, (2, 65, 97))
    labels[0, :30] = IGNORE
    targets = [SemanticTarget(labels=one) for one in labels]
    loss = net.loss(images, targets)
    assert list(loss) == ["pixel"]
    torch.testing.assert_close(
        loss["pixel"], reference_loss(net(images).logits, labels[:, ::8, ::8])
    )
    labels[:, 1::8] = 0  # between the cells: nobody looks
    torch.testing.assert_close(net.loss(images, targets)["pixel"], loss["pixel"])


def test_cells_beyond_the_image_have_no_target() -> None:
    net = tiny()
    images, labels = torch.randn(1, 3, 64, 64), torch.randint(0, 3, (1, 64, 64))
    logits = net(images).logits
    assert logits.shape[2:] == (9, 9)
    expected = reference_loss(logits[..., :8, :8], labels[:, ::8, ::8])
    loss = net.loss(images, [SemanticTarget(labels=labels[0])])
    torch.testing.assert_close(loss["pixel"], expected)


@pytest.mark.parametrize("aligned", [True, False])
def test_the_loss_may_resize_the_scores_instead(aligned: bool) -> None:
    net = tiny(loss_at_cells=False, align_corners=aligned)
    images, labels = torch.randn(1, 3, 65, 49), torch.randint(0, 3, (1, 65, 49))
    logits = F.interpolate(
        net(images).logits, size=(65, 49), mode="bilinear", align_corners=aligned
    )
    loss = net.loss(images, [SemanticTarget(labels=labels[0])])
    torch.testing.assert_close(loss["pixel"], reference_loss(logits, labels))


def test_pixel_weights_are_subsampled_too() -> None:
    net = tiny()
    images, labels = torch.randn(1, 3, 65, 65), torch.randint(0, 3, (1, 65, 65))
    weights = torch.zeros(1, 65, 65)
    weights[0, 16, 24] = 5.0
    target = SemanticTarget(labels=labels[0], weights=weights[0])
    one = reference_loss(net(images).logits[..., 2:3, 3:4], labels[:, 16:17, 24:25])
    torch.testing.assert_close(net.loss(images, [target])["pixel"], one)


def test_decoding_enlarges_eight_times_with_aligned_corners() -> None:
    net = tiny()
    raw = net(torch.randn(1, 3, 97, 129))
    prediction = net.decode(raw, [ImageSize.same((97, 129))], with_probs=True)[0]
    logits = F.interpolate(raw.logits, size=(97, 129), mode="bilinear", align_corners=True)
    torch.testing.assert_close(prediction.probs, logits.softmax(1)[0], rtol=1e-4, atol=1e-5)
    assert (prediction.labels == logits[0].argmax(0)).float().mean() > 0.999


def test_no_size_of_image_shifts_the_prediction() -> None:
    """Scores that change sign half-way between cells 3 and 4: pixel 28, at every size."""
    net = tiny()
    for side in (57, 60, 64):
        cells = -(-(side - 1) // 8) + 1
        raw = net(torch.zeros(1, 3, side, side))
        slope = torch.arange(cells, dtype=torch.float32) - 3.49
        logits = torch.stack([-slope, slope, slope.new_full((cells,), -9)])
        raw = type(raw)(logits[None, :, None].expand(1, 3, cells, cells))
        labels = net.decode(raw, [ImageSize.same((side, side))])[0].labels
        assert (labels[:, :28] == 0).all()
        assert (labels[:, 28:] == 1).all()


def test_a_crf_follows_the_picture() -> None:
    """The way to the paper's result: probabilities at the picture's size, and the picture."""
    net = tiny()
    picture = torch.full((33, 41, 3), 30, dtype=torch.uint8)
    picture[:, 20:] = 200
    coarse = torch.zeros(1, 3, 5, 6)
    coarse[:, 0, :, :2], coarse[:, 1, :, 3:] = 2, 2
    raw = type(net(torch.zeros(1, 3, 33, 41)))(coarse)
    prediction = net.decode(raw, [ImageSize.same((33, 41))], with_probs=True)[0]
    assert prediction.probs is not None
    refined = dense_crf(prediction.probs, picture, PRESETS["deeplabv1"]).argmax(0)
    assert (refined[:, :20] == 0).all()
    assert (refined[:, 20:] == 1).all()
    assert (prediction.labels[:, 18:20] != 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fc_kernel": 4, "fc_rate": 3}, "even.*kernel of 4.*rate 3"),
        ({"fc_kernel": 0}, "at least 1"),
        ({"fc_rate": 0}, "at least 1"),
        ({"num_classes": 0}, "num_classes"),
        ({"class_weights": (1.0,)}, "one per class"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DeepLabV1Config(**options)
