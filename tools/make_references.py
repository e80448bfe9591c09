"""Write the reference outputs of `pixelwise verify`: python tools/make_references.py [ORIGIN ...].

Run it after a converter is added or its network changes on purpose, with the parity tests green: the
values are what our converted networks compute. An output that rounding decides (which detections
survive) is left out, found by computing again with weights that are changed in the last digits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

import pixelwise
from pixelwise.convert import import_checkpoint
from pixelwise.convert.reference import (
    TOLERANCE,
    Reference,
    compute,
    made_picture,
    made_state,
    outputs_of,
    sampled,
)

OUT = Path(pixelwise.__file__).parent / "convert" / "references"
SHAPE = (1, 3, 33, 49)
LARGER = (1, 3, 64, 96)
ORIGINAL, ROUND_TRIP = "outputs of the original", "round trips"
_NOISE = 5e-7  # relative change of the weights
_ROUNDS = 4
_SEEDS = 4

RESNET18 = {"num_classes": 5, "backbone": "resnet18"}
MMSEG = {**RESNET18, "backbone_style": "v1c", "aux_weight": 0.4, "align_corners": False}
ASPP = {"multi_grid": (1, 1, 1), "aspp_rates": (12, 24, 36), "aspp_width": 32}
TORCHVISION_ASPP = {
    "image_pool": "last",
    "projection": "1x1+3x3",
    "aspp_dropout": 0.5,
    "conv": "plain",
}
MMSEG_ASPP = {
    "image_pool": "first",
    "projection": "3x3",
    "aspp_dropout": 0.0,
    "classifier_dropout": 0.1,
}
DEEPLAB_PYTORCH = {
    "num_classes": 5,
    "backbone": "resnet50",
    "backbone_style": "deeplab-pytorch",
    "output_stride": 16,
    "multi_grid": (1, 2, 4),
    "aspp_rates": (6, 12, 18),
    "aspp_width": 32,
    "image_pool": "last",
    "conv": "plain",
    "projection": "1x1",
    "aspp_dropout": 0.0,
    "align_corners": False,
}
SMP = {**RESNET18, "backbone_style": "smp"}
DETECTOR = {"num_classes": 3, "backbone": "resnet50", "channels": 32, "backbone_norm": "frozen"}
FEW = {"pre_nms": (60, 30), "proposals": (30, 12), "detections_per_image": 6}
SMALL_DETECTOR = {**DETECTOR, **FEW}
SPATIAL = {"spatial_widths": (64, 64, 64, 128), "aux_weight": 1.0}
FCN = {"num_classes": 5, "head": "skips", "with_border": True, "fc_width": 32}
SOLO = {
    "form": "full",
    "cells_per_level": 2,
    "channels": 32,
    "head_width": 32,
    "head_convs": 2,
    "backbone": "resnet18",
}

# origin, first row of the system, settings, shape of the picture, how its converter was proven.
ROWS: list[tuple[str, str, dict[str, Any], tuple[int, ...], str]] = [
    ("adelaidet", "blendmask", {"num_classes": 3, "backbone": "resnet50", "backbone_style": "caffe", "channels": 64, "head_convs": 2, "bottom_width": 32, "pre_nms": 60, "detections_per_image": 6}, LARGER, ORIGINAL),
    ("caffe", "deeplabv1", {"num_classes": 5, "fc_width": 32, "backbone_style": "deeplab"}, SHAPE, ORIGINAL),
    ("caffe", "deeplabv2", {"num_classes": 5, "backbone": "vgg16", "branch_width": 32, "scales": (), "norm": "frozen"}, SHAPE, "a layer table"),
    ("caffe", "fcn", {**FCN, "backbone": "alexnet", "output_stride": 32, "fc_kernel": 6, "skip_scales": (1.0, 1.0)}, SHAPE, ORIGINAL),
    ("coincheung", "bisenet", {**RESNET18, **SPATIAL, "gate": "norm"}, SHAPE, ORIGINAL),
    ("deeplab-pytorch", "deeplabv2", {"num_classes": 5, "backbone": "resnet50", "align_corners": False}, SHAPE, ORIGINAL),
    ("deeplab-pytorch", "deeplabv3", DEEPLAB_PYTORCH, SHAPE, ORIGINAL),
    ("deeplab-pytorch", "deeplabv3plus", {**DEEPLAB_PYTORCH, "decoder_width": 32}, SHAPE, "its definition"),
    ("detectron2", "mask_rcnn", {**SMALL_DETECTOR, "backbone_style": "caffe", "conventions": "detectron2"}, LARGER, ORIGINAL),
    ("efficientfcn", "efficientfcn", {"num_classes": 5, "backbone": "resnet50", "compress_width": 64, "codewords": 16, "codeword_width": 64}, SHAPE, ORIGINAL),
    ("fcis", "fcis", {"num_classes": 3, "backbone": "resnet50", "parts": 7, "assembling": "pool", "box_blocks": 2, "width": 64, "rpn_width": 32, "proposals": 12, "detections_per_image": 6}, LARGER, ORIGINAL),
    ("maskscoring", "mask_scoring_rcnn", {**SMALL_DETECTOR, "backbone_style": "caffe", "conventions": "detectron"}, LARGER, ROUND_TRIP),
    ("mmdet", "mask_rcnn", {**SMALL_DETECTOR, "backbone_style": "pytorch", "conventions": "mmdet"}, LARGER, ORIGINAL),
    ("mmdet", "mask_scoring_rcnn", {**SMALL_DETECTOR, "backbone_style": "caffe", "conventions": "mmdet"}, LARGER, ORIGINAL),
    ("mmdet", "panet", {**SMALL_DETECTOR, "backbone_style": "pytorch", "neck_norm": None, "path": "sum", "fusion": None, "box_head": "2fc", "mask_branch": None, "head_norm": None, "conventions": "mmdet"}, LARGER, ORIGINAL),
    ("mmdet", "solo", {**SOLO, "num_classes": 3}, LARGER, ORIGINAL),
    ("mmdet", "yolact", {"num_classes": 3, "backbone": "resnet18", "channels": 32, "conventions": "mmdet", "anchor_ratios": (0.5, 1.0, 2.0), "square_anchors": False}, LARGER, ORIGINAL),
    ("mmseg", "bisenet", {**RESNET18, **SPATIAL, "backbone_style": "mmseg", "gate": "norm_relu", "dropout": 0.1}, SHAPE, ORIGINAL),
    ("mmseg", "deeplabv3", {**MMSEG, **ASPP, **MMSEG_ASPP, "output_stride": 8}, SHAPE, ORIGINAL),
    ("mmseg", "deeplabv3plus", {**MMSEG, **ASPP, **MMSEG_ASPP, "output_stride": 8, "conv": "separable", "decoder_width": 32}, SHAPE, ORIGINAL),
    ("mmseg", "fcn", {**RESNET18, "backbone_style": "v1c", "aux_weight": 0.4, "aux_width": 32, "head": "concat", "dropout": 0.1, "head_width": 32, "head_depth": 3}, SHAPE, ORIGINAL),
    ("mmseg", "pspnet", {**MMSEG, "aux_width": 32, "branch_width": 32, "head_width": 32}, SHAPE, ORIGINAL),
    ("mmseg", "unet", {"num_classes": 5, "widths": (8, 16, 32, 64, 64), "decoder_widths": (64, 32, 16, 8), "padding": "same", "upsample": "bilinear", "norm": "batch", "dropout": 0.0, "head_width": 16, "aux_weight": 0.4, "aux_width": 16}, (1, 3, 64, 96), ORIGINAL),
    ("panet", "panet", {**SMALL_DETECTOR, "backbone_norm": "affine", "backbone_style": "caffe", "conventions": "panet"}, LARGER, ORIGINAL),
    ("polarmask", "polarmask", {"num_classes": 3, "backbone": "resnet18", "backbone_style": "caffe", "channels": 64, "head_convs": 2}, LARGER, ORIGINAL),
    ("semseg", "pspnet", {"num_classes": 5, "backbone": "resnet50", "branch_width": 32, "head_width": 32, "aux_width": 32}, SHAPE, ORIGINAL),
    ("smp", "deeplabv3", {**SMP, **ASPP, **TORCHVISION_ASPP, "output_stride": 8, "align_corners": True}, SHAPE, ROUND_TRIP),
    ("smp", "deeplabv3plus", {**SMP, **ASPP, **TORCHVISION_ASPP, "conv": "bare_separable", "decoder_width": 32, "decoder_depth": 1}, SHAPE, ORIGINAL),
    ("smp", "pspnet", {**SMP, "output_stride": 32, "level": 3, "branch_width": 32, "with_mean_norm": False, "map_place": "last", "head_width": 32, "head_kernels": (1, 3), "aux_weight": 0.0}, SHAPE, ORIGINAL),
    ("smp", "unet", {**SMP, "decoder_widths": (64, 32, 16, 16, 8), "padding": "same", "upsample": "nearest", "norm": "batch", "dropout": 0.0, "head_kernel": 3}, (1, 3, 64, 96), ORIGINAL),
    ("solo", "solo", {**SOLO, "num_classes": 3}, LARGER, ROUND_TRIP),
    ("torchvision", "deeplabv3", {**RESNET18, **ASPP, **TORCHVISION_ASPP, "backbone_style": "pytorch", "output_stride": 8, "align_corners": False, "aux_weight": 0.5, "aux_level": 4}, SHAPE, ORIGINAL),
    ("torchvision", "fcn", {**RESNET18, "head": "convs", "dropout": 0.1, "head_width": 32, "aux_weight": 0.5, "aux_width": 32}, SHAPE, ORIGINAL),
    ("torchvision", "mask_rcnn", {**SMALL_DETECTOR, "conventions": "torchvision"}, LARGER, ORIGINAL),
    ("yolact", "yolact", {"num_classes": 3, "backbone": "resnet18", "channels": 32, "conventions": "yolact"}, LARGER, ORIGINAL),
    ("zijundeng", "fcn", {**FCN, "output_stride": 8, "skip_scales": (0.01, 0.0001)}, SHAPE, ORIGINAL),
    ("zijundeng", "gcn", {"num_classes": 5, "backbone": "resnet50", "kernel": 7, "upsample": "bilinear"}, SHAPE, ORIGINAL),
]  # fmt: skip


def main(wanted: list[str]) -> None:
    """Write the references of these origins, or of all."""
    OUT.mkdir(exist_ok=True)
    for origin in wanted or sorted({row[0] for row in ROWS}):
        found = [
            stable(origin, name, settings, shape=shape, proof=proof)
            for row_origin, name, settings, shape, proof in ROWS
            if row_origin == origin
        ]
        content = {"origin": origin, "references": [as_json(reference) for reference in found]}
        text = json.dumps(content, indent=1)
        (OUT / f"{origin}.json").write_text(text + "\n", encoding="utf-8")
        for reference in found:
            kept = {key: value["shape"] for key, value in reference.outputs.items()}
            print(f"{origin} {reference.name} seed {reference.seed}: {kept}", flush=True)


def stable(
    origin: str, name: str, settings: dict[str, Any], *, shape: tuple[int, ...], proof: str
) -> Reference:
    """The reference on the first picture on which rounding decides the fewest outputs."""
    found = [describe(origin, name, settings, shape=shape, proof=proof, seed=s) for s in range(1)]
    while len(found[-1].outputs) < len(compute(found[-1])) and len(found) < _SEEDS:
        found.append(describe(origin, name, settings, shape=shape, proof=proof, seed=len(found)))
    return max(found, key=lambda reference: len(reference.outputs))


def describe(
    origin: str,
    name: str,
    settings: dict[str, Any],
    *,
    shape: tuple[int, ...],
    proof: str,
    seed: int,
) -> Reference:
    """The reference on one picture, without the outputs that rounding decides."""
    reference = Reference(
        origin=origin, name=name, settings=settings, shape=shape, seed=seed, outputs={}, proof=proof
    )
    outputs = compute(reference)
    steady = set(outputs)
    for turn in range(_ROUNDS):
        for key, other in disturbed(reference, turn).items():
            ours = outputs[key]
            limit = 0.3 * TOLERANCE * float(ours.abs().max())
            if other.shape != ours.shape or float((other - ours).abs().max()) > limit:
                steady.discard(key)
    return Reference(
        origin=origin,
        name=name,
        settings=settings,
        shape=shape,
        seed=seed,
        proof=proof,
        outputs={
            key: {
                "shape": list(value.shape),
                "max_abs": float(f"{float(value.abs().max()):.6g}"),
                "values": [float(f"{v:.7g}") for v in sampled(value)],
            }
            for key, value in outputs.items()
            if key in steady and float(value.abs().max()) > 0
        },
    )


def disturbed(reference: Reference, turn: int) -> dict[str, torch.Tensor]:
    """The outputs with weights that are changed in their last digits."""
    state = made_state(reference.origin, reference.name, reference.settings)
    noise = torch.Generator().manual_seed(turn)
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = value * (1 + _NOISE * torch.randn(value.shape, generator=noise))
    imported = import_checkpoint(
        state, origin=reference.origin, name=reference.name, **reference.settings
    )
    return outputs_of(imported.system, made_picture(reference.shape, reference.seed))


def as_json(reference: Reference) -> dict[str, Any]:
    """One entry of an origin's file."""
    return {
        "name": reference.name,
        "proof": reference.proof,
        "settings": dict(reference.settings),
        "shape": list(reference.shape),
        "seed": reference.seed,
        "outputs": dict(reference.outputs),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
