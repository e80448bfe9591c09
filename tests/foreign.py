"""Small checkpoints under other projects' names, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelwise.convert import origins
from pixelwise.convert.rules import invert
from pixelwise.systems import configure, create

VOC = tuple(f"thing {i}" for i in range(21))
SEMSEG = {"backbone": "resnet18", "branch_width": 8, "head_width": 16, "aux_width": 8}
MMSEG = {
    "backbone": "resnet18",
    "backbone_style": "v1c",
    "branch_width": 8,
    "head_width": 16,
    "aux_width": 8,
    "align_corners": False,
}
TORCHVISION = {
    "backbone": "resnet18",
    "conventions": "torchvision",
    "channels": 16,
    "pre_nms": (40, 20),
    "proposals": (20, 10),
    "detections_per_image": 5,
}


def state_of(origin: str, name: str, *, seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    """A freshly initialised network of ours under an origin's names."""
    torch.manual_seed(seed)
    net = create(name, **settings)
    entry = origins(name)[origin]
    config = configure(name, settings)
    rules = entry.rules(config) if callable(entry.rules) else entry.rules
    return invert(rules, net.state_dict(), with_zeros=True)


def mmseg_file(
    folder: Path, *, name: str = "epoch_12.pth", classes: tuple[str, ...] = ("a", "b")
) -> Path:
    """A PSPNet as mmsegmentation saves one, with meta data."""
    state = state_of("mmseg", "pspnet", num_classes=len(classes), **MMSEG)
    config = """
model = dict(backbone=dict(type='ResNetV1c', strides=(1, 2, 1, 1)),
             decode_head=dict(type='PSPHead', pool_scales=(1, 2, 3, 6), align_corners=False))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""
    palette = [[i, 2 * i, 3 * i] for i in range(len(classes))]
    meta = {"config": config, "CLASSES": classes, "PALETTE": palette, "epoch": 12}
    path = folder / name
    torch.save({"meta": meta, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def semseg_file(folder: Path, *, num_classes: int = 3, name: str = "train_epoch_50.pth") -> Path:
    """A PSPNet as semseg saves one: DataParallel's prefix, nothing about classes."""
    state = state_of("semseg", "pspnet", num_classes=num_classes, **SEMSEG)
    path = folder / name
    torch.save({"epoch": 50, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def torchvision_file(folder: Path, *, num_classes: int = 3, name: str = "model_9.pth") -> Path:
    """A Mask R-CNN as torchvision's training script saves one."""
    state = state_of("torchvision", "mask_rcnn", num_classes=num_classes, **TORCHVISION)
    path = folder / name
    torch.save({"model": state, "epoch": 9}, path)
    return path
