import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.nn.fully_convolutional import FullyConvolutional, convolutionize, weight_to_kernel


def picture(*size: int) -> torch.Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(3))


def alexnet_like() -> tuple[nn.Sequential, nn.Sequential]:
    """Trunk and classifier in the form of torchvision's AlexNet, narrow, without padding."""
    trunk = nn.Sequential(
        nn.Conv2d(3, 8, 11, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 8, 5),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )
    classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(8 * 4 * 4, 16),
        nn.ReLU(),
        nn.Sequential(nn.Dropout(), nn.Linear(16, 16), nn.ReLU()),
        nn.Linear(16, 5),
    )
    return trunk.eval(), classifier.eval()


@torch.no_grad()
def test_on_the_native_size_the_logits_are_the_classifiers() -> None:
    trunk, classifier = alexnet_like()
    x = picture(115, 115)  # 27 → 13 → 9 → 4 cells
    head = convolutionize([nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), classifier], (8, 4, 4))
    found = head(trunk(x))
    assert found.shape == (1, 5, 1, 1)
    torch.testing.assert_close(found.flatten(1), classifier(trunk(x).flatten(1)))


@torch.no_grad()
def test_every_cell_is_the_classifier_on_its_own_patch() -> None:
    """Field 115, stride 16, no padding anywhere: cell (i, j) sees x[16i : 16i + 115, 16j : …]."""
    trunk, classifier = alexnet_like()
    x = picture(115 + 32, 115 + 48)
    scores = convolutionize(classifier, (8, 4, 4))(trunk(x))
    assert scores.shape == (1, 5, 3, 4)
    for i in range(3):
        for j in range(4):
            patch = x[..., 16 * i : 16 * i + 115, 16 * j : 16 * j + 115]
            expected = classifier(trunk(patch).flatten(1))
            torch.testing.assert_close(scores[..., i, j], expected)


@torch.no_grad()
def test_timms_vgg() -> None:
    """At 224 its 7x7 convolution and the pool of one cell are the paper's fc6, fc7 and fc8."""
    from timm.models.vgg import VGG

    torch.manual_seed(0)
    plan = [4, "M", 4, "M", 8, "M", 8, "M", 8, "M"]
    net = VGG(plan, num_classes=5, mlp_ratio=0.004).eval()
    layers = [*net.pre_logits.children(), nn.AdaptiveAvgPool2d(1), net.head.fc]
    head = convolutionize(layers, (8, 7, 7))
    x = picture(224, 224)
    torch.testing.assert_close(head(net.features(x))[..., 0, 0], net(x))
    assert head(net.features(picture(256, 320))).shape == (1, 5, 2, 4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_timms_networks_with_an_average_pool(name: str) -> None:
    import timm

    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=7).eval()
    classifier = net.get_classifier()
    x = picture(160, 160)
    features = net.forward_features(x)
    head = convolutionize(
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier], tuple(features.shape[1:])
    )
    torch.testing.assert_close(head(features)[..., 0, 0], net(x))
    larger = net.forward_features(picture(224, 192))
    scores = head(larger)
    assert scores.shape == (1, 7, 3, 2)
    torch.testing.assert_close(
        scores[..., 2, 1], classifier(larger[..., 2:7, 1:6].mean((2, 3))), rtol=1e-4, atol=1e-5
    )


def test_values_are_flattened_by_channel_row_column() -> None:
    weight = torch.arange(2 * 3 * 4 * 5).float().view(2, 60)
    kernel = weight_to_kernel(weight, (4, 5))
    assert kernel.shape == (2, 3, 4, 5)
    assert kernel[1, 2, 3, 1] == weight[1, 2 * 20 + 3 * 5 + 1]
    assert kernel.data_ptr() == weight.data_ptr()


def test_layers_keep_their_mode_and_type() -> None:
    head = convolutionize([nn.Dropout(), nn.Linear(4, 2, bias=False).double().eval()], (4, 1, 1))
    assert head[0].training
    assert not head[1].training
    assert head[1].weight.dtype == torch.float64
    assert head[1].bias is None


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(9, 2), "9 inputs, the map 4x3x3"),
        (nn.AdaptiveAvgPool2d((2, 2)), r"\(2, 2\)"),
        (nn.MaxPool2d(3, 2), "MaxPool2d"),
        (nn.BatchNorm2d(4), "BatchNorm2d"),
        (nn.Conv2d(4, 4, 3, padding=1), "slide"),
        (nn.Conv2d(4, 4, 2, stride=2), "slide"),
        (nn.Conv2d(4, 4, 5), "slide"),
    ],
)
def test_what_has_no_convolutional_form_is_named(layer: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convolutionize([layer], (4, 3, 3))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"kernel": 7}, (9, 12)),
        ({"kernel": 6}, (9, 12)),
        ({"kernel": 3, "dilation": 4}, (9, 12)),
        ({"kernel": 7, "with_padding": False}, (3, 6)),
        ({"kernel": 6, "with_padding": False}, (4, 7)),
        ({"kernel": 3, "dilation": 4, "with_padding": False}, (1, 4)),
    ],
)
def test_sizes(options: dict, size: tuple[int, int]) -> None:
    net = FullyConvolutional(4, 8, **options)
    assert net(torch.randn(2, 4, 9, 12)).shape == (2, 8, *size)


@pytest.mark.parametrize("kernel", [6, 7])
def test_padding_adds_cells_around_what_there_is_without(kernel: int) -> None:
    padded = FullyConvolutional(4, 8, kernel=kernel).eval()
    bare = FullyConvolutional(4, 8, kernel=kernel, with_padding=False).eval()
    bare.load_state_dict(padded.state_dict())
    x = torch.randn(1, 4, 12, 11)
    before = (kernel - 1) // 2
    inner = padded(x)[:, :, before : before + 13 - kernel, before : before + 12 - kernel]
    torch.testing.assert_close(inner, bare(x))


def test_dropout_sits_behind_both_layers() -> None:
    net = FullyConvolutional(2, 8, kernel=1).train()
    calls: list[torch.Tensor] = []
    net.dropout.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0]))
    net(torch.randn(1, 2, 3, 3))
    assert len(calls) == 2
    assert all((x >= 0).all() for x in calls)  # behind the ReLUs
