"""Region proposal network: where might objects be?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.conventions import Conventions
from pixelwise.nn.regions import Proposals, best_first, match_objects
from pixelwise.ops.anchors import base_anchors, grid_anchors, plus_one_anchors
from pixelwise.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from pixelwise.ops.matching import IGNORED
from pixelwise.ops.sampling import sample_balanced
from pixelwise.ops.suppress import greedy_nms
from pixelwise.types import InstanceTarget, Size

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # Faster R-CNN (arXiv:1506.01497), eq. 2
# Faster R-CNN, section 3.1.2 and 3.1.3
POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3
ANCHORS_PER_IMAGE, POSITIVE_FRAC = 256, 0.5
NMS_IOU = 0.7


@dataclass(frozen=True, kw_only=True)
class AnchorGrid:
    """Which anchors stand on the cells of each level.

    Args:
        sizes:   per level, the anchor sizes (square root of the area), pixels.
        ratios:  height / width of the anchors of each size.
        strides: per level, input pixels per cell.
        conventions: order, rounding and spacing.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    strides: tuple[int, ...]
    conventions: Conventions

    @classmethod
    def on_pyramid(
        cls,
        sizes: Sequence[float],
        ratios: Sequence[float],
        strides: Sequence[int],
        conventions: Conventions,
    ) -> AnchorGrid:
        """One size per level, finest first.

        Args:
            sizes:       as many as levels, or one more: for the level that a pyramid adds.
            ratios:      see the class.
            strides:     of the backbone's levels, input pixels per cell.
            conventions: see the class.
        """
        return cls(
            sizes=tuple((size,) for size in sizes),
            ratios=tuple(ratios),
            strides=(*strides, 2 * strides[-1])[: len(sizes)],
            conventions=conventions,
        )

    @classmethod
    def on_one_level(
        cls, sizes: Sequence[float], ratios: Sequence[float], stride: int, conventions: Conventions
    ) -> AnchorGrid:
        """All sizes on the cells of one level, `stride` input pixels apart."""
        return cls(
            sizes=(tuple(sizes),),
            ratios=tuple(ratios),
            strides=(stride,),
            conventions=conventions,
        )

    @property
    def per_cell(self) -> int:
        """A, anchors per cell; the same on every level."""
        return len(self.sizes[0]) * len(self.ratios)

    def place(self, maps: Sequence[Tensor], size: Size) -> list[Tensor]:
        """The anchors of every cell of `maps`.

        Args:
            maps: L of [B, any, h, w]; only their sizes and device are read.
            size: (height, width) of the network input.

        Returns:
            L of [h * w * A, 4] float32 xyxy in network-input pixels; rows first, then columns.
        """
        cells = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        if torch.compiler.is_compiling():  # a graph makes its own
            return list(_placed.__wrapped__(self, cells, size, maps[0].device))
        return list(_placed(self, cells, size, maps[0].device))

    def of_cell(self, sizes: tuple[float, ...], stride: int) -> Tensor:
        """[A, 4] xyxy in pixels, the anchors of the first cell."""
        rules = self.conventions
        if rules.window_anchors:
            base = plus_one_anchors(stride, [size / stride for size in sizes], self.ratios)
            return base + base.new_tensor([0.0, 0.0, 1.0, 1.0])  # they hold their last pixel
        return base_anchors(
            sizes, self.ratios, order=rules.anchor_order, rounding=rules.anchor_rounding
        )


@lru_cache(maxsize=4)  # proposals and losses share them, and so do pictures of one size
@torch.inference_mode(False)  # what a prediction placed, a loss may use
def _placed(
    grid: AnchorGrid, cells: tuple[Size, ...], size: Size, device: torch.device
) -> tuple[Tensor, ...]:
    """See `AnchorGrid.place`."""
    placed: list[Tensor] = []
    for (height, width), sizes, stride in zip(cells, grid.sizes, grid.strides, strict=True):
        steps = (stride, stride)
        if grid.conventions.floor_strides:
            steps = (size[0] // height, size[1] // width)
        base = grid.of_cell(sizes, stride).to(device, non_blocking=True)
        placed.append(grid_anchors(base, (height, width), steps))
    return tuple(placed)


class RPNMaps(NamedTuple):
    """What the network says about every anchor, per level.

    logits: L of [B, A, h, w], objectness before the sigmoid.
    deltas: L of [B, 4A, h, w], channel 4a + j is number j of anchor a.
    """

    logits: list[Tensor]
    deltas: list[Tensor]


class RPNTargets(NamedTuple):
    """The anchors drawn from a batch; flat positions run over images, then anchors.

    chosen:    [S] int64, the positives first.
    is_object: [S] float, 1 or 0.
    deltas:    [P, 4], what the positives should predict.
    """

    chosen: Tensor
    is_object: Tensor
    deltas: Tensor


class RPN(nn.Module):
    """Score and regress the anchors of every cell with one small network shared by all levels.

    Args:
        channels:    of every level.
        anchors:     the anchors of each level.
        conventions: thresholds and losses that differ by origin.
        convs:       hidden 3x3 convolutions.
        hidden:      channels of the hidden convolutions; None for those of the levels.
        pre_nms:     candidates per level that enter the suppression (training, inference).
        post_nms:    proposals per image (training, inference).

    Source:  Ren et al., "Faster R-CNN" (arXiv:1506.01497), section 3; on a pyramid: FPN
        (arXiv:1612.03144), section 4.1.
    """

    def __init__(
        self,
        channels: int,
        anchors: AnchorGrid,
        conventions: Conventions,
        *,
        convs: int = 1,
        hidden: int | None = None,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (1000, 1000),
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.conventions = conventions
        self.pre_nms = pre_nms
        self.post_nms = post_nms
        widths = [channels, *[hidden or channels] * convs]
        self.convs = nn.Sequential(
            *(ConvNormAct(a, b, 3, bias=True, norm=None, act="relu") for a, b in pairwise(widths))
        )
        kinds = 2 if conventions.softmax_objectness else 1
        self.objectness = nn.Conv2d(widths[-1], kinds * anchors.per_cell, 1)
        self.deltas = nn.Conv2d(widths[-1], 4 * anchors.per_cell, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def predict(self, pyramid: Sequence[Tensor]) -> RPNMaps:
        """Score the anchors of levels [B, C, h, w]; levels without anchors are left out."""
        hidden = [self.convs(level) for level in pyramid[: len(self.anchors.sizes)]]
        return RPNMaps([self._logits(x) for x in hidden], [self.deltas(x) for x in hidden])

    def targets(self, anchors: Tensor, targets: Sequence[InstanceTarget]) -> RPNTargets:
        """Draw the anchors to learn from, and say what they should predict.

        Args:
            anchors: [A, 4], of all levels.
            targets: one per image.
        """
        positives: list[Tensor] = []
        negatives: list[Tensor] = []
        references: list[Tensor] = []
        objects: list[Tensor] = []
        for image, target in enumerate(targets):
            matches = self._match(anchors, target)  # [A]
            positive, negative = sample_balanced(
                matches, count=ANCHORS_PER_IMAGE, positive_frac=POSITIVE_FRAC
            )
            positives.append(positive + image * len(anchors))
            negatives.append(negative + image * len(anchors))
            references.append(anchors[positive])
            objects.append(target.boxes[matches[positive]])
        chosen = torch.cat(positives + negatives)  # [S]
        is_object = torch.zeros(len(chosen), device=chosen.device)
        is_object[: sum(map(len, positives))] = 1
        deltas = encode_boxes(torch.cat(references), torch.cat(objects), DELTA_WEIGHTS)  # [P, 4]
        return RPNTargets(chosen, is_object, deltas)

    def _match(self, anchors: Tensor, target: InstanceTarget) -> Tensor:
        """[A] int64, what each anchor stands for, see `match_objects`."""
        rules = self.conventions
        match = partial(
            match_objects,
            target=target,
            high=POSITIVE_IOU,
            low=NEGATIVE_IOU,
            min_low_quality=rules.min_low_quality,
            low_quality_to=rules.low_quality_to,
        )
        if rules.border_anchors:
            return match(anchors)
        height, width = target.size
        x1, y1, x2, y2 = anchors.unbind(dim=1)  # [A] each
        inside = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
        index = inside.nonzero()[:, 0]
        matches = torch.full_like(inside, IGNORED, dtype=torch.int64)  # [A]
        return matches.index_copy_(0, index, match(anchors[index]))

    def loss(
        self, maps: RPNMaps, size: Size, targets: Sequence[InstanceTarget]
    ) -> dict[str, Tensor]:
        """Binary cross entropy of the drawn anchors, and the box error of the positives.

        Args:
            maps:    of `predict`.
            size:    (height, width) of the network input.
            targets: one per image.

        Returns:
            "rpn_objectness" and "rpn_box", scalars.
        """
        with torch.no_grad():
            wanted = self.targets(torch.cat(self.anchors.place(maps.logits, size)), targets)
        logits, deltas = self._flatten(maps)
        # Brackets would do too, but their gradient has to sort the positions first.
        logits = logits.flatten().index_select(0, wanted.chosen)  # [S]
        positives = wanted.chosen[: len(wanted.deltas)]
        deltas = deltas.flatten(0, 1).index_select(0, positives)  # [P, 4]
        rules = self.conventions
        count = ANCHORS_PER_IMAGE * len(targets)
        if rules.sampled_normaliser:
            count = max(len(wanted.chosen), 1)
        objectness = F.binary_cross_entropy_with_logits(logits, wanted.is_object, reduction="sum")
        box = F.smooth_l1_loss(deltas, wanted.deltas, reduction="sum", beta=rules.rpn_beta)
        return {"rpn_objectness": objectness / count, "rpn_box": box / count}

    @torch.no_grad()
    def decode(
        self, maps: RPNMaps, size: Size, *, contents: Sequence[Size] | None = None
    ) -> Proposals:
        """Turn the maps into boxes: best anchors per level, regressed, clipped, suppressed.

        Proposals are inputs of the second stage; no gradient flows through them.

        Args:
            maps:     of `predict`.
            size:     (height, width) of the network input.
            contents: while training, (height, width) of each image inside the padded input; boxes
                      are clipped to it and the training counts apply.

        Returns:
            The same number of proposals for every image, best first.
        """
        anchors = self.anchors.place(maps.logits, size)
        logits, deltas = self._flatten(maps)
        phase = 1 if contents is None else 0
        frames = [size] * len(logits) if contents is None else contents
        best = _best_per_level(logits, [len(level) for level in anchors], self.pre_nms[phase])
        boxes = decode_boxes(
            deltas.take_along_dim(best.places[..., None], dim=1),
            torch.cat(anchors)[best.places],
            DELTA_WEIGHTS,
            clamp_both=self.conventions.clamp_both,
        )  # [B, M, 4]
        boxes = _clip_each(boxes, frames)
        sides = (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1)  # [B, M]
        # A rejected box goes last, where it can suppress no other.
        rejected = ~(sides > self.conventions.proposal_side_px)
        scores = best.logits.masked_fill(rejected, float("-inf"))
        return self._suppress(boxes, scores, best.levels, self.post_nms[phase])

    def _suppress(self, boxes: Tensor, scores: Tensor, levels: Tensor, count: int) -> Proposals:
        """The best of boxes [B, M, 4] of `levels` [M] that no better one of their level covers."""
        kept = torch.stack(
            [
                greedy_nms(*image, levels, iou_thresh=NMS_IOU)
                for image in zip(boxes, scores, strict=True)
            ]
        )  # [B, M]
        scores = scores.masked_fill(~kept, float("-inf"))
        best, index = best_first(scores, min(count, scores.shape[1]))  # [B, N] each
        valid = best > float("-inf")
        boxes = boxes.take_along_dim(index[..., None], dim=1)  # [B, N, 4]
        return Proposals(
            boxes.masked_fill(~valid[..., None], 0.0), best.masked_fill(~valid, 0.0), valid
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        """[B, A, h, w] objectness; the logit of a softmax over two is their difference."""
        x = self.objectness(hidden)
        if not self.conventions.softmax_objectness:
            return x
        background, foreground = x.tensor_split(2, dim=1)
        return foreground - background

    def _flatten(self, maps: RPNMaps) -> tuple[Tensor, Tensor]:
        """Logits [B, A] and deltas [B, A, 4] of all A anchors, in their order."""
        logits, deltas = (
            torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in levels], dim=1).float()
            for levels in maps
        )  # [B, cells, anchors of a cell], [B, cells, 4 for each of them]
        return logits.flatten(1), deltas.reshape(len(deltas), -1, 4)  # 4a + j: a, then j


class _Best(NamedTuple):
    """The M best anchors of each image: logits and positions [B, M], and their levels [M]."""

    logits: Tensor
    places: Tensor
    levels: Tensor


def _best_per_level(logits: Tensor, sizes: Sequence[int], count: int) -> _Best:
    """So many of the anchors of each level, best first, from the logits [B, A] of all levels."""
    values: list[Tensor] = []
    places: list[Tensor] = []
    levels: list[Tensor] = []
    begin = 0
    for level, own in enumerate(logits.split(sizes, dim=1)):
        best, index = best_first(own, min(count, sizes[level]))  # [B, k] each
        values.append(best)
        places.append(index + begin)
        levels.append(torch.full_like(index[0], level))
        begin += sizes[level]
    return _Best(torch.cat(values, dim=1), torch.cat(places, dim=1), torch.cat(levels))


def _clip_each(boxes: Tensor, frames: Sequence[Size]) -> Tensor:
    """Boxes [B, M, 4] clipped to (height, width) of each image; at once where that is the same."""
    if all(frame == frames[0] for frame in frames):
        return clip_boxes(boxes, frames[0])
    return torch.stack([clip_boxes(*image) for image in zip(boxes, frames, strict=True)])
