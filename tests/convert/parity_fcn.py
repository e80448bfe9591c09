"""Runners of the fixtures of FCN, for `test_parity_semantic`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pixelwise.nn.bilinear_deconv import BilinearDeconv
from pixelwise.ops.resize import resize
from tests.convert.parity import check_all, convert, output_stride, words
from tests.fixtures import Fixture


def _stages(fusion: Any, given: Any, suffix: str) -> dict[str, Tensor]:
    """The layers of the release by name, and the result under the names of both origins."""
    found: dict[str, Tensor] = {}
    layers = dict(zip(("score_fr", "score_pool4", "score_pool3"), fusion.score, strict=False))
    layers |= dict(zip(("upscore2", "upscore_pool4"), fusion.doublings, strict=False))
    handles = [
        layer.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
        for name, layer in layers.items()
    ]
    logits = fusion(*given)
    for handle in handles:
        handle.remove()
    found |= {"logits": logits, "score": logits}
    return {f"{name}{suffix}": value for name, value in found.items()}


@torch.no_grad()
def run_skips(fixture: Fixture) -> None:
    """As filled; with bilinear upsampling; and that without the scaling of the at-once networks."""
    origin = fixture.name.split("_")[0]
    at_once = re.search(r"pool4 x 0\.01\b", words(fixture))
    settings = {"skip_scales": (0.01, 0.0001)} if at_once else {}
    system = convert(fixture, origin, "fcn", **settings).system
    fusion, calls = system.fusion, []
    fusion.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    before = {key: value.clone() for key, value in fusion.state_dict().items()}
    for tag, images in fixture.inputs().items():
        fusion.load_state_dict(before)
        logits = system(images).logits
        given = calls[-1]  # the maps, which all three variants share
        stages = _stages(fusion, given, "")
        assert torch.equal(logits, stages["logits"])
        for layer in fusion.modules():
            if isinstance(layer, BilinearDeconv):
                layer.reset_parameters()
        stages |= _stages(fusion, given, "_bilinear")
        for layer, scale in zip(fusion.score, fusion.scales, strict=True):
            layer.weight /= scale
        check_all(fixture, stages | _stages(fusion, given, "_staged_bilinear"), tag)


@torch.no_grad()
def run_torchvision(fixture: Fixture) -> None:
    stride = output_stride(fixture, 8)
    system = convert(fixture, "torchvision", "fcn", output_stride=stride).system
    for tag, images in fixture.inputs().items():
        heads = {"out": system(images).logits}
        if system.auxiliary is not None:
            heads["aux"] = system.auxiliary(system.backbone(images)[0])
        size = images.shape[-2:]
        check_all(fixture, {name: resize(x, size) for name, x in heads.items()}, tag)


@torch.no_grad()
def run_mmseg(fixture: Fixture) -> None:
    found = re.search(r"head dilation (\d+)", words(fixture)) or re.search(
        r"fcn_d(\d)_", fixture.name
    )
    system = convert(
        fixture,
        "mmseg",
        "fcn",
        output_stride=output_stride(fixture, 8),
        head_dilation=int(found[1]) if found else 1,
    ).system
    for tag, images in fixture.inputs().items():
        decode = system(images).logits
        stages = {"decode": decode, "logits": resize(decode, images.shape[-2:])}
        if system.auxiliary is not None:
            stages["aux"] = system.auxiliary(system.backbone(images)[0])
        check_all(fixture, stages, tag)


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "caffe_layers_fcn": run_skips,
    "mmseg_fcn_": run_mmseg,
    "torchvision_fcn_": run_torchvision,
    "zijundeng_fcn": run_skips,
}
