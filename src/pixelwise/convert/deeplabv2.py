"""DeepLab V2 checkpoints: kazuto1011/deeplab-pytorch's ResNets, VGG under Caffe's layer names."""

from __future__ import annotations

from typing import Any

from pixelwise.convert import Origin
from pixelwise.convert.resnet import deeplab_pytorch_rules, infer_deeplab_pytorch
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State, count_of, first_of, rows_of, shape_of
from pixelwise.convert.vgg import infer_caffe_vgg
from pixelwise.spec import DEEPLAB_BGR
from pixelwise.systems.deeplabv2 import DeepLabV2Config

_RATE = 6  # ASPP-L: 6, 12, 18, 24
_WRAPPER = "base."  # of the module that looks at several scales
_SCALES = (0.5, 0.75)
# Caffe's classifiers carry the data set in their name, so that other data start afresh.
_SUFFIXES = ("", "_voc12")


def _rates(branches: int) -> tuple[int, ...]:
    return tuple(_RATE * (i + 1) for i in range(branches))


def _deeplab_pytorch_rules(cfg: DeepLabV2Config) -> list[Rule]:
    network = [
        *prefixed(deeplab_pytorch_rules(cfg.backbone), "", "backbone."),
        Rename(r"aspp\.c(\d+)\.", r"aspp.classify.\1."),
    ]
    wrapped = prefixed(network, _WRAPPER, "")
    # Either form is read with any number of scales; what is written back follows the config.
    return [*wrapped, *network] if cfg.scales else [*network, *wrapped]


def _deeplab_pytorch_infer(state: State) -> dict[str, Any]:
    prefix = _WRAPPER if any(key.startswith(_WRAPPER) for key in state) else ""
    branches = count_of(state, rf"{prefix}aspp\.c(\d+)\.")
    return {
        "num_classes": rows_of(state, f"{prefix}aspp.c0.weight"),
        "backbone": infer_deeplab_pytorch(state, prefix),
        "in_channels": shape_of(state, f"{prefix}layer1.conv1.conv.weight")[1],
        "output_stride": 8,
        "norm": "frozen",
        "rates": _rates(branches),
        "branch_width": 0,
        "scales": _SCALES if prefix else (),
        "align_corners": False,
    }


def _caffe_rules(cfg: DeepLabV2Config) -> list[Rule]:
    rules: list[Rule] = [Rename(r"conv(\d_\d)\.", r"backbone.conv\1.")]
    for i in range(len(cfg.rates)):
        rules += [
            Rename(rf"fc6_{i + 1}\.", f"aspp.context.{i}.fc6."),
            Rename(rf"fc7_{i + 1}\.", f"aspp.context.{i}.fc7."),
            *(Rename(rf"fc8{suffix}_{i + 1}\.", f"aspp.classify.{i}.") for suffix in _SUFFIXES),
        ]
    return rules


def _caffe_infer(state: State) -> dict[str, Any]:
    return {
        "num_classes": rows_of(state, first_of(state, [f"fc8{s}_1.weight" for s in _SUFFIXES])),
        "backbone": infer_caffe_vgg(state),
        "in_channels": shape_of(state, "conv1_1.weight")[1],
        "output_stride": 8,
        "rates": _rates(count_of(state, r"fc6_(\d+)\.") - 1),  # counted from 1
        "branch_width": rows_of(state, "fc6_1.weight"),
        "scales": (),  # the VGG was published with one scale
        "align_corners": True,
    }


ORIGINS: dict[str, Origin] = {
    "caffe": Origin(rules=_caffe_rules, infer=_caffe_infer, input=DEEPLAB_BGR),
    "deeplab-pytorch": Origin(
        rules=_deeplab_pytorch_rules, infer=_deeplab_pytorch_infer, input=DEEPLAB_BGR
    ),
}
