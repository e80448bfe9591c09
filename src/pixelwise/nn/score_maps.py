"""Position-sensitive score maps as the second stage of a detector: of R-FCN and of FCIS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.conventions import POSITION_SENSITIVE
from pixelwise.nn.regions import UNCOUNTED, Proposals, Regions, sample_regions
from pixelwise.nn.rpn import RPN, AnchorGrid
from pixelwise.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from pixelwise.ops.masks import resized_targets
from pixelwise.ops.position_sensitive import (
    Assembling,
    class_scores,
    mask_logits,
    part_reader,
)
from pixelwise.ops.sampling import sample_hardest
from pixelwise.types import InstanceTarget, Size

PRE_NMS = 6000  # anchors that enter the suppression of the first stage, training and inference
POSITIVE_FRAC, BACKGROUND_IOU = 0.25, 0.1  # of regions that are drawn, Fast R-CNN, section 2.3
BOX_BETA = 1.0  # where smooth-L1 turns linear; Fast R-CNN (arXiv:1504.08083), eq. 3
MASK_WEIGHT = 10.0  # of the mask loss and
MASK_THRESH = 0.4  # of target masks, 0..1: both FCIS's released code


def make_rpn(
    channels: int,
    *,
    hidden: int,
    stride: int,
    sizes: Sequence[float],
    ratios: Sequence[float],
    proposals: int,
    min_side_px: float,
) -> RPN:
    """The first stage of R-FCN and FCIS: one level, several sizes of anchors.

    Args:
        channels:  of the features.
        hidden:    channels of the 3x3 convolution.
        stride:    input pixels per cell.
        sizes:     square roots of the anchor areas, pixels.
        ratios:    height / width of the anchors.
        proposals: per image, while training and at inference.
        min_side_px: proposals with a shorter side are dropped.

    Source:  R-FCN (arXiv:1605.06409), section 2.2, and the released code.
    """
    rules = replace(POSITION_SENSITIVE, proposal_side_px=min_side_px)
    return RPN(
        channels,
        AnchorGrid.on_one_level(sizes, ratios, stride, rules),
        rules,
        hidden=hidden,
        pre_nms=(PRE_NMS, PRE_NMS),
        post_nms=(proposals, proposals),
    )


@dataclass(frozen=True, kw_only=True)
class PartGrid:
    """How a region is read out of position-sensitive maps.

    Args:
        parts:  k, parts of a region per side.
        side:   S, cells of the result per side.
        stride: input pixels per cell of the maps.
        mode:   see `part_reader`.
    """

    parts: int
    side: int
    stride: int
    mode: Assembling

    def reader(self, maps: Tensor) -> Callable[[Tensor], Tensor]:
        """From regions [R, 5] to what maps [B, D * k * k, h, w] say: [R, D, S, S] float32."""
        return part_reader(maps, self.mode, parts=self.parts, side=self.side, scale=1 / self.stride)


class Maps(NamedTuple):
    """The score maps of a batch.

    classes: [B, (K + 1) * sides * k * k, h, w], background last.
    boxes:   [B, 4 * blocks * k * k, h, w].
    """

    classes: Tensor
    boxes: Tensor


class RegionOutput(NamedTuple):
    """What the maps say about each region.

    logits: [R, K + 1], background last. deltas: [R, 4], the same for all classes.
    pairs:  [R, K + 1, sides, S, S], with two sides outside and inside of the mask, before softmax.
    """

    logits: Tensor
    deltas: Tensor
    pairs: Tensor


class ScoreMaps(nn.Module):
    """Three 1x1 convolutions over the picture; nothing is learnt after them.

    With one map per class and part this is R-FCN, where regions are classified and regressed. With
    two, inside and outside of the mask, it is FCIS: their maximum classifies, their softmax
    segments, so one set of maps does both.

    Args:
        in_channels: of the features.
        num_classes: K, without background.
        grid:        how regions are read.
        with_masks:  two sides instead of one.
        box_blocks:  1; 2 where a checkpoint has maps for the background's box too, never read.
        width:       channels after the first convolution.
        weights:     of the four deltas.
        regions_per_image: to learn from.
        with_ohem:   learn from those with the largest error (OHEM), instead of drawing them.

    Source:  R-FCN (arXiv:1605.06409), section 2; FCIS (arXiv:1611.07709), section 3.
    """

    def __init__(  # noqa: PLR0913 (the knobs in which R-FCN and FCIS differ)
        self,
        in_channels: int,
        num_classes: int,
        grid: PartGrid,
        *,
        with_masks: bool,
        box_blocks: int,
        width: int,
        weights: tuple[float, float, float, float],
        regions_per_image: int,
        with_ohem: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.grid = grid
        self.sides = 2 if with_masks else 1
        self.weights = weights
        self.regions_per_image = regions_per_image
        self.with_ohem = with_ohem
        cells = grid.parts**2
        self.reduce = ConvNormAct(in_channels, width, 1, norm=None)
        self.class_maps = nn.Conv2d(width, (num_classes + 1) * self.sides * cells, 1)
        self.box_maps = nn.Conv2d(width, 4 * box_blocks * cells, 1)
        for conv in (self.reduce.conv, self.class_maps, self.box_maps):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, features: Tensor) -> Maps:
        """Features [B, C, h, w] → score maps of the same size."""
        x = self.reduce(features)  # [B, width, h, w]
        return Maps(self.class_maps(x), self.box_maps(x))

    def reader(self, maps: Maps) -> Callable[[Tensor], RegionOutput]:
        """From regions [R, 5] to what the maps of a batch say about them.

        The maps are laid out once, however often regions are read.
        """
        classes, boxes = self.grid.reader(maps.classes), self.grid.reader(maps.boxes)

        def read(rois: Tensor) -> RegionOutput:
            pairs = classes(rois).unflatten(1, (-1, self.sides))  # [R, K + 1, sides, S, S]
            deltas = boxes(rois).mean(dim=(2, 3))  # [R, 4 * blocks]
            return RegionOutput(class_scores(pairs), deltas[:, -4:], pairs)

        return read

    def predict(self, maps: Maps, rois: Tensor) -> RegionOutput:
        """What the maps of a batch say about regions [R, 5]."""
        return self.reader(maps)(rois)

    def refine(self, boxes: Tensor, deltas: Tensor, size: Size) -> Tensor:
        """Move boxes [..., 4] by their deltas; after clipping, each holds at least a pixel."""
        moved = decode_boxes(deltas, boxes, self.weights)
        last = moved.new_tensor([0.0, 0.0, 1.0, 1.0])
        return clip_boxes(moved - last, size, plus_one=True) + last

    def sample(self, proposals: Proposals, targets: Sequence[InstanceTarget]) -> Regions:
        """The regions whose error is computed: for OHEM all, since `loss` chooses; else a draw."""
        if self.with_ohem:
            everything = proposals.valid.shape[1] + max(map(len, targets))
            return sample_regions(
                proposals,
                targets,
                count=everything,
                positive_frac=1.0,
                num_classes=self.num_classes,
            )
        return sample_regions(
            proposals,
            targets,
            count=self.regions_per_image,
            positive_frac=POSITIVE_FRAC,
            background_iou=BACKGROUND_IOU,
            num_classes=self.num_classes,
        )

    def targets(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """What the regions matched to an object should predict; zeros for the others.

        Returns:
            deltas [R, 4]; masks [R, S, S] in {0, 1}, without sides [R, 0, 0].
        """
        inside = regions.objects  # [F]
        boxes = regions.rois[:, 1:]
        deltas = torch.zeros_like(boxes)
        deltas[inside] = encode_boxes(boxes[inside], regions.gt_boxes[inside], self.weights)
        side = self.grid.side if self.sides == 2 else 0
        masks = boxes.new_zeros(len(boxes), side, side)
        if side and len(inside):
            begin = boxes[inside, :2].round()
            end = torch.maximum((boxes[inside, 2:] - 1).round(), begin) + 1
            masks[inside] = resized_targets(
                regions.masks,
                torch.cat([begin, end], dim=1),
                regions.gt_index[inside],
                side,
                thresh=MASK_THRESH,
            )
        return deltas, masks

    def errors(self, output: RegionOutput, regions: Regions) -> dict[str, Tensor]:
        """How wrong every region is, weighted.

        Returns:
            "class", "box" and, with masks, "mask": [R] each; 0 where a region has no such target.
        """
        with torch.no_grad():
            wanted, masks = self.targets(regions)
        inside = regions.is_object  # [R]
        box = F.smooth_l1_loss(output.deltas, wanted, reduction="none", beta=BOX_BETA)
        found = {
            "class": F.cross_entropy(
                output.logits, regions.labels, ignore_index=UNCOUNTED, reduction="none"
            ),
            "box": box.sum(dim=1) * inside,
        }
        if self.sides == 2:
            logits = mask_logits(output.pairs, regions.labels.clamp(0, self.num_classes - 1))
            wrong = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
            found["mask"] = MASK_WEIGHT * wrong.mean(dim=(1, 2)) * inside
        return found

    def loss(self, output: RegionOutput, regions: Regions, *, images: int) -> dict[str, Tensor]:
        """Cross entropy, box error and, with masks, mask error of the regions that are learnt from.

        The class loss is their mean; the others are sums divided by `regions_per_image`, so that an
        object weighs the same in every image however many there are.

        Args:
            output:  of `predict`.
            regions: R regions of `sample`.
            images:  B.
        """
        errors = self.errors(output, regions)
        chosen = regions.labels != UNCOUNTED  # [R]
        count = self.regions_per_image
        if self.with_ohem:
            total = torch.stack(list(errors.values())).sum(dim=0).detach()
            total = total.masked_fill(~chosen, float("-inf"))
            chosen = sample_hardest(total, regions.rois[:, 0].long(), count=count)
        sums = {key: (value * chosen).sum() for key, value in errors.items()}
        means = {key: value / (count * images) for key, value in sums.items()}
        return means | {"class": sums["class"] / chosen.sum().clamp(min=1)}
