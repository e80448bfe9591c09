"""DeepLab V1 checkpoints under the layer names of the authors' Caffe release."""

from __future__ import annotations

from typing import Any

from pixelwise.convert import Origin
from pixelwise.convert.rules import Rename, Rule
from pixelwise.convert.shapes import State, first_of, rows_of, shape_of
from pixelwise.convert.vgg import infer_caffe_vgg
from pixelwise.spec import DEEPLAB_BGR
from pixelwise.systems.deeplabv1 import DeepLabV1Config

# Caffe's classifiers carry the data set in their name, so that other data start afresh.
_SUFFIXES = ("", "_voc12")
_BRANCHES = ("data", "pool1", "pool2", "pool3", "pool4")
_RATES = {3: 12, 4: 4, 7: 4}  # of fc6 by its kernel; table 2 of the paper has 4 with rate 8 too


def _caffe_rules(cfg: DeepLabV1Config) -> list[Rule]:
    rules: list[Rule] = [
        Rename(r"conv(\d_\d)\.", r"backbone.conv\1."),
        Rename(r"fc6\.", "head.fc6."),
        Rename(r"fc7\.", "head.fc7."),
        *(Rename(rf"fc8{suffix}\.", "classify.0.") for suffix in _SUFFIXES),
    ]
    for i, name in enumerate(_BRANCHES if cfg.with_branches else ()):
        rules += [
            Rename(rf"{name}_conv\.", f"branches.{i}.reduce.conv."),
            Rename(rf"{name}_fc\.", f"branches.{i}.mix.conv."),
            *(Rename(rf"{name}_ms{suffix}\.", f"classify.{i + 1}.") for suffix in _SUFFIXES),
        ]
    return rules


def _caffe_infer(state: State) -> dict[str, Any]:
    width, _, kernel, _ = shape_of(state, "fc6.weight")
    branches = "data_conv.weight" in state
    return {
        "num_classes": rows_of(state, first_of(state, [f"fc8{s}.weight" for s in _SUFFIXES])),
        "backbone": infer_caffe_vgg(state),
        "in_channels": shape_of(state, "conv1_1.weight")[1],
        "output_stride": 8,
        "fc_kernel": kernel,
        "fc_rate": _RATES.get(kernel, 4),
        "fc_width": width,
        # LargeFOV came with 3x3 pools, which put cells on pixels, and an average pool behind them.
        "backbone_style": "deeplab" if kernel == 3 else "caffe",
        "with_average_pool": kernel == 3,
        "with_branches": branches,
        **({"branch_width": rows_of(state, "data_conv.weight")} if branches else {}),
        "align_corners": kernel == 3,
    }


ORIGINS: dict[str, Origin] = {
    "caffe": Origin(rules=_caffe_rules, infer=_caffe_infer, input=DEEPLAB_BGR),
}
