"""Runners of the fixtures of FCOS, for `test_parity_instance`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.convert.adelaidet import fcos_rules, fcos_settings
from pixelwise.convert.rules import invert, translate
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.dense_head import flatten_levels
from pixelwise.nn.fcos import (
    CENTRE_RADIUS,
    PointOutput,
    Selection,
    box_targets,
    fcos_detect,
    fcos_loss,
    match_points,
    positives_of,
)
from pixelwise.nn.fpn import OneStageFPN
from pixelwise.nn.tower_head import TowerHead
from pixelwise.ops.points import Points, box_centerness, place_points
from pixelwise.types import InstanceTarget, MaskCrops
from tests.convert.parity import labels_of
from tests.convert.parity_fcis import compare
from tests.fixtures import Fixture, fill_state, image


class FCOS(nn.Module):
    """The shared parts in a row: a detector of boxes alone."""

    def __init__(self, about: dict[str, Any], state: dict[str, Tensor]) -> None:
        super().__init__()
        told, fcos = fcos_settings(state), about["fcos"]
        assert told["extra_levels"] == fcos["top_levels"]
        assert told["with_scales"] == fcos["use_scale"]
        assert told["head_convs"] == fcos["cls_convs"] == fcos["box_convs"]
        assert told["shared_convs"] == fcos["share_convs"]
        self.strides = fcos["strides"]
        self.backbone: Any = build_backbone(
            told["backbone"],
            in_channels=told["in_channels"],
            levels=(3, 4, 5),
            norm=told["backbone_norm"],
            style="caffe" if about["stride_in_1x1"] else "pytorch",
        )
        channels = told["channels"]
        self.neck = OneStageFPN(
            self.backbone.channels, channels, extra=told["extra_levels"], relu_between=True
        )
        self.head = TowerHead(
            channels,
            channels,
            {"category": {"classify": told["num_classes"]}, "box": {"regress": 4, "centerness": 1}},
            levels=len(self.strides),
            convs=told["head_convs"],
            shared_convs=told["shared_convs"],
            scaled=("regress",) if told["with_scales"] else (),
        )


@torch.no_grad()
def run_fcos(fixture: Fixture) -> None:
    about, state = fixture.meta["configuration"], fill_state(fixture.meta)
    net = FCOS(about, state).eval()
    translation = translate(fcos_rules(), state, net.state_dict())
    net.load_state_dict(translation.state)
    back = invert(fcos_rules(), net.state_dict())
    assert set(back) == set(state) - set(translation.dropped)
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    assert sum(p.numel() for p in net.parameters()) == fixture.meta["parameter_count"]
    images = fixture.inputs()[""]
    pyramid = net.neck(net.backbone(images))
    maps = net.head(pyramid)
    ltrb = [F.relu(x) for x in maps["regress"]]
    stages: dict[str, Tensor] = {}
    for i, level in enumerate(pyramid):
        stages |= {
            f"fpn.p{i + 3}": level,
            f"cls_logits.p{i + 3}": maps["classify"][i],
            f"box_ltrb_over_stride.p{i + 3}": ltrb[i],
            f"centerness_logits.p{i + 3}": maps["centerness"][i],
        }
    fcos = about["fcos"]
    bounds = [64.0 * 2**i for i in range(len(pyramid) - 1)]
    points = place_points([tuple(x.shape[-2:]) for x in pyramid], net.strides, bounds, images)
    found = fcos_detect(
        PointOutput(
            flatten_levels(
                maps["classify"], net.head.towers["category"].outputs["classify"].out_channels
            ),
            enlarged(fixture, flatten_levels(ltrb, 4)),
            flatten_levels(maps["centerness"], 1)[..., 0],
        ),
        points,
        [x.shape[2] * x.shape[3] for x in pyramid],
        selection_of(fcos),
    )
    for i, valid in enumerate(found.valid):
        stages |= {
            f"det{i}.boxes": found.boxes[i, valid],
            f"det{i}.score": found.scores[i, valid],
            f"det{i}.class": found.labels[i, valid],
            f"det{i}.locations": points.xy[found.points[i, valid]],
        }
    check_all(fixture, stages)


def check_all(fixture: Fixture, stages: dict[str, Tensor]) -> None:
    """Every stored array is compared; one that nothing here computes is an error."""
    for key in fixture.arrays:
        assert key in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
        if not fixture.arrays[key].size:
            assert not stages[key].numel(), key
        else:
            compare(fixture, key, stages[key])


def enlarged(fixture: Fixture, ltrb: Tensor) -> Tensor:
    """Lengths as the fixture's detections have them; random weights predict nearly empty boxes."""
    said = re.search(r"replaced by ([\d.]+) r \+ ([\d.]+)", " ".join(fixture.meta.get("notes", [])))
    factor, offset = (float(said[1]), float(said[2])) if said else (8.0, 1.0)
    return factor * ltrb + offset


def selection_of(fcos: dict[str, Any]) -> Selection:
    return Selection(
        score_thresh=fcos["score_threshold"],
        with_centerness=fcos["thresh_with_ctr"],
        per_level=fcos["pre_nms_topk"],
        iou_thresh=fcos["nms_iou"],
        count=fcos["post_nms_topk"],
    )


def run_losses(fixture: Fixture) -> None:
    about, given = fixture.meta["configuration"], fixture.meta["input"]
    assert about["center_sampling_radius"] == CENTRE_RADIUS
    targets = [box_target(fixture, i) for i in range(count_images(fixture))]
    grids = [tuple(cells) for cells in about["level_hw"]]
    points = place_points(grids, about["strides"], about["sizes_of_interest"], torch.zeros(0))
    matches = match_points(points, targets)
    stages = target_stages(points, matches, targets, about)
    named, factors = given["box_ltrb_over_stride"].split(" with ")
    assert named == "2 * |fill.image| + 0.1"
    boxes = [2 * image(*described).abs() + 0.1 for described in json.loads(factors)]
    output = PointOutput(
        flatten_levels([image(*d) for d in given["class_logits"]], about["num_classes"]),
        flatten_levels(boxes, 4),
        flatten_levels([image(*d) for d in given["centerness_logits"]], 1)[..., 0],
    )
    kinds = {"giou": "giou", "iou": "log", "linear_iou": "linear"}
    losses = fcos_loss(output, points, matches, targets, kind=kinds[about["location_loss"]])
    names = {"class": "loss_fcos_cls", "box": "loss_fcos_loc", "centerness": "loss_fcos_ctr"}
    stages |= {names[key]: value[None] for key, value in losses.items()}
    check_all(fixture, stages)


def count_images(fixture: Fixture) -> int:
    return sum(key.startswith("in.gt") and key.endswith(".boxes") for key in fixture.arrays)


def box_target(fixture: Fixture, index: int) -> InstanceTarget:
    boxes = fixture.tensor(f"in.gt{index}.boxes")
    return InstanceTarget(
        boxes=boxes,
        labels=fixture.tensor(f"in.gt{index}.classes").long(),
        masks=MaskCrops.empty(tuple(fixture.meta["configuration"]["image_hw"])),
        crowd=torch.zeros(len(boxes), dtype=torch.bool),
    )


def target_stages(
    points: Points, matches: Tensor, targets: list[InstanceTarget], about: dict[str, Any]
) -> dict[str, Tensor]:
    """The fixture goes level by level, and through the images within a level."""
    cells = [math.prod(grid) for grid in about["level_hw"]]
    ends = torch.tensor(cells).cumsum(0).tolist()
    firsts = torch.tensor([0, *(len(t) for t in targets)]).cumsum(0)
    found = positives_of(matches)
    ltrb = box_targets(points, found, targets)
    stages: dict[str, Tensor] = {}
    for level, (size, end) in enumerate(zip(cells, ends, strict=True)):
        own = matches[:, end - size : end]
        labels = [
            labels_of(target, match, about["num_classes"])
            for match, target in zip(own, targets, strict=True)
        ]
        here = (found.point >= end - size) & (found.point < end)
        stages |= {
            f"in.gt{i}.{name}": getattr(target, ours)
            for i, target in enumerate(targets)
            for name, ours in (("boxes", "boxes"), ("classes", "labels"))
        } | {
            f"labels.{level}": torch.cat(labels),
            f"positive_ltrb_over_stride.{level}": ltrb[here],
            f"positive_gt_index.{level}": (firsts[found.image] + found.owner)[here],
            f"positive_centerness.{level}": box_centerness(ltrb[here]),
        }
    return stages


RUNNERS: dict[str, Callable[[Fixture], None]] = {"fcos_": run_fcos, "loss_fcos": run_losses}
