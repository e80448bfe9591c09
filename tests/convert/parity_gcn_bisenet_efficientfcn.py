"""Runners of the fixtures of GCN, BiSeNet and EfficientFCN, for `test_parity_semantic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pixelwise.ops.resize import resize
from tests.convert.parity import check_all, convert
from tests.fixtures import Fixture


@torch.no_grad()
def run_gcn(fixture: Fixture) -> None:
    system = convert(fixture, "zijundeng", "gcn").system
    for tag, images in fixture.inputs().items():
        check_all(fixture, {"logits": system(images).logits}, tag)


def _bisenet_maps(system: Any, images: Tensor) -> list[Tensor]:
    """Logits of the head and of the auxiliary heads, each at its own stride."""
    detail = system.spatial_path(images)
    context = system.context_path(*system.backbone(images), detail.shape[-2:])
    # Checkpoints without auxiliary heads make a system without.
    auxiliary = [head(x) for head, x in zip(system.auxiliary, context, strict=False)]
    return [system(images).logits, *auxiliary]


@torch.no_grad()
def run_coincheung_bisenet(fixture: Fixture) -> None:
    system = convert(fixture, "coincheung", "bisenet").system
    for tag, images in fixture.inputs().items():
        maps = [resize(m, images.shape[-2:]) for m in _bisenet_maps(system, images)]
        check_all(fixture, dict(zip(("logits", "aux16", "aux32"), maps, strict=False)), tag)


@torch.no_grad()
def run_mmseg_bisenet(fixture: Fixture) -> None:
    system = convert(fixture, "mmseg", "bisenet").system
    for tag, images in fixture.inputs().items():
        maps = _bisenet_maps(system, images)
        stages = dict(zip(("decode", "aux0", "aux1"), maps, strict=False))
        stages["logits"] = resize(maps[0], images.shape[-2:])
        check_all(fixture, stages, tag)


@torch.no_grad()
def run_efficientfcn(fixture: Fixture) -> None:
    system = convert(fixture, "efficientfcn", "efficientfcn").system
    for tag, images in fixture.inputs().items():
        head = system(images).logits
        check_all(fixture, {"head": head, "logits": resize(head, images.shape[-2:])}, tag)


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "zijundeng_gcn_": run_gcn,
    "coincheung_bisenet": run_coincheung_bisenet,
    "mmseg_bisenetv1_": run_mmseg_bisenet,
    "efficientfcn_": run_efficientfcn,
}
