"""U-Net checkpoints of mmseg and segmentation_models.pytorch."""

from __future__ import annotations

from typing import Any

from pixelwise.convert import Origin, mmseg, smp
from pixelwise.convert.rules import Rename, Rule
from pixelwise.convert.shapes import State, count_of, rows_of, shape_of
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems.unet import UNetConfig


def _mmseg_rules(cfg: UNetConfig) -> list[Rule]:
    blocks: dict[str, str] = {}
    for level in range(len(cfg.widths)):
        pooled = int(level > 0)  # the pool is number 0 of its level
        for i in (0, 1):
            theirs = rf"backbone\.encoder\.{level}\.{pooled}\.convs\.{i}"
            blocks[theirs] = f"backbone.levels.{level}.{i}"
    last = len(cfg.decoder_widths) - 1
    for level in range(last + 1):  # theirs count from the finest, ours from the deepest
        theirs, ours = rf"backbone\.decoder\.{level}", f"decoder.blocks.{last - level}"
        blocks[theirs + r"\.upsample\.interp_upsample\.1"] = f"{ours}.reduce"
        for i in (0, 1):
            blocks[theirs + rf"\.conv_block\.convs\.{i}"] = f"{ours}.fuse.{i}"
    return [
        *mmseg.block_rules(blocks),
        *mmseg.block_rules({r"decode_head\.convs\.0": "refine.0"}),
        Rename(r"decode_head\.conv_seg\.", "classify."),
        *mmseg.auxiliary_rules(),
    ]


def _mmseg_infer(state: State) -> dict[str, Any]:
    levels = count_of(state, r"backbone\.encoder\.(\d+)\.")
    first = "backbone.encoder.0.0.convs.0.conv.weight"
    widths = [shape_of(state, first)[0]]
    widths += [
        rows_of(state, f"backbone.encoder.{i}.1.convs.0.conv.weight") for i in range(1, levels)
    ]
    return {
        **mmseg.infer_auxiliary(state),
        "num_classes": rows_of(state, "decode_head.conv_seg.weight"),
        "backbone": "unet",
        "in_channels": shape_of(state, first)[1],
        "widths": tuple(widths),
        "decoder_widths": tuple(
            rows_of(state, f"backbone.decoder.{i}.conv_block.convs.0.conv.weight")
            for i in reversed(range(levels - 1))
        ),
        "padding": "same",
        "upsample": "bilinear",
        "norm": "batch",
        "dropout": 0.0,
        "head_width": rows_of(state, "decode_head.convs.0.conv.weight"),
        "head_kernel": 1,
    }


def _smp_rules(cfg: UNetConfig) -> list[Rule]:
    return [
        *smp.encoder_rules(cfg.backbone, cfg.backbone_style, level=max(cfg.levels)),
        Rename(r"decoder\.blocks\.(\d)\.conv1\.0\.", r"decoder.blocks.\1.fuse.0.conv."),
        Rename(r"decoder\.blocks\.(\d)\.conv1\.1\.", r"decoder.blocks.\1.fuse.0.norm."),
        Rename(r"decoder\.blocks\.(\d)\.conv2\.0\.", r"decoder.blocks.\1.fuse.1.conv."),
        Rename(r"decoder\.blocks\.(\d)\.conv2\.1\.", r"decoder.blocks.\1.fuse.1.norm."),
        Rename(r"segmentation_head\.0\.", "classify."),
    ]


def _smp_infer(state: State) -> dict[str, Any]:
    depth = count_of(state, r"decoder\.blocks\.(\d)\.")
    return {
        **smp.infer_encoder(state),
        "num_classes": rows_of(state, "segmentation_head.0.weight"),
        "levels": tuple(range(1 if _has_half_map(state, depth) else 2, depth + 1)),
        "decoder_widths": tuple(
            rows_of(state, f"decoder.blocks.{i}.conv1.0.weight") for i in range(depth)
        ),
        "padding": "same",
        "upsample": "nearest",
        "norm": "batch",
        "dropout": 0.0,
        "head_width": 0,
        "head_kernel": shape_of(state, "segmentation_head.0.weight")[2],
        "aux_weight": 0.0,
    }


def _has_half_map(state: State, depth: int) -> bool:
    """Whether a skip joins at stride 2: encoders that start at stride 4 have no map there."""
    before, here = depth - 3, depth - 2  # blocks that come up to strides 4 and 2
    joined = shape_of(state, f"decoder.blocks.{here}.conv1.0.weight")[1]
    return joined > rows_of(state, f"decoder.blocks.{before}.conv1.0.weight")


ORIGINS: dict[str, Origin] = {
    "mmseg": Origin(rules=_mmseg_rules, infer=_mmseg_infer, input=IMAGENET_RGB),
    "smp": Origin(rules=_smp_rules, infer=_smp_infer, input=IMAGENET_RGB),
}
