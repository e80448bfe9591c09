"""Runners of the fixtures of PolarMask, for `test_parity_instance`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pixelwise.losses.polar import RayLossKind, polar_iou_loss
from pixelwise.nn.fcos import CENTRE_RADIUS
from pixelwise.nn.tower_head import TowerHead
from pixelwise.ops import rle
from pixelwise.ops.contours import Contours, centroids, largest_contours
from pixelwise.ops.points import Points
from pixelwise.ops.polar import NO_RAY, contour_rays, draw_rays, polar_centerness, ray_ends
from pixelwise.systems.polarmask import (
    PolarMask,
    PolarMaskConfig,
    assign_targets,
)
from pixelwise.types import ImageSize, InstanceTarget
from tests.convert.parity import convert, labels_of
from tests.convert.parity_fcis import compare, half_open
from tests.fixtures import Fixture

PIXELS = 2  # per mask that rounding may move


class ScaledLengths(nn.Module):
    """The head with lengths in strides, as the fixture has them before post-processing."""

    def __init__(self, head: TowerHead, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.head, self.strides = head, strides

    def forward(self, levels: list[Tensor]) -> dict[str, list[Tensor]]:
        maps = self.head(levels)
        for name in ("regress", "rays"):
            pairs = zip(maps[name], self.strides, strict=True)
            maps[name] = [x + torch.tensor(float(stride)).log() for x, stride in pairs]
        return maps


@torch.no_grad()
def run_authors(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    test = about["test"]
    meta = {**fixture.meta, "parameters": fixture.meta["parameter_count"]}
    net: Any = convert(
        replace(fixture, meta=meta),
        "polarmask",
        "polarmask",
        pre_nms=test["nms_pre"],
        score_thresh=test["score_thr"],
        iou_thresh=test["nms"]["iou_thr"],
        detections_per_image=test["max_per_img"],
        centerness_offset=about["centerness_offset"],
    ).system
    assert isinstance(net, PolarMask)
    assert net.cfg.rays == about["rays"]
    assert list(net.cfg.strides) == about["strides"]
    images = fixture.inputs()[""]
    features = net.backbone(images)
    pyramid = net.neck(features)
    maps = net.head(pyramid)
    stem = net.backbone.pool(net.backbone.stem(images))
    stages: dict[str, Tensor] = {"backbone.C2": net.backbone.layer1(stem)}
    stages |= {f"backbone.C{i}": x for i, x in enumerate(features, start=3)}
    for i, level in enumerate(pyramid):
        stages |= {
            f"fpn.P{i + 3}": level,
            f"cls_logits.P{i + 3}": maps["classify"][i],
            f"bbox_distances.P{i + 3}": maps["regress"][i].exp(),
            f"centerness_logits.P{i + 3}": maps["centerness"][i],
            f"ray_lengths.P{i + 3}": maps["rays"][i].exp(),
        }
    net.head = ScaledLengths(net.head, net.cfg.strides)
    raw = net(images)
    content = (images.shape[-2], images.shape[-1])
    size = ImageSize(original=tuple(about["original_hw"]), content=content, input=content)
    predictions = net.decode(raw, [size] * len(images))
    scale = torch.tensor(size.scale_yx[::-1])
    for i, found in enumerate(predictions):
        valid = raw.valid[i]
        ends = ray_ends(raw.centres[i, valid], raw.rays[i, valid])  # [N, n, 2]
        limit = torch.tensor([content[1] - 1.0, content[0] - 1.0])
        last_pixels = raw.boxes[i, valid] - half_open(torch.zeros(4))
        boxes = last_pixels / scale.repeat(2)
        stages |= {
            f"det{i}.boxes_scores": torch.cat([boxes, raw.scores[i, valid][:, None]], dim=1),
            f"det{i}.labels": found.labels,
            f"det{i}.contours_xy": (torch.minimum(ends.clamp(min=0), limit) / scale).mT,
            f"det{i}.masks": torch.from_numpy(rle.decode(found.masks)),
        }
    check_all(fixture, stages)


def check_all(fixture: Fixture, stages: dict[str, Tensor]) -> None:
    """Every stored array is compared; one that nothing here computes is an error."""
    for key in fixture.arrays:
        if key.endswith("packed"):  # "_packed" or ".packed"
            check_masks(fixture, key, stages[key[: -len("_packed")]])
        elif key.endswith("mask_areas"):
            areas = stages[key.replace("mask_areas", "masks")].sum(dim=(1, 2))
            assert (areas - fixture.tensor(key)).abs().max() <= PIXELS
        else:
            assert key in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
            compare(fixture, key, stages[key])


def check_masks(fixture: Fixture, key: str, ours: Tensor) -> None:
    masks = ours.numpy().reshape(-1, ours.shape[-2] * ours.shape[-1])
    bits = np.unpackbits(fixture.arrays[key].reshape(len(masks), -1), axis=1)
    differ = (masks != bits[:, : masks.shape[1]]).sum(axis=1)
    assert differ.max() <= PIXELS, (fixture.name, key, differ)


def run_targets(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    size, rays = tuple(about["image_hw"]), about["rays"]
    assert about["center_sampling_radius"] == CENTRE_RADIUS
    count = sum(bool(re.fullmatch(r"mask\d+\.packed", key)) for key in fixture.arrays)
    bits = [np.unpackbits(fixture.arrays[f"mask{i}.packed"]) for i in range(count)]
    dense = torch.from_numpy(np.stack([b[: size[0] * size[1]].reshape(size) for b in bits]))
    masks = rle.crops_from_dense(dense)
    contours = largest_contours(masks, torch.arange(count))
    centres = centroids(contours)
    stages: dict[str, Tensor] = {}
    for i in range(count):
        query = fixture.tensor(f"mask{i}.query_xy")
        lengths = contour_rays(contours, query, torch.full((len(query),), i), rays=rays)
        stages |= {
            f"mask{i}": dense[i],
            f"mask{i}.contour_xy": contours.xy[contours.starts[i] : contours.starts[i + 1]],
            f"mask{i}.center_xy": centres[i],
            f"mask{i}.query_xy": query,
            f"mask{i}.rays": lengths,
            f"mask{i}.polar_centerness": polar_centerness(lengths),
            f"mask{i}.decoded": decoded(query[:1], lengths[:1], size),
        }
    assert torch.equal(stages["mask0.query_xy"][0].long(), centres[0])
    check_said(fixture, contours, centres, stages)
    check_all(fixture, stages | assignment_stages(fixture, masks) | loss_stages(fixture))


def decoded(centre: Tensor, rays: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(
        rle.decode(draw_rays(centre, rays, ImageSize.same(size), aligned=False))
    )


def check_said(
    fixture: Fixture, contours: Contours, centres: Tensor, stages: dict[str, Tensor]
) -> None:
    """What the json tells about each mask."""
    for about in fixture.meta["masks"]:
        i = about["index"]
        mask, drawn = stages[f"mask{i}"], stages[f"mask{i}.decoded"][0]
        assert int(mask.sum()) == about["area"]
        assert centres[i].tolist() == about["center_xy"]
        assert bool(mask[centres[i, 1], centres[i, 0]]) == about["center_inside"]
        missing = (stages[f"mask{i}.rays"][0] == np.float32(NO_RAY)).sum()
        assert int(missing) == about["rays_set_to_1e_6"]
        iou = (mask & drawn).sum() / (mask | drawn).sum()
        assert abs(iou.item() - about["round_trip_iou"]) < 1e-5


def assignment_stages(fixture: Fixture, masks: Any) -> dict[str, Tensor]:
    """The assignment of points to some of the masks; the fixture says which points there are."""
    about = fixture.meta["configuration"]
    chosen = torch.tensor(about["assigned_masks"])
    boxes, labels = fixture.tensor("assign.gt_boxes"), fixture.tensor("assign.gt_labels").long()
    xy = fixture.tensor("assign.points")
    starts = [i for i in range(1, len(xy)) if (xy[i] < xy[i - 1]).all()]
    ends = [0, *starts, len(xy)]
    strides: list[float] = []
    ranges: list[list[float]] = []
    for level, (first, last) in enumerate(pairwise(ends)):
        stride = 2 * float(xy[first, 0])  # the first point of a level is the middle of its cell
        strides += [stride] * (last - first)
        ranges += [about["regress_ranges"][level]] * (last - first)
    points = Points(xy, torch.tensor(strides), torch.tensor(ranges, dtype=torch.float32))
    picked = rle.crops_from_dense(rle.dense_crops(masks)[chosen])
    target = InstanceTarget(
        boxes=half_open(boxes),
        labels=labels,
        masks=picked,
        crowd=torch.zeros(len(chosen), dtype=torch.bool),
    )
    found = assign_targets(points, [target], PolarMaskConfig(rays=about["rays"]))
    matches = found.matches[0]
    return {
        "assign.gt_boxes": boxes,
        "assign.gt_labels": labels,
        "assign.points": xy,
        "assign.labels": labels_of(target, matches, 0),
        "assign.positive_index": (matches >= 0).nonzero()[:, 0],
        "assign.positive_ltrb": found.ltrb,
        "assign.positive_rays": found.rays,
    }


def loss_stages(fixture: Fixture) -> dict[str, Tensor]:
    given = {key: fixture.tensor(f"loss.{key}") for key in ("pred", "target", "weight")}
    weight = given["weight"]
    order: tuple[RayLossKind, ...] = ("linear", "per_ray", "squared")
    assert set(order) == set(get_args(RayLossKind))
    values = [
        (polar_iou_loss(given["pred"], given["target"], kind=kind) * weight).sum() / weight.sum()
        for kind in order
    ]
    return {f"loss.{key}": value for key, value in given.items()} | {
        "loss.values": torch.stack(values)
    }


def run(fixture: Fixture) -> None:
    is_targets = fixture.meta["configuration"].get("kind") == "polar target generation"
    (run_targets if is_targets else run_authors)(fixture)


RUNNERS: dict[str, Callable[[Fixture], None]] = {"polarmask_": run}
