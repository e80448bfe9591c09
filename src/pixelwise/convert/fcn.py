"""FCN checkpoints of zijundeng, Caffe's layers, torchvision and mmseg."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixelwise.convert import Origin, mmseg
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Drop, Rename, Rule, prefixed
from pixelwise.convert.shapes import State, count_of, rows_of, shape_of
from pixelwise.convert.vgg import sequence_indices
from pixelwise.errors import ConversionError
from pixelwise.nn.backbones.vgg import VGGS, convolution_names
from pixelwise.spec import FCN_BGR, IMAGENET_RGB
from pixelwise.systems.fcn import FCNConfig

_LAST = {32: "upscore", 16: "upscore16", 8: "upscore8"}  # stride of the scores -> last upsampling
_DOUBLINGS = ("upscore2", "upscore_pool4")
_SKIPS = ("pool4", "pool3")
_AT_ONCE = (0.01, 0.0001)


@dataclass(frozen=True)
class Dense(Rename):
    """Move the kernels of a transposed convolution; one per channel become a dense diagonal.

    Released files hold K x K kernels, learnt or with the diagonal alone; both move unchanged. The
    way back is dense always, since a diagonal does not tell how it was stored.
    """

    def apply(self, value: Tensor) -> Tensor:
        """[K, K, k, k] as it is; [K, 1, k, k] on the diagonal of zeros."""
        channels = len(value)
        if value.shape[1] == channels:
            return value
        dense = value.new_zeros(channels, channels, *value.shape[2:])
        diagonal = torch.arange(channels)
        dense[diagonal, diagonal] = value[:, 0]
        return dense


def _upsampling_rules(cfg: FCNConfig) -> list[Rule]:
    """Layer names that everyone took from the release."""
    skips = {32: 0, 16: 1, 8: 2}[cfg.output_stride]
    return [
        *(Rename(rf"score_{_SKIPS[i]}\.", f"fusion.score.{i + 1}.") for i in range(skips)),
        *(Dense(rf"{_DOUBLINGS[i]}\.", f"fusion.doublings.{i}.") for i in range(skips)),
        Dense(rf"{_LAST[cfg.output_stride]}\.", "fusion.last."),
    ]


def _infer_upsampling(state: State) -> dict[str, Any]:
    for stride, name in _LAST.items():
        if f"{name}.weight" in state:
            return {"output_stride": stride, "head": "skips", "with_border": True}
    raise ConversionError(
        f"the checkpoint has none of {', '.join(_LAST.values())}; is it of this origin and system?"
    )


# zijundeng: the groups of VGG in up to three sequences, cut at the maps that are used.


def _sequences(output_stride: int) -> list[tuple[int, int]]:
    """First and last group of each sequence; it is named after the last."""
    cuts = [level for level in (3, 4) if 2**level >= output_stride]
    return list(zip([1, *(level + 1 for level in cuts)], [*cuts, 5], strict=True))


def _sequence_keys(vgg: str, output_stride: int) -> dict[str, str]:
    """From the sequences' keys to the names of the convolutions."""
    keys = [
        f"features{last}.{i}"
        for first, last in _sequences(output_stride)
        for i in sequence_indices(vgg, first=first, last=last)
    ]
    return dict(zip(keys, convolution_names(vgg), strict=True))


def _zijundeng_rules(cfg: FCNConfig) -> list[Rule]:
    layers = {"0": "classifier.fc6", "3": "classifier.fc7", "6": "fusion.score.0"}
    return [
        *(
            Rename(rf"{re.escape(key)}\.", f"backbone.{conv}.")
            for key, conv in _sequence_keys(cfg.backbone, cfg.output_stride).items()
        ),
        *(Rename(rf"score_fr\.{number}\.", f"{ours}.") for number, ours in layers.items()),
        *_upsampling_rules(cfg),
    ]


def _zijundeng_infer(state: State) -> dict[str, Any]:
    upsampling = _infer_upsampling(state)
    stride = upsampling["output_stride"]
    found = {key.removesuffix(".weight") for key in state if key.startswith("features")}
    found = {key for key in found if not key.endswith(".bias")}
    names = [name for name in VGGS if set(_sequence_keys(name, stride)) == found]
    if not names:
        raise ConversionError(f"no known VGG has {len(found)} convolutions at these places")
    return {
        **upsampling,
        "backbone": names[0],
        "in_channels": shape_of(state, f"features{_sequences(stride)[0][1]}.0.weight")[1],
        "num_classes": rows_of(state, "score_fr.6.weight"),
        "fc_width": rows_of(state, "score_fr.0.weight"),
        "fc_kernel": shape_of(state, "score_fr.0.weight")[2],
        "skip_scales": _AT_ONCE,
    }


# Caffe: the layer names of the release, which several ports in PyTorch kept.


def _caffe_rules(cfg: FCNConfig) -> list[Rule]:
    return [
        Rename(r"conv(\d)", r"backbone.conv\1"),
        Rename(r"fc6\.", "classifier.fc6."),
        Rename(r"fc7\.", "classifier.fc7."),
        Rename(r"score_fr\.", "fusion.score.0."),
        *_upsampling_rules(cfg),
        Drop(r"scale_pool[34]\.", "constant factor, which the config holds (skip_scales)"),
    ]


def _caffe_infer(state: State) -> dict[str, Any]:
    alexnet = "conv1.weight" in state
    names = {key.removesuffix(".weight") for key in state if key.startswith("conv")}
    names = {name for name in names if not name.endswith(".bias")}
    vggs = [vgg for vgg in VGGS if set(convolution_names(vgg)) == names]
    if not alexnet and not vggs:
        raise ConversionError(f"no known VGG has the convolutions {', '.join(sorted(names))}")
    return {
        **_infer_upsampling(state),
        "backbone": "alexnet" if alexnet else vggs[0],
        "in_channels": shape_of(state, "conv1.weight" if alexnet else "conv1_1.weight")[1],
        "num_classes": rows_of(state, "score_fr.weight"),
        "fc_width": rows_of(state, "fc6.weight"),
        "fc_kernel": shape_of(state, "fc6.weight")[2],
        "skip_scales": tuple(_constant(state, f"scale_{pool}.weight") for pool in _SKIPS),
    }


def _constant(state: State, key: str) -> float:
    """The factor of a scaling layer that never learnt; 1 without the layer."""
    if key not in state:
        return 1.0
    values = state[key].unique()
    if len(values) != 1:
        raise ConversionError(
            f"{key} differs between channels; multiply the score layer's columns by it and leave "
            "it out"
        )
    return round(values.item(), 8)


# torchvision and mmseg: heads on a dilated ResNet.


def _torchvision_rules() -> list[Rule]:
    return [
        *prefixed(torchvision_rules(), "backbone.", "backbone."),
        *(
            Rename(rf"{theirs}\.{number}\.", f"{ours}.{part}.")
            for theirs, ours in {"classifier": "head", "aux_classifier": "auxiliary"}.items()
            for number, part in {0: "fuse.conv", 1: "fuse.norm", 4: "classify"}.items()
        ),
    ]


def _torchvision_infer(state: State) -> dict[str, Any]:
    auxiliary = "aux_classifier.0.weight" in state
    return {
        "num_classes": rows_of(state, "classifier.4.weight"),
        "backbone": infer_resnet(state, "backbone."),
        "in_channels": shape_of(state, "backbone.conv1.weight")[1],
        "output_stride": 8,
        "head": "convs",
        "dropout": 0.1,
        "head_width": rows_of(state, "classifier.0.weight"),
        "head_depth": 1,
        "aux_weight": 0.5 if auxiliary else 0.0,
        "aux_width": rows_of(state, "aux_classifier.0.weight") if auxiliary else None,
    }


def _mmseg_rules(cfg: FCNConfig) -> list[Rule]:
    convs = cfg.head_depth - 1
    blocks = {rf"decode_head\.convs\.{i}": f"head.refine.{i}" for i in range(convs)}
    last = "conv_cat" if cfg.head == "concat" else rf"convs\.{convs}"
    return [
        *mmseg.backbone_rules(cfg.backbone_style),
        *mmseg.block_rules({**blocks, rf"decode_head\.{last}": "head.fuse"}),
        Rename(r"decode_head\.conv_seg\.", "head.classify."),
        *mmseg.auxiliary_rules(),
    ]


def _mmseg_infer(state: State) -> dict[str, Any]:
    concat = "decode_head.conv_cat.conv.weight" in state
    return {
        **mmseg.infer_backbone(state),
        **mmseg.infer_auxiliary(state),
        "num_classes": rows_of(state, "decode_head.conv_seg.weight"),
        "output_stride": 8,
        "head": "concat" if concat else "convs",
        "dropout": 0.1,
        "head_width": shape_of(state, "decode_head.conv_seg.weight")[1],
        "head_depth": count_of(state, r"decode_head\.convs\.(\d+)\.") + concat,
    }


ORIGINS: dict[str, Origin] = {
    "caffe": Origin(rules=_caffe_rules, infer=_caffe_infer, input=FCN_BGR),
    "mmseg": Origin(rules=_mmseg_rules, infer=_mmseg_infer, input=IMAGENET_RGB),
    "torchvision": Origin(rules=_torchvision_rules(), infer=_torchvision_infer, input=IMAGENET_RGB),
    "zijundeng": Origin(rules=_zijundeng_rules, infer=_zijundeng_infer, input=FCN_BGR),
}
