"""Runners of the fixtures of BlendMask, for `test_parity_instance`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelwise.nn.fcos import Positives, fcos_detect
from pixelwise.ops import rle
from pixelwise.ops.blend import blend, pool_bases
from pixelwise.ops.masks import mask_targets, paste_masks
from pixelwise.ops.roi import rois_of
from pixelwise.systems.blendmask import BlendMask, Dense, Raw, mask_loss
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget, Size
from tests.convert.parity import convert
from tests.convert.parity_fcis import compare
from tests.convert.parity_fcos import enlarged, selection_of
from tests.fixtures import Fixture, image

PIXELS = 4  # per mask that rounding may move over the threshold
NEAR = 1e-5  # probabilities this near to the threshold are at it


@torch.no_grad()
def run_blendmask(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    net = converted(fixture, about)
    images = fixture.inputs()[""]
    pyramid = net.pyramid(images)
    dense = net.predict(pyramid)
    stages = dense_stages(net, pyramid, dense)
    output = dense.output._replace(ltrb=enlarged(fixture, dense.output.ltrb))
    dense = dense._replace(output=output)
    net.predict = lambda _: dense
    check_all(fixture, stages | detection_stages(net, images, dense, about))


def converted(fixture: Fixture, about: dict[str, Any]) -> BlendMask:
    blend_, fcos, bottom = about["blend"], about["fcos"], about["basis_module"]
    # Frozen norms have no parameters in the fixture's count.
    keys = [(key, shape) for key, shape, *_ in fixture.meta["state_dict"]]
    frozen = not any(re.search(r"bottom_up.*num_batches", key) for key, _ in keys)
    affine = [math.prod(s) for k, s in keys if re.search(r"bottom_up.*norm\.(weight|bias)", k)]
    total = fixture.meta["parameter_count"] + frozen * sum(affine)
    meta = {**fixture.meta, "parameters": total}
    net = convert(
        replace(fixture, meta=meta),
        "adelaidet",
        "blendmask",
        backbone_style="caffe" if about["stride_in_1x1"] else "pytorch",
        mask_side=blend_["bottom_resolution"],
        interpolation=blend_["top_interpolation"],
        score_thresh=fcos["score_threshold"],
        pre_nms=fcos["pre_nms_topk"],
        iou_thresh=fcos["nms_iou"],
        detections_per_image=fcos["post_nms_topk"],
    ).system
    assert isinstance(net, BlendMask)
    assert not fcos["use_scale"]
    assert fcos["thresh_with_ctr"]
    assert (blend_["sampling_ratio"], blend_["pooler_scales"]) == (1, [0.25])
    assert bottom["name"] == "ProtoNet"
    cfg = net.cfg
    assert cfg.levels == len(fcos["in_features"])
    assert (cfg.head_convs, cfg.shared_convs) == (fcos["cls_convs"], fcos["share_convs"])
    assert (cfg.bases, cfg.attention_side) == (blend_["num_bases"], blend_["attention_size"])
    assert (cfg.bottom_convs, cfg.bottom_width) == (bottom["num_convs"], bottom["channels"])
    return net


def dense_stages(net: BlendMask, pyramid: list[Tensor], dense: Dense) -> dict[str, Tensor]:
    maps = net.head.outputs(net.head.hidden(pyramid))
    stages = {
        "bases": dense.bases,
        "semantic_logits": net.semantic(pyramid[0]).roll(1, dims=1),  # their background is first
    }
    for i, level in enumerate(pyramid):
        stages |= {
            f"fpn.p{i + 3}": level,
            f"cls_logits.p{i + 3}": maps["classify"][i],
            f"box_ltrb_over_stride.p{i + 3}": maps["regress"][i].relu(),
            f"centerness_logits.p{i + 3}": maps["centerness"][i],
            f"attention.p{i + 3}": net.attention(dense.hidden[i]),
        }
    return stages


def detection_stages(
    net: BlendMask, images: Tensor, dense: Dense, about: dict[str, Any]
) -> dict[str, Tensor]:
    """What the fixtures store of every image's detections, by their names."""
    raw = net(images)
    found = fcos_detect(dense.output, dense.points, dense.cells, selection_of(about["fcos"]))
    size = (images.shape[-2], images.shape[-1])
    where = ImageSize(original=tuple(about["output_hw"]), content=size, input=size)
    predictions = net.decode(raw, [where] * len(images))
    ends = torch.tensor(dense.cells).cumsum(0)
    rois = rois_of([boxes[valid] for boxes, valid in zip(raw.boxes, raw.valid, strict=True)])
    stages = {
        "roi_bases": pool_bases(dense.bases, rois, net.cfg.mask_side),
        "mask_logits": raw.mask_logits[raw.valid].flatten(1),
    }
    for i, prediction in enumerate(predictions):
        points = found.points[i, found.valid[i]]
        stages |= {
            f"det{i}.boxes": prediction.boxes,
            f"det{i}.score": prediction.scores,
            f"det{i}.class": prediction.labels,
            f"det{i}.locations": dense.points.xy[points],
            f"det{i}.level": torch.searchsorted(ends, points, right=True),
            f"det{i}.masks": between(raw, prediction, where.original, i),
        }
    return stages


def between(raw: Raw, prediction: InstancePrediction, size: Size, image: int) -> Tensor:
    """The masks [N, H, W], 2 where a pixel is at the threshold.

    Outside the picture the bases are 0, so that a mask that leaves it has pixels of exactly 0.5,
    which rounding decides upstream.
    """
    probs = raw.mask_logits[image, raw.valid[image]].sigmoid()
    assert len(probs) == len(prediction)
    low, high = (
        rle.decode(paste_masks(probs, prediction.boxes, size, thresh=0.5 + sign * NEAR))
        for sign in (-1, 1)
    )
    masks = rle.decode(prediction.masks)
    assert ((high <= masks) & (masks <= low)).all()
    return torch.from_numpy(np.where(low != high, 2, masks))


def check_masks(fixture: Fixture, key: str, ours: Tensor) -> None:
    n, height, width = ours.shape
    bits = np.unpackbits(fixture.arrays[key], axis=1)[:, : height * width]
    flat = ours.numpy().reshape(n, -1)
    differ = ((flat != bits) & (flat != 2)).sum(axis=1)
    assert differ.max() <= PIXELS, (fixture.name, key, differ)


def check_all(fixture: Fixture, stages: dict[str, Tensor]) -> None:
    """Every stored array is compared; one that nothing here computes is an error."""
    for key in fixture.arrays:
        prefix = key.rpartition(".")[0]
        if key.endswith("masks_packed"):
            check_masks(fixture, key, stages[f"{prefix}.masks"])
        elif key.endswith("mask_areas"):
            masks = stages[f"{prefix}.masks"]
            fewest, most = (masks == 1).sum(dim=(1, 2)), (masks > 0).sum(dim=(1, 2))
            stored = fixture.tensor(key)
            assert ((fewest - PIXELS <= stored) & (stored <= most + PIXELS)).all()
        else:
            assert key in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
            compare(fixture, key, stages[key])


def run_blender(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    k, m, side = (about[key] for key in ("num_bases", "attention_size", "bottom_resolution"))
    given = {key: fixture.tensor(f"in.{key}") for key in ("bases", "attention", "boxes")}
    index = fixture.tensor("in.image_index")
    rois = torch.cat([index[:, None].float(), given["boxes"]], dim=1)
    pooled = pool_bases(given["bases"], rois, side)
    attention = given["attention"].view(-1, k, m, m)
    logits = blend(pooled, attention, interpolation=about["top_interpolation"])
    stages = {f"in.{key}": value for key, value in given.items()} | {
        "in.image_index": index,
        "roi_bases": pooled,
        "mask_logits": logits,
        "pred_masks": logits.sigmoid(),
    }
    check_all(fixture, stages)


def run_mask_loss(fixture: Fixture) -> None:
    about, given = fixture.meta["configuration"], fixture.meta["input"]
    k, m, side = (about[key] for key in ("num_bases", "attention_size", "bottom_resolution"))
    size = tuple(about["image_hw"])
    count = sum(key.startswith("in.gt") and key.endswith(".boxes") for key in fixture.arrays)
    targets = [mask_target(fixture, i, size) for i in range(count)]
    firsts = torch.tensor([0, *(len(t) for t in targets)]).cumsum(0)
    owner = fixture.tensor("in.gt_index").long()
    images = torch.searchsorted(firsts, owner, right=True) - 1
    found = Positives(images, torch.zeros_like(owner), owner - firsts[images])
    weights = fixture.tensor("in.centerness")
    loss = mask_loss(
        image(*given["bases"]),
        image(*given["attention"]).view(-1, k, m, m),
        found,
        targets,
        weights=weights,
        side=side,
        interpolation=about["top_interpolation"],
    )
    stages = {"in.gt_index": owner, "in.centerness": weights, "loss.mask": loss[None]}
    for i, target in enumerate(targets):
        objects = torch.arange(len(target))
        stages |= {
            f"in.gt{i}.boxes": target.boxes,
            f"in.gt{i}.masks": rle.dense_crops(target.masks),
            f"target{i}.masks": mask_targets(target.masks, target.boxes, objects, side),
        }
    check_all(fixture, stages)


def mask_target(fixture: Fixture, index: int, size: tuple[int, ...]) -> InstanceTarget:
    boxes = fixture.tensor(f"in.gt{index}.boxes")
    bits = np.unpackbits(fixture.arrays[f"in.gt{index}.masks_packed"], axis=1)
    masks = torch.from_numpy(bits[:, : size[0] * size[1]].reshape(-1, *size))
    return InstanceTarget(
        boxes=boxes,
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        masks=rle.crops_from_dense(masks),
        crowd=torch.zeros(len(boxes), dtype=torch.bool),
    )


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "blendmask_": run_blendmask,
    "loss_blendmask": run_mask_loss,
    "post_blender_": run_blender,
}
