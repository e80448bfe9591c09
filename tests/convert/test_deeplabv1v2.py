"""Variants of DeepLab V1's and V2's checkpoints: other depths, widths, class counts and forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.convert.vgg import infer_caffe_vgg
from pixelwise.errors import ConversionError
from pixelwise.systems import create
from tests.convert.parity_deeplabv1v2 import RUNNERS
from tests.fixtures import Fixture, fill_state, image, sample

State = dict[str, Tensor]


def written(name: str, origin: str, **options: Any) -> tuple[Any, State]:
    """One of our systems, and its weights as the origin would have stored them."""
    torch.manual_seed(0)
    system = create(name, **options).eval()
    rules = origins(name)[origin].rules
    return system, invert(rules(system.cfg), system.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 5},
        {"num_classes": 60, "in_channels": 4, "fc_width": 24},
        {"with_branches": True, "branch_width": 12},
        {"fc_kernel": 7, "fc_rate": 4, "with_average_pool": False},
        {"fc_kernel": 4, "fc_rate": 4, "with_average_pool": False, "with_branches": True},
    ],
)
def test_v1_goes_there_and_back(options: dict[str, Any]) -> None:
    large = options.get("fc_kernel", 3) == 3
    options["backbone_style"] = "deeplab" if large else "caffe"
    options = {"backbone": "test_vgg", "fc_width": 16, "align_corners": large, **options}
    system, theirs = written("deeplabv1", "caffe", **options)
    found = import_checkpoint(theirs, origin="caffe", name="deeplabv1")
    assert found.system.cfg == system.cfg
    for key, value in system.state_dict().items():
        assert torch.equal(found.system.state_dict()[key], value), key
    assert not found.translation.dropped


@pytest.mark.parametrize(
    "options", [{"num_classes": 5}, {"rates": (6, 12), "in_channels": 1, "branch_width": 24}]
)
def test_v2s_vgg_goes_there_and_back(options: dict[str, Any]) -> None:
    options = {"backbone": "test_vgg", "branch_width": 16, "scales": (), **options}
    system, theirs = written("deeplabv2_vgg16", "caffe", **options)
    assert "fc8_1.weight" in theirs
    found = import_checkpoint(theirs, origin="caffe", name="deeplabv2_vgg16")
    assert found.system.cfg == system.cfg
    for key, value in system.state_dict().items():
        assert torch.equal(found.system.state_dict()[key], value), key


@pytest.mark.parametrize("scales", [(0.5, 0.75), ()])
def test_v2s_resnet_goes_there_and_back(scales: tuple[float, ...]) -> None:
    options = {"backbone": "resnet50", "num_classes": 4, "rates": (6, 12, 18), "scales": scales}
    system, theirs = written("deeplabv2", "deeplab-pytorch", align_corners=False, **options)
    prefix = "base." if scales else ""
    assert f"{prefix}layer4.block6.conv3x3.bn.running_mean" in theirs
    found = import_checkpoint(theirs, origin="deeplab-pytorch", name="deeplabv2")
    assert found.system.cfg == system.cfg
    for key, value in system.state_dict().items():
        assert torch.equal(found.system.state_dict()[key], value), key


@pytest.mark.parametrize("scales", [(0.5,), ()])
def test_weights_of_several_scales_serve_any_number(scales: tuple[float, ...]) -> None:
    with torch.device("meta"):
        _, theirs = written("deeplabv2", "deeplab-pytorch", backbone="resnet50")
        found = import_checkpoint(
            theirs, origin="deeplab-pytorch", name="deeplabv2", scales=scales, rates=(3, 6, 9, 12)
        )
    assert found.system.cfg.scales == scales
    assert found.system.aspp.classify[3].dilation == (12, 12)


@pytest.mark.parametrize("depth", ["resnet101", "resnet152"])
def test_depths_are_read_from_the_blocks(depth: str) -> None:
    with torch.device("meta"):
        _, theirs = written("deeplabv2", "deeplab-pytorch", backbone=depth, num_classes=182)
        found = import_checkpoint(theirs, origin="deeplab-pytorch", name="deeplabv2")
    assert found.system.cfg.backbone == depth
    assert found.system.cfg.num_classes == 182


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_vggs_are_told_by_their_convolutions(name: str) -> None:
    with torch.device("meta"):
        _, theirs = written("deeplabv1", "caffe", backbone=name)
    assert infer_caffe_vgg(theirs) == name
    del theirs["conv3_1.weight"]
    with pytest.raises(ConversionError, match="no known VGG"):
        infer_caffe_vgg(theirs)


@pytest.mark.parametrize("name", ["deeplabv1_msc", "deeplabv2_vgg16"])
def test_classifiers_named_after_voc_are_found(name: str) -> None:
    """As released: fc8_voc12, pool1_ms_voc12; fc8_voc12_1 in V2."""
    width = {"deeplabv1_msc": "fc_width", "deeplabv2_vgg16": "branch_width"}[name]
    system, theirs = written(name, "caffe", backbone="test_vgg", **{width: 8})
    as_released = {
        key.replace("fc8", "fc8_voc12").replace("_ms.", "_ms_voc12."): value
        for key, value in theirs.items()
    }
    found = import_checkpoint(as_released, origin="caffe", name=name)
    for key, value in system.state_dict().items():
        assert torch.equal(found.system.state_dict()[key], value), key


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ConversionError, match=r"fc6\.weight"):
        import_checkpoint({"fc8.weight": torch.zeros(2)}, origin="caffe", name="deeplabv1")
    with pytest.raises(ConversionError, match=r"aspp\.c0\.weight"):
        import_checkpoint(
            {"base.fc.weight": torch.zeros(2)}, origin="deeplab-pytorch", name="deeplabv2"
        )


def conv(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)


def caffe_pools(state: State, x: Tensor) -> list[Tensor]:
    """The image and pools 1 to 5 of the published layer table, on a VGG with one layer a group."""
    maps = [x]
    for group in range(1, 6):
        rate = 2 if group == 5 else 1
        x = F.relu(conv(state, f"conv{group}_1", x, padding=rate, dilation=rate))
        step = 2 if group < 4 else 1
        x = F.max_pool2d(x, 3, step, 1, ceil_mode=True)
        maps.append(x)
    return maps


def caffe_largefov(state: State, images: Tensor) -> dict[str, Tensor]:
    *early, pool5 = caffe_pools(state, images)
    x = F.avg_pool2d(pool5, 3, 1, 1)
    x = F.relu(conv(state, "fc6", x, padding=12, dilation=12))
    fc8 = conv(state, "fc8", F.relu(conv(state, "fc7", x)))
    outputs, total = {"fc8": fc8}, fc8
    names = ("data", "pool1", "pool2", "pool3", "pool4")
    for name, m, step in zip(names, early, (8, 4, 2, 1, 1), strict=True):
        if f"{name}_conv.weight" in state:
            y = F.relu(conv(state, f"{name}_conv", m, stride=step, padding=1))
            score = conv(state, f"{name}_ms", F.relu(conv(state, f"{name}_fc", y)))
            outputs[f"{name}_ms"], total = score, total + score
    return outputs | {"logits": total}


def caffe_aspp(state: State, images: Tensor, rates: tuple[int, ...]) -> dict[str, Tensor]:
    pool5 = caffe_pools(state, images)[-1]
    outputs: dict[str, Tensor] = {}
    for i, rate in enumerate(rates, start=1):
        x = F.relu(conv(state, f"fc6_{i}", pool5, padding=rate, dilation=rate))
        outputs[f"fc8_{i}"] = conv(state, f"fc8_{i}", F.relu(conv(state, f"fc7_{i}", x)))
    fc8 = torch.stack(list(outputs.values())).sum(0)
    size = tuple(8 * (cells - 1) + 1 for cells in fc8.shape[2:])
    enlarged = F.interpolate(fc8, size=size, mode="bilinear", align_corners=True)
    return outputs | {"fc8": fc8, "fc8_interp": enlarged}


def stored(name: str, words: list[str], theirs: State, outputs: dict[str, Tensor]) -> Fixture:
    """A fixture in the form of the shared ones."""
    meta: dict[str, Any] = {
        "configuration": words,
        "inputs": [{"tag": "", "shape": [2, 3, 65, 49], "seed": 7}],
        "parameters": sum(value.numel() for value in theirs.values()),
        "state_dict": [[key, list(value.shape)] for key, value in theirs.items()],
        "outputs": {
            key: {"shape": list(y.shape), "max_abs": float(y.abs().max()), "std": float(y.std())}
            for key, y in outputs.items()
        },
    }
    arrays = {key: sample(value) for key, value in outputs.items()}
    return Fixture(name, meta, arrays, "semantic")


@pytest.mark.parametrize("branches", [False, True])
def test_the_runner_takes_other_forms_of_v1(branches: bool) -> None:
    options = {"num_classes": 6, "fc_width": 16, "with_branches": branches, "branch_width": 8}
    _, theirs = written("deeplabv1", "caffe", backbone="test_vgg", **options)
    name = "caffe_layers_deeplab_msc_variant"
    filled = fill_state(stored(name, [], theirs, {}).meta)
    outputs = caffe_largefov(filled, image((2, 3, 65, 49), 7))
    assert len(outputs) == (7 if branches else 2)
    fixture = stored(name, ["fc6 3x3 dilation 12 16; fc7 1x1"], theirs, outputs)
    RUNNERS["caffe_layers_deeplab"](fixture)
    wrong = stored(name, ["fc6 3x3 dilation 6 16; fc7 1x1"], theirs, outputs)
    with pytest.raises(AssertionError, match="differs"):  # the rate is read from the words
        RUNNERS["caffe_layers_deeplab"](wrong)


def test_the_runner_takes_v2s_vgg_with_other_rates() -> None:
    options = {"num_classes": 4, "branch_width": 12, "scales": (), "rates": (2, 4, 8, 12)}
    _, theirs = written("deeplabv2_vgg16", "caffe", backbone="test_vgg", **options)
    name = "caffe_layers_deeplabv2_aspp_s_variant"
    filled = fill_state(stored(name, [], theirs, {}).meta)
    outputs = caffe_aspp(filled, image((2, 3, 65, 49), 7), (2, 4, 8, 12))
    words = ["four branches fc6_j 3x3 at rates 2,4,8,12; fc8_j summed"]
    RUNNERS["caffe_layers_deeplab"](stored(name, words, theirs, outputs))
    with pytest.raises(AssertionError, match="differs"):
        RUNNERS["caffe_layers_deeplab"](stored(name, [], theirs, outputs))
