"""PSPNet checkpoints of semseg (the authors'), mmseg and segmentation_models.pytorch."""

from __future__ import annotations

from typing import Any

from pixelwise.convert import Origin, mmseg, smp
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State, count_of, rows_of, shape_of
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems.pspnet import PSPNetConfig

# Grids are not in a checkpoint, only their number; all projects take the paper's.
_BINS = (1, 2, 3, 6)

_SEMSEG: list[Rule] = [
    *prefixed(torchvision_rules(stem="sequence", stem_name="layer0"), "", "backbone."),
    Rename(r"ppm\.features\.(\d)\.1\.", r"pyramid.project.\1.conv."),
    Rename(r"ppm\.features\.(\d)\.2\.", r"pyramid.project.\1.norm."),
    Rename(r"cls\.0\.", "fuse.conv."),
    Rename(r"cls\.1\.", "fuse.norm."),
    Rename(r"cls\.4\.", "classify."),
    Rename(r"aux\.0\.", "auxiliary.fuse.conv."),
    Rename(r"aux\.1\.", "auxiliary.fuse.norm."),
    Rename(r"aux\.4\.", "auxiliary.classify."),
]


def _semseg_infer(state: State) -> dict[str, Any]:
    return {
        "num_classes": rows_of(state, "cls.4.weight"),
        "backbone": infer_resnet(state),
        "in_channels": shape_of(state, "layer0.0.weight")[1],
        "bins": _BINS[: count_of(state, r"ppm\.features\.(\d)\.")],
        "branch_width": rows_of(state, "ppm.features.0.1.weight"),
        "head_width": rows_of(state, "cls.0.weight"),
        **_semseg_auxiliary(state),
    }


def _semseg_auxiliary(state: State) -> dict[str, Any]:
    first = "aux.0.weight"
    return {"aux_width": rows_of(state, first)} if first in state else {"aux_weight": 0.0}


def _mmseg_rules(cfg: PSPNetConfig) -> list[Rule]:
    return [
        *mmseg.backbone_rules(cfg.backbone_style),
        *mmseg.auxiliary_rules(),
        *mmseg.block_rules({r"decode_head\.bottleneck": "fuse"}),
        *(
            Rename(
                rf"decode_head\.psp_modules\.(\d)\.1\.{theirs}\.", rf"pyramid.project.\1.{ours}."
            )
            for theirs, ours in mmseg.PARTS.items()
        ),
        Rename(r"decode_head\.conv_seg\.", "classify."),
    ]


def _mmseg_infer(state: State) -> dict[str, Any]:
    head = "decode_head."
    return {
        **mmseg.infer_backbone(state),
        **mmseg.infer_auxiliary(state),
        "num_classes": rows_of(state, head + "conv_seg.weight"),
        "bins": _BINS[: count_of(state, r"decode_head\.psp_modules\.(\d)\.")],
        "branch_width": rows_of(state, head + "psp_modules.0.1.conv.weight"),
        "head_width": rows_of(state, head + "bottleneck.conv.weight"),
        "align_corners": False,
    }


def _smp_rules(cfg: PSPNetConfig) -> list[Rule]:
    return [
        *smp.encoder_rules(cfg.backbone, cfg.backbone_style, level=cfg.level),
        Rename(r"decoder\.psp\.blocks\.(\d)\.pool\.1\.0\.", r"pyramid.project.\1.conv."),
        Rename(r"decoder\.psp\.blocks\.(\d)\.pool\.1\.1\.", r"pyramid.project.\1.norm."),
        Rename(r"decoder\.conv\.0\.", "fuse.conv."),
        Rename(r"decoder\.conv\.1\.", "fuse.norm."),
        Rename(r"segmentation_head\.0\.", "classify."),
    ]


def _smp_infer(state: State) -> dict[str, Any]:
    first = "decoder.psp.blocks.0.pool.1."
    return {
        **smp.infer_encoder(state),
        "num_classes": rows_of(state, "segmentation_head.0.weight"),
        "output_stride": 32,  # nothing is dilated: the map at stride 8 is as the encoder gives it
        "level": 3,
        "bins": _BINS[: count_of(state, r"decoder\.psp\.blocks\.(\d)\.")],
        "branch_width": rows_of(state, first + "0.weight"),
        "with_mean_norm": first + "1.weight" in state,
        "map_place": "last",
        "head_width": rows_of(state, "decoder.conv.0.weight"),
        "head_kernels": (1, 3),
        "dropout": 0.2,
        "aux_weight": 0.0,
    }


ORIGINS: dict[str, Origin] = {
    "semseg": Origin(rules=_SEMSEG, infer=_semseg_infer, input=IMAGENET_RGB),
    "mmseg": Origin(rules=_mmseg_rules, infer=_mmseg_infer, input=IMAGENET_RGB),
    "smp": Origin(rules=_smp_rules, infer=_smp_infer, input=IMAGENET_RGB),
}
