"""Runners of the fixtures of SOLO, for `test_parity_instance`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelwise.ops.mask_maps import masks_on_cells
from pixelwise.ops.resize import resize
from pixelwise.ops.rle import crops_from_dense
from pixelwise.ops.rle import decode as dense
from pixelwise.ops.suppress import matrix_nms, pairwise_mask_iou, point_nms
from pixelwise.systems.solo import (
    MASK_WEIGHT,
    SOLO,
    Raw,
    SOLOConfig,
    assign,
    category_loss,
    map_size,
    mask_loss,
)
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget
from tests.convert.parity import TOLERANCE, convert, labels_of
from tests.fixtures import Fixture, image

STRAY_PIXELS = 3  # at the threshold, where rounding decides
EVERY_CELL = 10**6


def compare(fixture: Fixture, key: str, ours: Tensor) -> None:
    """max|difference| <= 1e-4 max|stored|."""
    about, stored = fixture.meta["outputs"][key], fixture.arrays[key].astype(np.float64)
    largest = max(abs(about["min"]), abs(about["max"]))
    fixture.compare(key, ours, rtol=TOLERANCE * largest / (stored.std() or largest or 1.0))


def unpacked(fixture: Fixture, key: str, size: tuple[int, int]) -> Tensor:
    """[N, height, width] uint8 of masks stored as bits."""
    bits = np.unpackbits(fixture.arrays[key], axis=1)[:, : size[0] * size[1]]
    return torch.from_numpy(bits.reshape(-1, *size))


def test_settings(given: dict[str, Any]) -> dict[str, Any]:
    """From a fixture's settings of post-processing to ours; the projects' names differ."""
    return {
        "score_thresh": given["score_thr"],
        "mask_thresh": given["mask_thr"],
        "final_thresh": given.get("update_thr", given.get("filter_thr")),
        "candidates": given["nms_pre"],
        "suppression": given["kernel"],
        "nms_sigma": given["sigma"],
        "detections_per_image": given["max_per_img"],
        "cells_per_level": EVERY_CELL,
    }


def check_detections(fixture: Fixture, prefix: str, found: InstancePrediction) -> None:
    """Labels, scores and masks; `det0.label` and `out.labels` are the two spellings."""
    names = {key.removeprefix(prefix): key for key in fixture.arrays if key.startswith(prefix)}
    label, score = (names.get(n) or names[f"{n}s"] for n in ("label", "score"))
    assert len(found) == len(fixture.arrays[label])
    compare(fixture, score, found.scores)
    # By class, then score: rounding may swap detections of different classes with equal scores.
    ours = found.labels.argsort(stable=True)
    theirs = fixture.tensor(label).long().argsort(stable=True)
    assert torch.equal(found.labels[ours], fixture.tensor(label).long()[theirs])
    masks = torch.from_numpy(dense(found.masks))[ours]
    wanted = unpacked(fixture, names["masks_packed"], found.size)[theirs]
    stray = (masks != wanted).flatten(1).sum(dim=1)
    assert stray.max() <= STRAY_PIXELS, (fixture.name, stray)
    areas = masks.flatten(1).sum(dim=1).float()
    assert (areas - fixture.tensor(names["mask_areas"])[theirs]).abs().max() <= STRAY_PIXELS


@torch.no_grad()
def run_network(fixture: Fixture) -> None:
    given = fixture.meta["configuration"]
    fixture.meta.setdefault("parameters", fixture.meta["parameter_count"])
    settings = test_settings(given["test"]) | {"grids": tuple(given["num_grids"])}
    net = convert(fixture, "mmdet", "solo", **settings).system
    assert isinstance(net, SOLO)
    assert net.cfg.head_convs == given["stacked_convs"]
    images = fixture.inputs()[""]
    stages = network_stages(net, images)
    raw = net(images)
    for key in fixture.arrays:
        if not key.startswith("det"):
            assert key in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
            compare(fixture, key, stages[key]())
    height, width = images.shape[-2:]
    size = ImageSize(
        original=tuple(given["original_shape_hw"]),
        content=(height, width),
        input=(height, width),
    )
    found = net.decode(raw, [size] * len(images))
    for number, prediction in enumerate(found):
        if f"det{number}.score" in fixture.arrays:
            check_detections(fixture, f"det{number}.", prediction)


def network_stages(net: SOLO, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every stage by the fixture's name, computed when it is asked for: masks of all cells."""
    pyramid = net.neck(net.backbone(images))
    maps = net.masks(pyramid)
    size = map_size(maps)
    stages: dict[str, Callable[[], Tensor]] = {}
    for number, level in enumerate(pyramid):
        stages[f"fpn.P{number + 2}"] = lambda x=level: x
    for number, logits in enumerate(net.categories(pyramid)):
        stages[f"cate_logits.{number}"] = lambda x=logits: x
        stages[f"cate_prob_peaks.{number}"] = lambda x=logits: point_nms(x.sigmoid())
    for number, own in enumerate(maps):
        side = net.cfg.grids[number]
        every = torch.arange(side**2).expand(len(images), -1)
        if net.cfg.form == "full":
            stages[f"mask_logits.{number}"] = lambda n=number, m=own, c=every: net.masks.draw(
                n, m, c
            ).logit()
            stages[f"mask_prob_upsampled.{number}"] = lambda n=number, m=own, c=every: (
                net.masks.draw(n, m, c, size)
            )
        elif net.cfg.form == "dynamic":
            stages[f"kernel_preds.{number}"] = lambda m=own: m[0]
            stages["mask_feats"] = lambda m=own: m[1]
        else:
            for axis, convs, at in (("x", net.masks.columns, 0), ("y", net.masks.rows, -1)):
                conv, features = convs[number], own[at]
                stages[f"mask_logits_{axis}.{number}"] = lambda f=conv, x=features: f(x)
                stages[f"mask_prob_{axis}_upsampled.{number}"] = lambda f=conv, x=features: resize(
                    f(x).sigmoid(), size
                )
    return stages


def run_post(fixture: Fixture) -> None:
    given = fixture.meta["configuration"]
    grids = tuple(given["num_grids"])
    scores = torch.cat(
        [fixture.tensor(f"in.cate_prob_peaks.{n}").flatten(1, 2) for n in range(len(grids))], dim=1
    )
    masks = torch.cat([post_masks(fixture, n) for n in range(len(grids))], dim=1)
    net = headless(
        grids=grids,
        num_classes=given["num_foreground_classes"],
        **test_settings(given["test"]),
    )
    size = ImageSize(
        original=tuple(given["original_hw"]),
        content=tuple(given["image_hw"]),
        input=tuple(4 * side for side in given["feature_hw"]),
    )
    (found,) = net.decode(Raw(scores, masks), [size])
    check_detections(fixture, "out.", found)


def post_masks(fixture: Fixture, level: int) -> Tensor:
    """[1, S * S, h, w] soft masks of all cells of a level."""
    read = lambda name: fixture.tensor(f"in.{name}_u8.{level}").float() / 255  # noqa: E731
    if f"in.mask_prob_u8.{level}" in fixture.arrays:
        return read("mask_prob")
    return every_product(read("mask_prob_x"), read("mask_prob_y"))


def every_product(columns: Tensor, rows: Tensor) -> Tensor:
    """[B, S, h, w] twice → [B, S * S, h, w], the masks of all cells in row-major order."""
    return (columns[:, None] * rows[:, :, None]).flatten(1, 2)


def headless(**settings: Any) -> SOLO:
    """A SOLO for its `decode`; without storage for its weights."""
    with torch.device("meta"):
        return SOLO(SOLOConfig(**settings))


def run_matrix_nms(fixture: Fixture) -> None:
    sigma = fixture.meta["configuration"]["sigma"]
    masks = fixture.tensor("in.masks").bool().flatten(1)
    labels, scores = fixture.tensor("in.labels"), fixture.tensor("in.scores")
    compare(fixture, "iou_matrix", pairwise_mask_iou(masks))
    for key in fixture.arrays:
        if key.startswith("updated_scores."):
            kernel = key.removeprefix("updated_scores.")
            ours = matrix_nms(masks, labels, scores, kernel=kernel, sigma=sigma)
            compare(fixture, key, ours)
    apart = torch.zeros(4, 64, dtype=torch.bool)
    apart[torch.arange(4), torch.arange(4)] = True
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    ours = matrix_nms(apart, torch.zeros(4, dtype=torch.int64), scores, sigma=sigma)
    compare(fixture, "disjoint.updated_scores", ours)


def run_loss(fixture: Fixture) -> None:
    given, inputs = fixture.meta["configuration"], fixture.meta["input"]
    size, grids = tuple(given["image_hw"]), given["num_grids"]
    assert given["dice_weight"] == MASK_WEIGHT
    assert given["pos_scale"] == 0.2
    assert given["focal"] == {"alpha": 0.25, "gamma": 2.0}
    logits = {
        key: [image(shape, seed) for shape, seed in levels]
        for key, levels in inputs.items()
        if re.fullmatch(r"(cate|mask)_logits\w*", key)
    }
    count = len(logits["cate_logits"][0])
    targets = [instance_target(fixture, number, size) for number in range(count)]
    height, width = given["mask_map_hw"][0]
    extent = (4 * height, 4 * width)
    found = [assign(t, grids, given["scale_ranges"], extent=extent) for t in targets]
    strides = [stride // 2 for stride in given["strides"]]
    check_targets(fixture, found, targets, strides)

    def draw(level: int, number: int, cells: Tensor) -> Tensor:
        if "mask_logits" in logits:
            return logits["mask_logits"][level][number, cells].sigmoid()
        both = (logits[f"mask_logits_{axis}"][level][[number]].sigmoid() for axis in "xy")
        return every_product(*both)[0, cells]

    mask = mask_loss(draw, found, targets, strides=strides)
    compare(fixture, "loss_mask", mask[None])
    compare(fixture, "loss_cls", category_loss(logits["cate_logits"], found, targets)[None])


def instance_target(fixture: Fixture, number: int, size: tuple[int, int]) -> InstanceTarget:
    key = f"in.gt{number}."
    labels = fixture.tensor(f"{key}labels").long()
    return InstanceTarget(
        boxes=fixture.tensor(f"{key}boxes"),
        labels=labels,
        masks=crops_from_dense(unpacked(fixture, f"{key}masks_packed", size)),
        crowd=torch.zeros(len(labels), dtype=torch.bool),
    )


def check_targets(fixture: Fixture, found, targets, strides) -> None:
    """Labels, positive cells and their masks, per image and level."""
    given = fixture.meta["configuration"]
    for number, (cells, target) in enumerate(zip(found, targets, strict=True)):
        for level, owners in enumerate(cells.owners):
            labels = labels_of(target, owners, given["num_classes"])
            stored = fixture.tensor(f"target{number}.labels.{level}")
            assert torch.equal(labels.int(), stored)
            if (key := f"target{number}.positive.{level}") in fixture.arrays:
                assert torch.equal((owners.flatten() >= 0).byte(), fixture.tensor(key))
            if (key := f"target{number}.positive_yx.{level}") in fixture.arrays:
                assert torch.equal((owners >= 0).nonzero().int(), fixture.tensor(key))
            key = f"target{number}.masks_packed.{level}"
            which = owners[owners >= 0]
            if key in fixture.arrays:
                size = tuple(given["mask_map_hw"][level])
                masks = masks_on_cells(target.masks, which, size, strides[level])
                assert torch.equal(masks.byte(), unpacked(fixture, key, size))
            else:
                assert not len(which)


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "mmdet_solo": run_network,
    "mmdet_decoupled_solo": run_network,
    "loss_solo": run_loss,
    "loss_decoupled_solo": run_loss,
    "post_solo": run_post,
    "post_decoupled_solo": run_post,
    "post_matrix_nms": run_matrix_nms,
}
