"""Checkpoints of FCN that no fixture has: other depths, classes and widths, grouped kernels."""

from typing import Any

import pytest
import torch

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.backbones import _fill, _holds, initialise_backbone
from pixelwise.convert.rules import invert
from pixelwise.convert.vgg import sequence_indices, torchvision_vgg_rules
from pixelwise.errors import ConversionError
from pixelwise.nn.backbones.vgg import convolution_names
from pixelwise.systems import configure, create

TINY = {"backbone": "test_vgg", "fc_width": 16, "fc_kernel": 3, "with_border": True}
CONVS = {"head": "convs", "dropout": 0.1, "head_width": 24, "output_stride": 8}


def foreign(origin: str, **options: Any) -> dict[str, torch.Tensor]:
    """What the origin would have saved of a network of ours."""
    torch.manual_seed(0)
    net = create("fcn", **options)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    rules = origins("fcn")[origin].rules
    return invert(rules(net.cfg) if callable(rules) else rules, net.state_dict())


@pytest.mark.parametrize(
    ("origin", "options"),
    [
        *(
            ("zijundeng", {**TINY, "output_stride": s, "num_classes": 5, "in_channels": 4})
            for s in (32, 16, 8)
        ),
        ("zijundeng", {**TINY, "backbone": "vgg11", "output_stride": 8, "num_classes": 2}),
        *(("caffe", {**TINY, "output_stride": s, "num_classes": 60}) for s in (32, 16, 8)),
        ("caffe", {**TINY, "backbone": "vgg13", "output_stride": 16}),
        ("caffe", {**TINY, "backbone": "alexnet", "output_stride": 32, "fc_kernel": 6}),
        ("torchvision", {**CONVS, "backbone": "resnet101", "aux_weight": 0.5, "aux_width": 8}),
        ("torchvision", {**CONVS, "backbone": "resnet50", "num_classes": 4, "in_channels": 1}),
        ("mmseg", {**CONVS, "backbone": "resnet18", "head_depth": 2, "backbone_style": "v1c"}),
        (
            "mmseg",
            {
                **CONVS,
                "backbone": "resnet34",
                "head": "concat",
                "head_depth": 4,
                "backbone_style": "v1d",
                "aux_weight": 0.4,
                "aux_width": 12,
                "num_classes": 150,
            },
        ),
        ("mmseg", {**CONVS, "backbone": "resnet18", "backbone_style": "mmseg"}),
    ],
)
def test_shapes_tell_the_settings(origin: str, options: dict[str, Any]) -> None:
    state = foreign(origin, **options)
    scales = (0.01, 0.0001) if origin == "zijundeng" else (1.0, 1.0)
    imported = import_checkpoint(state, origin=origin, name="fcn")
    cfg = imported.system.cfg
    assert cfg == configure("fcn", {**options, "skip_scales": scales})
    rules = origins("fcn")[origin].rules
    back = invert(rules(cfg) if callable(rules) else rules, imported.system.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("origin", ["caffe", "zijundeng"])
def test_kernels_per_channel_become_a_diagonal(origin: str) -> None:
    options = {**TINY, "output_stride": 8, "num_classes": 4}
    state = foreign(origin, **options)
    dense, grouped = dict(state), dict(state)
    for key in ("upscore2.weight", "upscore_pool4.weight", "upscore8.weight"):
        kernels = torch.randn(4, 1, *state[key].shape[2:])
        grouped[key] = kernels
        dense[key] = torch.eye(4)[:, :, None, None] * kernels
    images = torch.randn(1, 3, 20, 33)
    results = []
    for given in (dense, grouped):
        system = import_checkpoint(given, origin=origin, name="fcn").system
        with torch.no_grad():
            results.append(system(images).logits)
    assert torch.equal(*results)


def test_the_factor_layers_of_the_release_become_settings() -> None:
    state = foreign("caffe", **TINY, output_stride=8)
    widths = {3: 32, 4: 64}
    for level, factor in ((4, 0.01), (3, 0.0001)):
        state[f"scale_pool{level}.weight"] = torch.full((widths[level],), factor)
    imported = import_checkpoint(state, origin="caffe", name="fcn")
    assert imported.system.cfg.skip_scales == (0.01, 0.0001)
    assert set(imported.translation.dropped) == {"scale_pool3.weight", "scale_pool4.weight"}
    state["scale_pool3.weight"][0] = 1
    with pytest.raises(ConversionError, match="differs between channels"):
        import_checkpoint(state, origin="caffe", name="fcn")


@pytest.mark.parametrize("origin", ["caffe", "mmseg", "torchvision", "zijundeng"])
def test_another_networks_checkpoint_is_refused(origin: str) -> None:
    with pytest.raises(ConversionError):
        import_checkpoint({"stem.weight": torch.zeros(1)}, origin=origin, name="fcn")


def classifier_of_imagenet(width: int) -> dict[str, torch.Tensor]:
    """A narrow VGG under torchvision's names."""
    trunk = create("fcn", backbone="test_vgg", fc_width=0).backbone.state_dict()
    numbers = sequence_indices("test_vgg")
    state = {
        f"features.{i}.{kind}": trunk[f"{conv}.{kind}"]
        for i, conv in zip(numbers, convolution_names("test_vgg"), strict=True)
        for kind in ("weight", "bias")
    }
    for number, inputs, outputs in ((0, 64 * 49, width), (3, width, width), (6, width, 10)):
        state[f"classifier.{number}.weight"] = torch.randn(outputs, inputs)
        state[f"classifier.{number}.bias"] = torch.randn(outputs)
    return state


def test_imagenets_fully_connected_layers_fill_fc6_and_fc7(tmp_path) -> None:
    state = classifier_of_imagenet(16)
    torch.save(state, tmp_path / "vgg.pth")
    for with_border in (False, True):
        net = create("fcn", backbone="test_vgg", fc_width=16, with_border=with_border)
        line = initialise_backbone(net, tmp_path / "vgg.pth")
        assert "14 of 14 tensors filled (2 left out, under classifier)" in line
        kernel = net.classifier.fc6.weight
        assert kernel[3, 5, 2, 4] == state["classifier.0.weight"][3, 5 * 49 + 2 * 7 + 4]
        assert torch.equal(net.classifier.fc7.weight.flatten(1), state["classifier.3.weight"])
        assert torch.equal(net.classifier.fc7.bias, state["classifier.3.bias"])


def test_layers_of_another_width_stay_as_they_are() -> None:
    net = create("fcn", backbone="test_vgg", fc_width=8)
    before = net.classifier.fc6.weight.clone()
    rules = torchvision_vgg_rules("test_vgg")
    state = classifier_of_imagenet(16)
    assert not _holds(state, rules, net.classifier)
    assert "10 of 10 tensors filled" in _fill([net.backbone], state, rules)
    assert torch.equal(net.classifier.fc6.weight, before)
