"""Runners of the fixtures of YOLACT and YOLACT++, for `test_parity_instance`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.convert.yolact import anchors_last
from pixelwise.nn.deform import DeformConv
from pixelwise.nn.multibox import (
    CROWD_IOA,
    DELTA_WEIGHTS,
    NEGATIVE_IOU,
    NEGATIVES,
    POSITIVE_IOU,
    box_loss,
    class_loss,
    match_targets,
)
from pixelwise.nn.prototypes import mask_loss, sample_masks, semantic_loss
from pixelwise.ops import rle
from pixelwise.ops.boxes import encode_boxes, pairwise_iou
from pixelwise.ops.mask_assembly import assemble_masks, crop_support
from pixelwise.ops.masks import resize_masks
from pixelwise.ops.suppress import (
    fast_nms,
    fast_nms_across_classes,
    largest_better_overlap,
    top_k_nms,
)
from pixelwise.systems.yolact import (
    BOX_WEIGHT,
    IOU_WEIGHT,
    MASK_WEIGHT,
    YOLACT,
    Raw,
    YOLACTConfig,
)
from pixelwise.types import ImageSize, InstanceTarget
from tests.convert.parity import convert
from tests.convert.parity_fcis import compare
from tests.fixtures import Fixture, fill, image

PIXELS = 4  # per mask of 120 x 160 that rounding may move over the threshold


@torch.no_grad()
def run_authors(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    side = about["input_size"]
    net = converted(fixture, "yolact", authors_settings(about))
    assert net.cfg.num_classes == about["num_classes_with_background"] - 1
    assert net.cfg.with_rescoring == about["mask_rescoring"]
    images = fixture.inputs()[""]
    assert tuple(images.shape[-2:]) == (side, side)
    raw = net(images)
    stages = dense_stages(net, images) | detection_stages(net, raw, about, (side, side))
    for i in range(len(raw.boxes)):
        match_rows(fixture, stages, f"det{i}.", label="class")
    check_all(fixture, stages)


def converted(fixture: Fixture, origin: str, settings: dict[str, Any]) -> YOLACT:
    meta = {**fixture.meta, "parameters": fixture.meta["parameter_count"]}
    net = convert(replace(fixture, meta=meta), origin, "yolact", **settings).system
    assert isinstance(net, YOLACT)
    return net


def authors_settings(about: dict[str, Any]) -> dict[str, Any]:
    """What shapes cannot tell; the fixture's ratios are widths over heights."""
    nms, anchors = about["nms"], about["anchors"]
    assert nms["kind"] == "fast nms per class"
    return anchor_settings(anchors["scales"], anchors["ratios"], square=anchors["square"]) | {
        "iou_thresh": nms["iou"],
        "pre_nms": nms["top_k"],
        "score_thresh": nms["score_threshold"],
        "detections_per_image": nms["max_detections"],
    }


def anchor_settings(
    scales: list[list[float]], ratios: list[float], *, square: bool
) -> dict[str, Any]:
    count = len(scales[0])
    for level in scales:
        np.testing.assert_allclose(level, level[0] * 2 ** (np.arange(count) / count), rtol=1e-6)
    return {
        "anchor_sizes": tuple(level[0] for level in scales),
        "scales_per_octave": count,
        "anchor_ratios": tuple(1 / ratio for ratio in ratios),
        "square_anchors": square,
    }


def dense_stages(net: YOLACT, images: Tensor) -> dict[str, Tensor]:
    size = (images.shape[-2], images.shape[-1])
    features = net.backbone(images)
    pyramid = net.neck(features)
    dense = net.predict(pyramid)
    logits = net.protonet.logits(pyramid[0])
    return {
        **{f"backbone.C{i}": x for i, x in enumerate(features, start=3)},
        **{f"fpn.P{i}": x for i, x in enumerate(pyramid, start=3)},
        "proto_before_relu": logits,
        "prototypes": channels_last(F.relu(logits)),
        "semantic_seg": net.semantic(pyramid[0]),
        "loc": dense.deltas,
        "conf_logits": dense.logits.roll(1, dims=-1),  # their class 0 is the background
        "mask_coefficients": dense.coefficients,
        "priors": relative_centres(net.place_anchors(pyramid, size), size),
    }


def channels_last(prototypes: Tensor) -> Tensor:
    """Upstream drops the dimension of a single image."""
    moved = prototypes.permute(0, 2, 3, 1)
    return moved[0] if len(moved) == 1 else moved


def relative_centres(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """xyxy in pixels → centre and extent, in units of the image."""
    scale = boxes.new_tensor([size[1], size[0]])
    low, high = boxes[:, :2] / scale, boxes[:, 2:] / scale
    return torch.cat([(low + high) / 2, high - low], dim=1)


def absolute_corners(priors: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `relative_centres`."""
    scale = priors.new_tensor([size[1], size[0]]).repeat(2)
    half = priors[:, 2:] / 2
    return torch.cat([priors[:, :2] - half, priors[:, :2] + half], dim=1) * scale


def detection_stages(
    net: YOLACT, raw: Raw, about: dict[str, Any], size: tuple[int, int]
) -> dict[str, Tensor]:
    """What the fixtures store of every image's detections, by their names."""
    original = tuple(about["mask_output_size_hw"])
    scale = torch.tensor([size[1], size[0]]).repeat(2)
    stages: dict[str, Tensor] = {}
    for i, prototypes in enumerate(raw.prototypes):
        valid = raw.valid[i]
        relative = raw.boxes[i, valid] / scale
        coefficients = raw.coefficients[i, valid]
        cells = relative * torch.tensor(prototypes.shape[:0:-1]).repeat(2)
        soft = assemble_masks(prototypes, coefficients, cells, with_crop=False)
        cropped = assemble_masks(prototypes, coefficients, cells)
        where = ImageSize(original=original, content=size, input=size)
        masks = torch.from_numpy(rle.decode(resize_masks(cropped, where, thresh=0.5)))
        stages |= {
            f"det{i}.boxes_relative": relative,
            f"det{i}.class": raw.labels[i, valid],
            f"det{i}.score": raw.scores[i, valid],
            f"det{i}.coefficients": coefficients,
            f"det{i}.masks_soft": soft,
            f"det{i}.masks_soft_cropped": cropped,
            f"det{i}.boxes_pixels": whole_pixels(relative, original),
            f"det{i}.masks": masks,
        }
        if net.rescoring is not None:
            stages[f"det{i}.maskiou_all_classes"] = net.rescoring(cropped)
            stages[f"det{i}.mask_score"] = raw.mask_scores[i, valid]
    return stages


def whole_pixels(relative: Tensor, size: tuple[int, ...]) -> Tensor:
    """Sorted corners, clipped to the picture, truncated."""
    boxes = relative * torch.tensor([size[1], size[0]]).repeat(2)
    low = torch.minimum(boxes[:, :2], boxes[:, 2:]).clamp(min=0)
    high = torch.maximum(boxes[:, :2], boxes[:, 2:]).minimum(torch.tensor([size[1], size[0]]))
    return torch.cat([low, high], dim=1).trunc()


def match_rows(fixture: Fixture, stages: dict[str, Tensor], prefix: str, *, label: str) -> None:
    """Bring our rows into the fixture's order; equal scores may have another one."""
    labels, scores = fixture.tensor(f"{prefix}{label}"), fixture.tensor(f"{prefix}score")
    ours = stages[f"{prefix}score"]
    assert len(ours) == len(scores), (fixture.name, prefix, len(ours), len(scores))
    far = (ours[None] - scores[:, None]).abs()  # [theirs, ours]
    far = far + 10 * (labels[:, None] != stages[f"{prefix}{label}"][None])
    order = far.argmin(dim=1)
    assert sorted(order.tolist()) == list(range(len(ours))), "detections differ"
    for key in [key for key in stages if key.startswith(prefix)]:
        stages[key] = stages[key][order]


def check_all(fixture: Fixture, stages: dict[str, Tensor]) -> None:
    """Every stored array is compared; one that nothing here computes is an error."""
    for key in fixture.arrays:
        prefix = key.rpartition(".")[0]
        if key.endswith("masks_packed"):
            check_masks(fixture, key, stages[f"{prefix}.masks"])
        elif key.endswith("mask_areas"):
            areas = stages[f"{prefix}.masks"].sum(dim=(1, 2))
            assert (areas - fixture.tensor(key)).abs().max() <= PIXELS
        elif key.endswith("boxes_pixels"):
            assert (stages[key] - fixture.tensor(key)).abs().max() <= 1  # at a whole pixel
        else:
            assert key in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
            compare(fixture, key, stages[key])


def check_masks(fixture: Fixture, key: str, ours: Tensor) -> None:
    n, height, width = ours.shape
    bits = np.unpackbits(fixture.arrays[key], axis=1)[:, : height * width]
    differ = (ours.numpy().reshape(n, -1) != bits).sum(axis=1)
    assert differ.max() <= PIXELS, (fixture.name, key, differ)


@torch.no_grad()
def run_mmdet(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    nms = about["nms"]
    net = converted(
        fixture,
        "mmdet",
        {
            "score_thresh": nms["score_threshold"],
            "iou_thresh": nms["iou"],
            "pre_nms": nms["top_k"],
            "detections_per_image": nms["max_detections"],
        },
    )
    net.rules = replace(net.rules, per_level=nms["nms_pre"])
    images = fixture.inputs()[""]
    size = (images.shape[-2], images.shape[-1])
    features = net.backbone(images)
    pyramid = net.neck(features)
    stages = {
        "backbone.C2": net.backbone.layer1(net.backbone.pool(net.backbone.stem(images))),
        **{f"backbone.C{i}": x for i, x in enumerate(features, start=3)},
        **{f"fpn.P{i}": x for i, x in enumerate(pyramid, start=3)},
        **head_maps(net.head(pyramid), net.cfg.anchors_per_cell),
        "prototypes": net.protonet(pyramid[0]),
        "semantic_seg": net.semantic(pyramid[0]),
        "anchors": net.place_anchors(pyramid, size),
    }
    original = tuple(about["original_shape_hw"])
    sizes = [ImageSize(original=original, content=size, input=size)] * len(images)
    for i, found in enumerate(net.decode(net(images), sizes)):
        stages |= {
            f"det{i}.boxes": found.boxes,
            f"det{i}.label": found.labels,
            f"det{i}.score": found.scores,
            f"det{i}.masks": torch.from_numpy(rle.decode(found.masks)),
        }
        match_rows(fixture, stages, f"det{i}.", label="label")
    check_all(fixture, stages)


def head_maps(maps: dict[str, list[Tensor]], per_cell: int) -> dict[str, Tensor]:
    """The head's maps with all numbers of an anchor together."""
    names = {"classify": "cls", "regress": "reg", "coefficients": "coeff"}
    stages: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        for i, level in enumerate(maps[ours], start=3):
            back = torch.tensor(anchors_last(per_cell)(level.shape[1])).argsort()
            moved = level[:, back]
            stages[f"{theirs}.P{i}"] = moved.tanh() if theirs == "coeff" else moved
    return stages


def run_losses(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    alphas, side = about["alphas"], about["image_size"]
    assert (
        about["positive_iou"],
        about["negative_iou"],
        about["crowd_iou"],
    ) == (POSITIVE_IOU, NEGATIVE_IOU, CROWD_IOA)
    assert about["ohem_ratio"] == NEGATIVES
    assert (alphas["box"], alphas["mask"]) == (BOX_WEIGHT, MASK_WEIGHT)
    net = YOLACT(
        YOLACTConfig(
            num_classes=about["classes_with_background"] - 1,
            backbone="resnet18",
            channels=8,
            prototypes=about["prototypes"],
            with_rescoring=alphas["maskiou"] is not None,
            **anchor_settings(
                about["anchor_scales_pixels"], about["ratios"], square=about["square_anchors"]
            ),
        )
    )
    levels = [torch.zeros(1, 1, n, n) for n in about["level_sizes"]]
    compare(
        fixture, "priors", relative_centres(net.place_anchors(levels, (side, side)), (side,) * 2)
    )
    anchors = absolute_corners(fixture.tensor("priors"), (side, side))
    given = {
        name: image(shape, seed) * factor
        for name, (shape, seed, factor, *_) in fixture.meta["input"]["tensors"].items()
    }
    targets = [
        loss_target(fixture, i, crowds)
        for i, crowds in enumerate(about["num_crowds_at_end_of_targets"])
    ]
    matches = match_targets(anchors, targets)
    check_targets(fixture, anchors, matches, targets)
    masks = sample_masks(
        given["prototypes"].permute(0, 3, 1, 2).relu(),
        given["mask_coefficients"].tanh(),
        matches,
        targets,
        size=(side, side),
        limit=net.cfg.masks_per_image,
    )
    positives = (matches >= 0).sum()
    deltas, logits = given["loc"], given["conf_logits"].roll(-1, dims=-1)
    losses = {
        "B": BOX_WEIGHT * box_loss(deltas, anchors, matches, targets) / positives,
        "C": class_loss(logits, matches, targets) / positives,
        "M": MASK_WEIGHT * mask_loss(masks) / positives,
        "S": semantic_loss(given["semantic_logits"], targets, (side, side)),
    }
    if net.rescoring is not None:
        assert alphas["maskiou"] == IOU_WEIGHT
        fill_rescoring(net)
        losses["I"] = IOU_WEIGHT * net.rescoring.loss(masks) / positives
    assert set(losses) == set(fixture.meta["losses"])
    for key, value in losses.items():
        compare(fixture, f"loss.{key}", value.detach()[None])


def fill_rescoring(net: YOLACT) -> None:
    """The fixture's weights, under the names that its notes give."""
    assert net.rescoring is not None
    convs = [*(block.conv for block in net.rescoring.convs), net.rescoring.classify]
    with torch.no_grad():
        for i, conv in enumerate(convs):
            for part in ("weight", "bias"):
                value = getattr(conv, part)
                value.copy_(fill(f"maskiou_net.{2 * i}.{part}", tuple(value.shape)))


def loss_target(fixture: Fixture, index: int, crowds: int) -> InstanceTarget:
    side = fixture.meta["configuration"]["image_size"]
    rows = fixture.tensor(f"in.gt{index}.boxes_class")
    bits = np.unpackbits(fixture.arrays[f"in.gt{index}.masks_packed"], axis=1)
    dense = torch.from_numpy(bits[:, : side * side].reshape(-1, side, side))
    return InstanceTarget(
        boxes=rows[:, :4] * side,
        labels=rows[:, 4].long(),
        masks=rle.crops_from_dense(dense),
        crowd=torch.arange(len(rows)) >= len(rows) - crowds,
    )


def check_targets(
    fixture: Fixture, anchors: Tensor, matches: Tensor, targets: list[InstanceTarget]
) -> None:
    """All anchors: those that are no positives are told which object they overlap most."""
    for i, (match, target) in enumerate(zip(matches, targets, strict=True)):
        objects = ~target.crowd
        best = pairwise_iou(target.boxes[objects], anchors).argmax(dim=0)
        index = torch.where(match >= 0, match, best)
        labels = torch.where(match >= 0, target.labels[match.clamp(min=0)] + 1, match + 1)
        compare(fixture, f"target{i}.class", labels)
        compare(fixture, f"target{i}.gt_index", index)
        deltas = encode_boxes(anchors, target.boxes[index], DELTA_WEIGHTS)
        compare(fixture, f"target{i}.loc", deltas)


def run_assembly(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    prototypes = fixture.tensor("in.prototypes").permute(2, 0, 1)
    cells = tuple(about["prototype_hw"])
    relative, original = fixture.tensor("in.boxes"), tuple(about["output_hw"])
    boxes = relative * torch.tensor(cells[::-1]).repeat(2)
    coefficients = fixture.tensor("in.coefficients")
    cropped = assemble_masks(prototypes, coefficients, boxes)
    # The network input is not part of this fixture; any size that the prototypes divide will do.
    size = ImageSize(original=original, content=cells, input=cells)
    masks = resize_masks(cropped, size, thresh=0.5)
    given = {key: fixture.tensor(key) for key in fixture.arrays if key.startswith("in.")}
    stages = given | {
        "masks_soft": assemble_masks(prototypes, coefficients, boxes, with_crop=False),
        "masks_cropped": cropped,
        "crop_support": crop_support(boxes, cells),
        "masks_upsampled": F.interpolate(cropped[None], original, mode="bilinear")[0],
        "out.masks": torch.from_numpy(rle.decode(masks)),
        "out.boxes_pixels": whole_pixels(relative, original),
    }
    check_all(fixture, stages)


def run_fast_nms(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    boxes, scores = fixture.tensor("in.boxes"), fixture.tensor("in.scores").T
    coefficients = fixture.tensor("in.coefficients")
    how = {
        "iou_thresh": about["iou_threshold"],
        "top_k": about["top_k"],
        "count": about["max_detections"],
    }
    index = scores.T.topk(min(about["top_k"], len(boxes)), dim=1).indices  # [K, T]
    overlap = largest_better_overlap(boxes[index])
    stages = {key: fixture.tensor(key) for key in fixture.arrays if key.startswith("in.")} | {
        "sorted_index": index,
        "iou_matrix_class0": pairwise_iou(boxes[index[0]], boxes[index[0]]),
        "column_max": overlap,
        "fast_keep": overlap <= about["iou_threshold"],
        "greedy_keep": kept_ranks(top_k_nms(boxes, scores, **{**how, "count": 10**6}), index),
    }
    found = {
        "per_class": fast_nms(boxes, scores, **how),
        # Upstream limits the candidates of the cross-class form, not its detections.
        "cross_class": fast_nms_across_classes(boxes, scores, **{**how, "count": about["top_k"]}),
    }
    for name, result in found.items():
        where, labels, values = (x[result[2] >= 0] for x in result)
        stages |= {
            f"{name}.boxes": boxes[where],
            f"{name}.coefficients": coefficients[where],
            f"{name}.class": labels,
            f"{name}.score": values,
        }
    for key in ("in.boxes", "in.scores"):
        assert key in fixture.arrays
    check_all(fixture, stages)


def kept_ranks(found: tuple[Tensor, Tensor, Tensor], index: Tensor) -> Tensor:
    """[K, T] bool: which of the ranked candidates of each class are among the detections."""
    where, labels, values = found
    kept = torch.zeros_like(index, dtype=torch.bool)
    for position, label in zip(where[values >= 0], labels[values >= 0], strict=True):
        kept[label] |= index[label] == position
    return kept


@torch.no_grad()
def run_deform_conv(fixture: Fixture) -> None:
    about, given = fixture.meta["configuration"], fixture.meta["input"]
    shapes = {key: value[0] for key, value in given.items() if isinstance(value, list)}
    out_channels, in_channels, kernel, _ = shapes["weight"]
    conv = DeformConv(
        in_channels, out_channels, kernel, stride=about["stride"], groups=about["deformable_groups"]
    )
    assert conv.padding == about["padding"]
    filled = {
        "weight": conv.weight,
        "bias": conv.bias,
        "offset_mask_weight": conv.offset_mask.weight,
        "offset_mask_bias": conv.offset_mask.bias,
    }
    for name, parameter in filled.items():
        shape, seed, factor = given[name]
        parameter.copy_(image(shape, seed) * number(factor, in_channels))
    shape, seed, factor = given["x"]
    x = image(shape, seed) * factor
    offsets, weights = conv.taps(x)
    compare(fixture, "offsets", offsets)
    compare(fixture, "modulation", weights)
    compare(fixture, "out", conv(x))
    compare(fixture, "out", conv.sample(x, offsets, weights))


def number(factor: float | str, in_channels: int) -> float:
    """A factor as the json has it: a number, or "a / sqrt(b * in_channels)"."""
    if isinstance(factor, int | float):
        return float(factor)
    top, _, rest = factor.partition(" / sqrt(")
    return float(top) / (float(rest.split(" *")[0]) * in_channels) ** 0.5


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "yolact": run_authors,
    "mmdet_yolact_": run_mmdet,
    "loss_yolact": run_losses,
    "post_yolact_assembly": run_assembly,
    "post_fast_nms": run_fast_nms,
    "op_deform_conv": run_deform_conv,
}
