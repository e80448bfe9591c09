"""Regions: the boxes that the second stage of a detector looks at, in training and at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pixelwise.nn.conventions import Conventions
from pixelwise.nn.exporting import is_exporting
from pixelwise.ops.boxes import pairwise_ioa, pairwise_iou
from pixelwise.ops.masks import mask_targets
from pixelwise.ops.matching import BACKGROUND, IGNORED, match_boxes
from pixelwise.ops.roi import pool_levels, rois_of
from pixelwise.ops.sampling import sample_balanced
from pixelwise.types import InstanceTarget, MaskCrops

# A box covered by more than this share of a crowd region is no evidence of background.
# Source: Detectron, TRAIN.CROWD_FILTER_THRESH.
CROWD_COVER = 0.7
FOREGROUND_IOU = 0.5  # Fast R-CNN (arXiv:1504.08083), section 2.3
UNCOUNTED = -1  # label of a region that no loss counts
# Regions that pass a head at once at inference: a mask head holds about 1 MB for each. A GPU has
# more memory, and each part costs it a wait.
REGIONS_AT_ONCE, REGIONS_AT_ONCE_ON_GPU = 128, 1024


class Proposals(NamedTuple):
    """Boxes that may hold an object, the same number for every image.

    boxes: [B, N, 4] xyxy in network-input pixels; zeros where not valid. Best first.
    logits: [B, N] objectness before the sigmoid.
    valid: [B, N] bool.
    """

    boxes: Tensor
    logits: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class Regions:
    """R boxes over the batch with what each of them should learn.

    Args:
        rois:     [R, 5] image index and xyxy in network-input pixels.
        labels:   [R] int64: 0..K-1 object, K background, `UNCOUNTED`.
        gt_boxes: [R, 4] xyxy of the matched object; arbitrary where there is none.
        gt_index: [R] int64 position of the matched object in `masks`; likewise.
        masks:    the masks of all images, one after another.
        num_classes: K.
    """

    rois: Tensor
    labels: Tensor
    gt_boxes: Tensor
    gt_index: Tensor
    masks: MaskCrops
    num_classes: int

    @cached_property
    def is_object(self) -> Tensor:
        """[R] bool, where a region is matched to an object."""
        return (self.labels >= 0) & (self.labels < self.num_classes)

    @cached_property
    def objects(self) -> Tensor:
        """[F] int64, positions of the regions matched to an object."""
        return self.is_object.nonzero()[:, 0]  # a GPU waits here, once

    def select(self, index: Tensor) -> Regions:
        """The regions at these positions (or where True)."""
        return Regions(
            self.rois[index],
            self.labels[index],
            self.gt_boxes[index],
            self.gt_index[index],
            self.masks,
            self.num_classes,
        )

    def foreground(self) -> Regions:
        """The regions matched to an object; one unmatched region where there is none at all.

        That one keeps the mask head in the graph (and its batch norm fed); it is no object, so its
        mask counts for nothing.
        """
        inside = self.objects
        return self.select(inside if len(inside) else inside.new_zeros(1))

    def object_masks(
        self, side: int, *, mode: Literal["bitmap", "torchvision"] = "bitmap"
    ) -> Tensor:
        """The matched objects' masks inside each region, see `mask_targets`.

        Returns:
            [R, side, side] in [0, 1]; 0 where there is no object.
        """
        inside = self.objects  # [F]
        masks = torch.zeros(len(self.labels), side, side, device=inside.device)
        if len(inside):
            masks[inside] = mask_targets(
                self.masks, self.rois[inside, 1:], self.gt_index[inside], side, mode=mode
            )
        return masks


@dataclass(frozen=True, kw_only=True)
class RegionPool:
    """RoIAlign from the level of a pyramid that suits the size of each region.

    Args:
        side:        height and width of the result, cells.
        strides:     input pixels per cell of each level, finest first.
        conventions: how samples are placed.

    Source:  Mask R-CNN (arXiv:1703.06870), section 3; FPN (arXiv:1612.03144), eq. 1.
    """

    side: int
    strides: tuple[int, ...]
    conventions: Conventions

    def __call__(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pool [R, 5] regions from levels of [B, C, h, w]: [R, C, side, side], in input order."""
        rules = self.conventions
        pooled = pool_levels(
            # Half precision would round the corners of regions to whole pixels and worse.
            [level.float() for level in pyramid[: len(self.strides)]],
            rois,
            self.side,
            strides=self.strides,
            sampling=rules.roi_sampling,
            aligned=rules.roi_aligned,
            rule=rules.level_rule,
        )
        return pooled.to(pyramid[0].dtype)


def on_regions(
    run: Callable[..., Sequence[Tensor]], boxes: Tensor, valid: Tensor, *more: Tensor
) -> list[Tensor]:
    """Run a head on the regions that count, some at a time, and put the results in their places.

    Args:
        run:   regions [S, 5] and `more` values [S] of each → any number of [S, ...].
        boxes: [B, N, 4] xyxy in network-input pixels.
        valid: [B, N] bool, the regions that count.
        more:  [B, N] each.

    Returns:
        for each result of `run`, [B, N, ...] with zeros where not valid.
    """
    batch, count = valid.shape
    image = torch.arange(batch, device=boxes.device, dtype=boxes.dtype)
    image = image[:, None, None].expand(-1, count, 1)  # [B, N, 1]
    inputs = [torch.cat([image, boxes], dim=2), *more]
    inputs = [x.flatten(0, 1) for x in inputs]  # [B * N, 5], then [B * N] each
    if is_exporting():  # all of them: an exported graph has fixed sizes
        rows = [x.unflatten(0, (batch, count)) for x in run(*inputs)]
        return [torch.where(valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)), x, 0) for x in rows]
    index = valid.flatten().nonzero()[:, 0]
    some = index if len(index) else index.new_zeros(1)  # one at least, to learn the shapes
    at_once = REGIONS_AT_ONCE if boxes.device.type == "cpu" else REGIONS_AT_ONCE_ON_GPU
    parts = [run(*(x[part] for x in inputs)) for part in some.split(at_once)]
    return [
        x.new_zeros(batch * count, *x.shape[1:])
        .index_copy(0, index, x[: len(index)])
        .unflatten(0, (batch, count))
        for x in (torch.cat(rows) for rows in zip(*parts, strict=True))
    ]


def best_first(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest scores of each row with their positions; ties go to the lower position.

    Args:
        scores: [B, N].
        count:  at most N.

    Returns:
        values [B, count] and positions [B, count] int64.
    """
    if is_exporting():
        # ONNX defines TopK with just this rule for ties, and has no stable sort.
        values, index = scores.topk(count, dim=1)
        return values, index
    values, index = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :count], index[:, :count]


def usable_objects(target: InstanceTarget) -> Tensor:
    """[G] int64, positions of the objects to learn from."""
    return target.usable.nonzero()[:, 0]


def match_objects(
    boxes: Tensor,
    target: InstanceTarget,
    *,
    high: float,
    low: float,
    min_low_quality: float | None = None,
    low_quality_to: Literal["most", "last"] = "most",
) -> Tensor:
    """Say for each box which object it stands for.

    A crowd is never matched, and a box that mostly lies in one is ignored, not called background.

    Args:
        boxes:  [A, 4] xyxy.
        target: the objects of the image.
        high:   IoU from which a box is positive.
        low:    IoU below which a box is background; between them it is ignored. Above 0.
        min_low_quality: make the best boxes of each object positive from this IoU on; None: do not.
        low_quality_to: whose they are then, see `match_boxes`.

    Returns:
        [A] int64: position in `target`, `BACKGROUND` or `IGNORED`.

    Source:  Faster R-CNN (arXiv:1506.01497), section 3.1.2; crowds as in Detectron.
    """
    # What is not learnt from keeps its place, but without area: so it overlaps nothing.
    objects = target.boxes.masked_fill(~target.usable[:, None], 0.0)  # [N, 4]
    matches = match_boxes(
        pairwise_iou(objects, boxes),
        high=high,
        low=low,
        allow_low_quality=min_low_quality is not None,
        min_low_quality=min_low_quality or 0.0,
        low_quality_to=low_quality_to,
    )  # [A]
    if target.has_crowd:
        covered = pairwise_ioa(boxes, target.boxes[target.crowd]).amax(dim=1)  # [A]
        matches = matches.masked_fill((matches == BACKGROUND) & (covered > CROWD_COVER), IGNORED)
    return matches


def join_masks(targets: Sequence[InstanceTarget]) -> MaskCrops:
    """The masks of several images as one container; windows stay in each image's own pixels."""
    height = max(target.size[0] for target in targets)
    width = max(target.size[1] for target in targets)
    return MaskCrops(
        (height, width),
        torch.cat([target.masks.windows for target in targets]),
        torch.cat([target.masks.pixels for target in targets]),
    )


def sample_regions(
    proposals: Proposals,
    targets: Sequence[InstanceTarget],
    *,
    count: int = 512,
    positive_frac: float = 0.25,
    background_iou: float = 0.0,
    num_classes: int,
) -> Regions:
    """Draw the regions that the second stage learns from.

    The objects' own boxes join the proposals, so that the heads see good regions from the first
    step on. An image that yields no region at all gives its whole area, which counts for nothing.

    Args:
        proposals:     of the first stage.
        targets:       one per image.
        count:         regions per image.
        positive_frac: largest share of regions matched to an object.
        background_iou: background overlaps some object by this much at least, so that it is hard.
        num_classes:   K.

    Returns:
        At most `count` regions per image.

    Source:  Fast R-CNN (arXiv:1504.08083), section 2.3; Mask R-CNN (arXiv:1703.06870), section 3.1.
    """
    chosen: list[Tensor] = []
    matches: list[Tensor] = []
    for image, target in enumerate(targets):
        boxes = torch.cat([proposals.boxes[image], target.boxes])  # [N, 4]
        counts = torch.cat([proposals.valid[image], target.usable])  # [N]
        match = match_objects(boxes, target, high=FOREGROUND_IOU, low=FOREGROUND_IOU)  # [N]
        if background_iou > 0:
            far = match_objects(boxes, target, high=FOREGROUND_IOU, low=background_iou)
            match = match.masked_fill(far == BACKGROUND, IGNORED)
        match = match.masked_fill(~counts, IGNORED)
        some = torch.cat(sample_balanced(match, count=count, positive_frac=positive_frac))  # [S]
        boxes, match = boxes[some], match[some]
        if len(some) == 0:
            boxes = boxes.new_tensor([[0.0, 0.0, target.size[1], target.size[0]]])
            match = match.new_full((1,), IGNORED)
        chosen.append(boxes)
        matches.append(match)
    return _label(rois_of(chosen), matches, targets, num_classes)


def _label(
    rois: Tensor, matches: Sequence[Tensor], targets: Sequence[InstanceTarget], num_classes: int
) -> Regions:
    """RoIs [R, 5] with what they should learn, from their matches per image."""
    first = accumulate((len(target) for target in targets), initial=0)
    index = torch.cat([match + begin for match, begin in zip(matches, first, strict=False)])
    index = index.clamp(min=0)  # [R]; somewhere, where there is no object
    match = torch.cat(list(matches))  # [R]
    # A spare row is there even if no picture has objects.
    labels = torch.cat([*(target.labels for target in targets), index.new_zeros(1)])
    boxes = torch.cat([*(target.boxes for target in targets), rois.new_zeros(1, 4)])
    unmatched = torch.where(match == BACKGROUND, num_classes, UNCOUNTED)  # [R]
    return Regions(
        rois,
        torch.where(match >= 0, labels[index], unmatched),
        boxes[index],
        index,
        join_masks(targets),
        num_classes,
    )
