"""What the DeepLabV3 and V3+ of kazuto1011/deeplab-pytorch share: the ResNet and ASPP."""

from __future__ import annotations

from typing import Any

from pixelwise.convert.resnet import deeplab_pytorch_rules, infer_deeplab_pytorch
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State, count_of, rows_of, shape_of

_RATES = (6, 12, 18)  # at stride 16


def block_rules(blocks: dict[str, str]) -> list[Rule]:
    """Rules for convolutions with norm and ReLU: from the pattern of each to our module."""
    return [
        Rename(rf"{source}\.{theirs}\.", f"{ours}.{part}.")
        for source, ours in blocks.items()
        for theirs, part in (("conv", "conv"), ("bn", "norm"))
    ]


def encoder_rules(rates: int) -> list[Rule]:
    """From `layer1` … `layer5`, `aspp` and `fc1` to "backbone." and "context.".

    Args:
        rates: number of atrous branches.
    """
    blocks = {
        r"aspp\.stages\.c0": "context.pointwise",
        r"aspp\.stages\.imagepool\.conv": "context.pool.project",
        "fc1": "context.project",
    }
    for i in range(rates):
        blocks[rf"aspp\.stages\.c{i + 1}"] = f"context.atrous.{i}"
    return [*prefixed(deeplab_pytorch_rules(), "", "backbone."), *block_rules(blocks)]


def infer_encoder(state: State) -> dict[str, Any]:
    """Config fields of backbone and ASPP; the published default is stride 16 with a multi-grid."""
    branches = count_of(state, r"aspp\.stages\.c(\d+)\.")
    return {
        "backbone": infer_deeplab_pytorch(state),
        "backbone_style": "deeplab-pytorch",
        "in_channels": shape_of(state, "layer1.conv1.conv.weight")[1],
        "output_stride": 16,
        "multi_grid": (1, 2, 4),
        "aspp_rates": _RATES[: branches - 1],
        "aspp_width": rows_of(state, "aspp.stages.c0.conv.weight"),
        "image_pool": "last",
        "conv": "plain",
        "projection": "1x1",
        "aspp_dropout": 0.0,
        "align_corners": False,
    }
