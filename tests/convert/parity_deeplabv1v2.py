"""Runners of the fixtures of DeepLab V1 and V2, for `test_parity_semantic`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pixelwise.ops.cell_grid import grid_size, resize_grid
from tests.convert.parity import check_all, convert, output_stride, words
from tests.fixtures import Fixture


def _listed(fixture: Fixture, default: tuple[int, ...]) -> tuple[int, ...]:
    """Rates such as "at rates 6,12,18,24"."""
    found = re.search(r"(?:rates?|dilations?) \(?(\d+(?:, ?\d+)+)", words(fixture))
    return tuple(int(part) for part in found[1].split(",")) if found else default


def _enlarged(logits: Tensor, stride: int) -> Tensor:
    cells = (logits.shape[2], logits.shape[3])
    return resize_grid(logits, grid_size(cells, stride), step=stride)


def _stages_of_v1(system: Any, images: Tensor) -> dict[str, Tensor]:
    *early, pool5 = system.backbone(images)
    pool5a = system.pool(pool5)
    head, *others = system.classify
    logits = system(images).logits
    stages = {"pool5": pool5, "pool5a": pool5a, "fc6": system.head.fc6(pool5a)}
    stages |= {"fc7": system.head(pool5a), "logits": logits}
    stages |= {"fc8": head(stages["fc7"]), "fc8_interp": _enlarged(logits, system.stride)}
    names = ("data_ms", "pool1_ms", "pool2_ms", "pool3_ms", "pool4_ms")
    for name, x, branch, score in zip(
        names, (images, *early), system.branches, others, strict=False
    ):
        stages[name] = score(branch(x, pool5.shape[-2:]))
    return stages


def _stages_of_v2(system: Any, images: Tensor) -> dict[str, Tensor]:
    scores = system.scores(images)
    fused = system.fuse(scores)
    stages = {f"base_{s:g}": x for s, x in zip(system.cfg.scales, scores[1:], strict=True)}
    stages |= {"base": scores[0], "logits_max": fused, "logits": fused}
    stages |= {"fc8": fused, "fc8_interp": _enlarged(fused, system.stride)}
    pool5 = system.backbone(images)[-1]
    stages["pool5"] = pool5
    branches = zip(system.aspp.context, system.aspp.classify, strict=True)
    for i, (context, classify) in enumerate(branches, start=1):
        stages[f"fc8_{i}"] = classify(context(pool5))
    return stages


@torch.no_grad()
def run_deeplabv1(fixture: Fixture) -> None:
    text = words(fixture)
    settings: dict[str, Any] = {"output_stride": output_stride(fixture, 8)}
    if rate := re.search(r"fc6 \dx\d,? (?:d|dilation |rate )(\d+)", text):
        settings["fc_rate"] = int(rate[1])
    if pools := re.search(r"max-pools? (\d)x\d", text):
        settings["backbone_style"] = {"2": "caffe", "3": "deeplab"}[pools[1]]
        settings["with_average_pool"] = bool(re.search(r"(?<!no )average pool", text))
    system = convert(fixture, "caffe", "deeplabv1", **settings).system
    for tag, images in fixture.inputs().items():
        check_all(fixture, _stages_of_v1(system, images), tag)


@torch.no_grad()
def run_deeplabv2(fixture: Fixture, origin: str = "deeplab-pytorch") -> None:
    branches = {m[1] for key in _keys(fixture) if (m := re.search(r"(?:aspp\.c|fc6_)(\d+)", key))}
    scales = dict.fromkeys(
        float(m[1]) for key in fixture.meta["outputs"] if (m := re.search(r"base_(\d*\.\d+)", key))
    )
    settings: dict[str, Any] = {"scales": tuple(scales)} if scales else {}
    settings["rates"] = _listed(fixture, tuple(6 * (i + 1) for i in range(len(branches))))
    stride = output_stride(fixture, 8)
    system = convert(fixture, origin, "deeplabv2", output_stride=stride, **settings).system
    for tag, images in fixture.inputs().items():
        check_all(fixture, _stages_of_v2(system, images), tag)


def run_caffe(fixture: Fixture) -> None:
    """V1 has one fc6, V2's ASPP has fc6_1, fc6_2, …"""
    if any(key.startswith("fc6_1.") for key in _keys(fixture)):
        run_deeplabv2(fixture, "caffe")
    else:
        run_deeplabv1(fixture)


def _keys(fixture: Fixture) -> list[str]:
    return [key for key, *_ in fixture.meta["state_dict"]]


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "caffe_layers_deeplab": run_caffe,
    "deeplab_pytorch_deeplabv2_": run_deeplabv2,
}
