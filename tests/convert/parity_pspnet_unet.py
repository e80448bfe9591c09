"""Runners of the fixtures of PSPNet and U-Net, for `test_parity_semantic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pixelwise.ops.resize import resize
from tests.convert.parity import check_all, convert, encoder_name, output_stride
from tests.fixtures import Fixture


def timm_encoder(fixture: Fixture) -> dict[str, Any]:
    """smp's "tu-NAME" is timm's own network even where we have one of that name."""
    name = encoder_name(fixture)
    return {"backbone": f"timm/{name}", "backbone_style": None} if name else {}


@torch.no_grad()
def run_pspnet(fixture: Fixture) -> None:
    origin = fixture.name.split("_")[0]
    settings = (
        timm_encoder(fixture) if origin == "smp" else {"output_stride": output_stride(fixture, 8)}
    )
    system = convert(fixture, origin, "pspnet", **settings).system
    for tag, images in fixture.inputs().items():
        decode = system(images).logits
        size = images.shape[-2:]
        stages = {
            "decode": decode,
            "logits": resize(decode, size, align_corners=system.cfg.align_corners),
        }
        if system.auxiliary is not None:
            stages["aux"] = system.auxiliary(system.backbone(images)[0])
        check_all(fixture, stages, tag)


@torch.no_grad()
def run_unet(fixture: Fixture) -> None:
    origin = fixture.name.split("_")[0]
    settings = timm_encoder(fixture) if origin == "smp" else {}
    system = convert(fixture, origin, "unet", **settings).system
    for tag, images in fixture.inputs().items():
        logits = system(images).logits
        stages = {"decode": logits, "logits": logits}
        if system.auxiliary is not None:
            stages["aux"] = system.auxiliary(system.expand(images)[-2])
        check_all(fixture, stages, tag)


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "semseg_pspnet": run_pspnet,
    "mmseg_pspnet_": run_pspnet,
    "smp_pspnet_": run_pspnet,
    "mmseg_unet_": run_unet,
    "smp_unet_": run_unet,
}
