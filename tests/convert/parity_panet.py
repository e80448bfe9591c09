"""Runners of PANet's fixtures and of the mask IoU head's alone, for `test_parity_instance`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelwise import convert
from pixelwise.convert.mask_scoring_rcnn import MASK_IOU_HEAD
from pixelwise.convert.rules import translate
from pixelwise.nn.mask_iou_head import MaskIoUHead
from pixelwise.nn.norm import ChannelAffine
from tests.fixtures import Fixture, fill_state, sample


def _settings(fixture: Fixture) -> dict[str, Any]:
    """Shapes do not tell where a bottleneck strides."""
    words = fixture.meta["configuration"]["backbone"]
    found = re.search(r"stride in the (?:first )?([13])x[13]", words)
    return {"backbone_style": {"1": "caffe", "3": "pytorch"}[found[1]]} if found else {}


@torch.no_grad()
def run_panet(fixture: Fixture) -> None:
    state = fill_state(fixture.meta)
    net: Any = convert.load(state, origin="panet", name="panet", **_settings(fixture))
    _check_parameters(fixture, net)
    boxes = fixture.tensor("proposals")
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
    stages = _first_stage(net, fixture.inputs()[""])
    stages |= _heads(net, stages.pop("pyramid"), rois)
    for key in fixture.arrays:
        if key != "proposals":
            _compare(fixture, key, stages[key])


def _check_parameters(fixture: Fixture, net: Any) -> None:
    ours = sum(p.numel() for p in net.parameters())
    frozen = [m for m in net.modules() if isinstance(m, ChannelAffine)]
    ours += sum(m.weight.numel() + m.bias.numel() for m in frozen)
    # Its background has a box and a mask.
    ours += 4 * (net.box_head.regress.in_features + 1) + net.cfg.channels + 1
    assert ours == fixture.meta["parameters"]


def _first_stage(net: Any, image: Tensor) -> dict[str, Any]:
    before = net.neck(net.backbone(image))
    pyramid = net.pyramid(image)
    maps = net.rpn.predict(pyramid)
    stages: dict[str, Any] = {"pyramid": pyramid}
    stages |= {f"P{i}": x for i, x in enumerate(before[:-1], 2)}
    stages |= {f"N{i}": x for i, x in enumerate(pyramid, 2)}
    stages |= {f"rpn_objectness_{i}": x for i, x in enumerate(maps.logits, 2)}
    stages |= {f"rpn_deltas_{i}": x for i, x in enumerate(maps.deltas, 2)}
    return stages


def _heads(net: Any, pyramid: list[Tensor], rois: Tensor) -> dict[str, Tensor]:
    box_features, mask_features = net.box_pool(pyramid, rois), net.mask_pool(pyramid, rois)
    boxes = net.box_head.predict(box_features)
    head = net.mask_head
    shared = head.convs[:-1](head.fuse(mask_features))
    masks = head.predict(mask_features)
    stages = {
        "box_head": net.box_head.trunk(box_features),
        "box_logits": boxes.logits.roll(1, 1),  # its background comes first
        "box_deltas": _with_background(boxes.deltas, 4),
        "mask_fcn_upsampled": F.relu(head.upsample(head.convs[-1:](shared))),
        "mask_logits": _with_background(masks, 1),
        "mask_prob": _with_background(masks.sigmoid(), 1),
    }
    if head.branch is not None:
        stages["mask_fc_branch"] = head.branch(shared).flatten(1)
    stages |= {f"box_roi_level{i}": x for i, x in enumerate(box_features, 2)}
    return stages | {f"mask_roi_level{i}": x for i, x in enumerate(mask_features, 2)}


def _with_background(values: Tensor, channels: int) -> Tensor:
    """NaN for what the original predicts of its background class, and we do not."""
    shape = (len(values), channels, *values.shape[2:])
    return torch.cat([values.new_full(shape, torch.nan), values], dim=1)


def _compare(fixture: Fixture, key: str, ours: Tensor) -> None:
    """max|difference| <= 1e-4 max|stored|, where we compute a value at all."""
    assert tuple(ours.shape) == fixture.shape(key), (key, ours.shape, fixture.shape(key))
    limit, stored = fixture.limit(key), fixture.arrays[key]
    values = ours.numpy() if limit is None else sample(ours, limit)
    known = ~np.isnan(values)
    assert known.mean() > 0.4, (key, "mostly NaN")
    worst = np.abs(values - stored)[known].max()
    assert worst <= 1e-4 * np.abs(stored).max(), (key, worst)


@torch.no_grad()
def run_mask_iou_head(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    state = fill_state(fixture.meta)
    shapes = {key.split(".")[-2]: value.shape for key, value in state.items() if value.ndim > 1}
    channels, classes = shapes["maskiou_fcn1"][0], about["num_classes_including_background"]
    cells = shapes["maskiou_fc1"][1] // channels
    holder = torch.nn.ModuleDict(
        {
            "iou_head": MaskIoUHead(
                shapes["maskiou_fcn1"][1] - 1,
                classes - 1,
                channels=channels,
                out_features=shapes["maskiou_fc1"][0],
                pool="mean" if cells == 1 else "flatten",
            )
        }
    )
    holder.load_state_dict(translate(MASK_IOU_HEAD, state, holder.state_dict()).state)
    head: Any = holder["iou_head"]
    background = shapes["maskiou"][1] + 1  # parameters of an output
    assert sum(p.numel() for p in head.parameters()) + background == fixture.meta["parameters"]

    generator = np.random.Generator(np.random.PCG64(about["seed"]))
    count, width = about["n"], shapes["maskiou_fcn1"][1] - 1
    features, logits = (
        torch.from_numpy(generator.standard_normal((count, *shape), dtype=np.float32))
        for shape in ((width, 14, 14), (1, 28, 28))
    )
    labels = torch.from_numpy(generator.integers(1, classes, count))
    class_scores = torch.from_numpy(generator.random(count).astype(np.float32))
    assert torch.equal(labels, fixture.tensor("labels"))
    _compare(fixture, "class_scores", class_scores)
    ious = head.predict(features, logits[:, 0])
    _compare(fixture, "pooled_mask", F.max_pool2d(logits.sigmoid(), 2))
    _compare(fixture, "mask_iou", _with_background(ious, 1))
    _compare(fixture, "mask_scores", class_scores * head.of_class(ious, labels - 1))
    mask = F.max_pool2d(logits.sigmoid(), 2)
    hidden = head.fcs(head.convs(torch.cat([features, mask], dim=1)).flatten(1))
    _compare(fixture, "features", hidden)


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "panet_": run_panet,
    "msrcnn_": run_mask_iou_head,
}
