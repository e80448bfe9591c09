"""Runners of the fixtures of FCIS and R-FCN, for `test_parity_instance`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.nn.score_maps import PartGrid
from pixelwise.ops.mask_voting import cast_votes, vote_masks, vote_weights
from pixelwise.ops.position_sensitive import assemble, class_scores, mask_logits
from pixelwise.ops.suppress import classwise_nms
from pixelwise.systems.fcis import FCIS
from tests.fixtures import Fixture, fill_state

TOLERANCE = 1e-4  # of the stored maximum


def compare(fixture: Fixture, key: str, ours: Tensor) -> None:
    """max|difference| <= 1e-4 max|stored|."""
    stored = fixture.arrays[key].astype(np.float64)
    scale = np.abs(stored).max() / (stored.std() or np.abs(stored).max() or 1.0)
    fixture.compare(key, ours, rtol=TOLERANCE * scale)


def half_open(boxes: Tensor) -> Tensor:
    """The fixtures' last pixel is inside a box; ours end after it."""
    return boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])


def with_index(boxes: Tensor) -> Tensor:
    return torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)  # [R, 5]


def drawn_maps(fixture: Fixture, channels: int) -> tuple[Tensor, Tensor]:
    """The maps that the fixture's words describe, classes and boxes."""
    about = fixture.meta["configuration"]
    k, size = about["k"], about["feature"]
    generator = np.random.Generator(np.random.PCG64(about["seed"]))
    drawn = [
        torch.from_numpy(generator.standard_normal((count, *size)).astype(np.float32))[None]
        for count in (channels * k * k, 4 * k * k)
    ]
    check = fixture.meta["inputs_check"]
    for maps, key in zip(drawn, (next(iter(check)), "box_first3"), strict=True):
        torch.testing.assert_close(maps.flatten()[:3], torch.tensor(check[key]))
    return drawn[0], drawn[1]


def run_assemble(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    classes, boxes = drawn_maps(fixture, 2 * (about["classes"] + 1))
    rois = with_index(half_open(fixture.tensor("rois")))
    how = {"parts": about["k"], "side": about["output_size"], "scale": about["spatial_scale"]}
    stages = {"rois": fixture.tensor("rois"), "cls_seg_maps": classes[0]}
    for mode in ("copy", "pool"):
        assembled = assemble(classes, rois, mode, **how)
        pairs = assembled.unflatten(1, (-1, 2))  # [R, C + 1, 2, S, S]
        logits = class_scores(pairs)
        labels = logits[:, 1:].argmax(dim=1) + 1
        every = torch.stack(
            [mask_logits(pairs, torch.full_like(labels, c)) for c in range(logits.shape[1])], dim=1
        )
        stages |= {
            f"{mode}_assembled": assembled,
            f"{mode}_mask_prob": every.sigmoid(),
            f"{mode}_class_score": logits,
            f"{mode}_class_prob": logits.softmax(dim=1),
            f"{mode}_label": labels,
            f"{mode}_picked_mask": mask_logits(pairs, labels).sigmoid(),
            f"{mode}_box_deltas": assemble(boxes, rois, mode, **how).mean(dim=(2, 3)),
        }
    check_all(fixture, stages)


def run_psroi(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    classes, boxes = drawn_maps(fixture, about["classes"] + 1)
    how = {"parts": about["k"], "side": about["k"], "scale": about["spatial_scale"]}
    stored = fixture.tensor("rois")
    rois = with_index(half_open(stored))
    pooled = assemble(classes, rois, "pool", **how)
    logits = class_scores(pooled[:, :, None])
    stages = {
        "rois": stored,
        "pooled": pooled,
        "class_score": logits,
        "class_prob": logits.softmax(dim=1),
        "box_deltas": assemble(boxes, rois, "pool", **how).mean(dim=(2, 3)),
        # torchvision's operators were given the corners as they are.
        "torchvision_ps_roi_pool": assemble(classes, with_index(stored), "rounded", **how),
        "torchvision_ps_roi_align": assemble(classes, with_index(stored), "align", **how),
    }
    check_all(fixture, stages)


def check_all(fixture: Fixture, stages: dict[str, Tensor]) -> None:
    """Every stored array is compared; one that nothing here computes is an error."""
    for key in fixture.arrays:
        assert key in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
        compare(fixture, key, stages[key])


def run_voting(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    boxes, masks = half_open(fixture.tensor("boxes")), fixture.tensor("masks")
    scores = fixture.tensor("scores")[:, 1:]  # class 0 is the background
    size = tuple(about["image"])
    kept, labels, best = classwise_nms(
        boxes,
        scores,
        score_thresh=1e-3,
        iou_thresh=about["nms_threshold"],
        count=about["max_per_image"],
    )
    order = labels.argsort(stable=True)  # the fixture's detections come class by class
    kept, labels, best = kept[order], labels[order], best[order]
    weights = vote_weights(boxes, scores, kept, labels, iou_thresh=about["merge_threshold"])
    how = {"size": size, "thresh": about["binary_threshold"]}
    windows = vote_masks(masks, boxes, weights, **how).windows
    # Upstream puts a detection without a pixel on the one in the middle of the picture.
    middle = np.array([-(-size[1] // 2), -(-size[0] // 2)])
    windows[windows[:, 2] == 0] = [*middle, *middle + 1]
    votes = torch.stack(
        [
            F.interpolate(crop[None, None], (about["mask_size"],) * 2, mode="bilinear")[0, 0]
            for crop in vote_crops(masks, boxes, weights, windows, **how)
        ]
    )
    last = torch.from_numpy(windows - [0, 0, 1, 1]).float()
    stages = {
        "out_class": labels + 1,
        "out_boxes_scores": torch.cat([last, best[:, None]], dim=1),
        "out_masks": votes,
    }
    given = {key: fixture.tensor(key) for key in ("boxes", "masks", "scores")}
    check_all(fixture, given | stages)


def vote_crops(masks, boxes, weights, windows, **how) -> list[Tensor]:
    """The sums of weights inside each detection's own box, [h, w] each."""
    crops: list[Tensor] = []
    for votes in cast_votes(masks, boxes, weights, **how):
        sides = votes.windows[:, 2:] - votes.windows[:, :2]
        parts = np.split(votes.pixels, np.cumsum(sides.prod(axis=1))[:-1])
        for (x0, y0, x1, y1), pixels in zip(votes.windows, parts, strict=True):
            picture = np.zeros(how["size"], np.float32)
            picture[y0:y1, x0:x1] = pixels.reshape(x1 - x0, y1 - y0).T
            a0, b0, a1, b1 = windows[len(crops)]
            crops.append(torch.from_numpy(picture[b0:b1, a0:a1]))
    return crops


@torch.no_grad()
def run_network(fixture: Fixture) -> None:
    about = fixture.meta["configuration"]
    net = convert(fixture)
    image = fixture.inputs()[""]
    size = (image.shape[-2], image.shape[-1])
    (pool1,) = [net.backbone.pool(net.backbone.stem(image))]
    conv4, conv5 = net.backbone(image)
    hidden = net.rpn.convs(conv4)
    maps = net.score_maps(conv5)
    stages = {
        "proposals": fixture.tensor("proposals"),
        "pool1": pool1,
        "conv4": conv4,
        "conv5": conv5,
        "reduced": net.score_maps.reduce(conv5),
        "rpn_cls_score": net.rpn.objectness(hidden),
        "rpn_bbox_pred": net.rpn.deltas(hidden),
        "rpn_prob": two_way(net.rpn.predict([conv4]).logits[0]),
        "cls_seg_maps": background_first(maps.classes, 2 * about["k"] ** 2),
        "box_maps": maps.boxes,
    }
    for mode in ("pool", "copy"):
        net.score_maps.grid = PartGrid(
            parts=about["k"], side=about["output_size"], stride=16, mode=mode
        )
        first = region_stages(net, maps, half_open(fixture.tensor("proposals")))
        moved = half_open(fixture.tensor(f"{mode}_rois_iter2"))
        second = region_stages(net, maps, moved)
        refined = net.score_maps.refine(
            half_open(fixture.tensor("proposals")), first["box_pred"][:, -4:], size
        )
        stages |= {
            f"{mode}_{n}_{key}": both[key]
            for n, both in (("iter1", first), ("iter2", second))
            for key in ("cls_score", "box_pred", "picked_mask")
        }
        logits = torch.cat([first["cls_score"], second["cls_score"]])
        stages |= {
            f"{mode}_assembled_cls_seg": first["assembled"],
            f"{mode}_cls_prob_both": logits.softmax(dim=1),
            f"{mode}_rois_iter2": refined - refined.new_tensor([0.0, 0.0, 1.0, 1.0]),
        }
    check_all(fixture, stages)


def convert(fixture: Fixture) -> FCIS:
    """The converted network; nothing may be lost on the way, nor on the way back."""
    about, state = fixture.meta["configuration"], fill_state(fixture.meta)
    net = import_checkpoint(
        state,
        origin="fcis",
        name="fcis",
        mask_side=about["output_size"],
        anchor_sizes=tuple(16 * scale for scale in about["anchor_scales"]),
    ).system
    assert isinstance(net, FCIS)
    assert net.cfg.box_blocks == about["box_blocks"]
    assert net.cfg.num_classes == about["num_classes_including_background"] - 1
    assert net.cfg.parts == about["k"]
    assert net.rpn.anchors.per_cell == about["anchors"]
    assert [1 / w for w in net.score_maps.weights] == about["box_stds"]
    frozen = [m for m in net.modules() if isinstance(m, FrozenBatchNorm)]
    affine = sum(m.weight.numel() + m.bias.numel() for m in frozen)
    assert sum(p.numel() for p in net.parameters()) + affine == fixture.meta["parameters"]
    rules = origins("fcis")["fcis"].rules
    back = invert(rules(net.cfg) if callable(rules) else rules, net.state_dict())
    assert set(back) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    return net


def region_stages(net: FCIS, maps, boxes: Tensor) -> dict[str, Tensor]:
    """What the fixture stores of each pass over the regions, background first."""
    rois = with_index(boxes)
    output = net.score_maps.predict(maps, rois)
    best = output.logits[:, :-1].argmax(dim=1)
    return {
        "assembled": background_first(output.pairs.flatten(1, 2), 2),
        "cls_score": background_first(output.logits, 1),
        "box_pred": net.score_maps.grid.reader(maps.boxes)(rois).mean(dim=(2, 3)),
        "picked_mask": mask_logits(output.pairs, best).sigmoid(),
    }


def background_first(values: Tensor, count: int) -> Tensor:
    """Move the last `count` channels to the front."""
    return values.roll(count, dims=1)


def two_way(logits: Tensor) -> Tensor:
    """Probabilities of the background of all anchors, then of the objects."""
    return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "fcis_assemble_": run_assemble,
    "fcis_mask_voting": run_voting,
    "fcis_r": run_network,
    "rfcn_psroi_": run_psroi,
}
