"""The box branch of a two-stage detector: what is in a region, and where exactly?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.conventions import Conventions
from pixelwise.nn.detections import Detections
from pixelwise.nn.norm import make_norm
from pixelwise.nn.regions import UNCOUNTED, Proposals, Regions, best_first, sample_regions
from pixelwise.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from pixelwise.ops.suppress import greedy_nms
from pixelwise.types import InstanceTarget, Size

TrunkKind = Literal["2fc", "4conv1fc"]
# 3x3 convolutions, then fully connected layers. FPN (arXiv:1612.03144), section 4.2; Group
# Normalization (arXiv:1803.08494), section 4.2.
TRUNKS: dict[TrunkKind, tuple[int, int]] = {"2fc": (0, 2), "4conv1fc": (4, 1)}
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # Fast R-CNN's normalisation
# Only this many of the best (region, class) pairs of an image enter the suppression, so that its
# size does not depend on the picture. Upstream lets all above the threshold in; with the published
# threshold of 0.05 a picture rarely has a thousand.
CANDIDATES = 2048


class BoxOutput(NamedTuple):
    """What the head says about each region.

    logits: [R, K + 1], background last.
    deltas: [R, 4K], column 4k + j is number j of class k.
    """

    logits: Tensor
    deltas: Tensor


class ConvTrunk(nn.Module):
    """The layers between a region's features and its predictions: convolutions, then full layers.

    Args:
        in_channels: of the region features.
        side:        height and width of the region features, cells.
        convs:       3x3 convolutions; `TRUNKS` has the published numbers.
        fcs:         fully connected layers.
        channels:    of the convolutions.
        out_features: of every fully connected layer.
        norm:        of the convolutions.
        fc_norm:     of the fully connected layers, "group" or None.
        fuse:        what goes before all this and makes one feature of several, such as a
            `LevelFusion`; the sizes above are those of its result.

    Source:  FPN (arXiv:1612.03144), section 4.2; with convolutions: Group Normalization
        (arXiv:1803.08494), section 4.2.
    """

    def __init__(  # noqa: PLR0913 (the knobs in which trunks differ)
        self,
        in_channels: int,
        side: int,
        *,
        convs: int = 0,
        fcs: int = 2,
        channels: int = 256,
        out_features: int = 1024,
        norm: str | None = None,
        fc_norm: str | None = None,
        fuse: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.fuse = nn.Identity() if fuse is None else fuse
        widths = [in_channels, *[channels] * convs]
        self.convs = nn.Sequential(*(ConvNormAct(a, b, 3, norm=norm) for a, b in pairwise(widths)))
        features = [widths[-1] * side**2, *[out_features] * fcs]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(features))
        self.fc_norms = nn.ModuleList(make_norm(fc_norm, out_features) for _ in self.fcs)
        self.out_features = out_features
        for fc in self.fcs.children():
            if isinstance(fc, nn.Linear):
                nn.init.kaiming_uniform_(fc.weight, a=1)
                nn.init.zeros_(fc.bias)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        x = self.convs(self.fuse(features))  # [R, C, side, side]
        x = x.flatten(1)  # [R, C * side * side]: channel, then y, then x
        for fc, norm in zip(self.fcs, self.fc_norms, strict=True):
            x = F.relu(norm(fc(x)))
        return x  # [R, out_features]


class MeanTrunk(nn.Module):
    """The mean over a region's cells: all that is left to do after a C4 network's last stage."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_features = channels

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        return features.mean(dim=(2, 3))  # [R, channels]


class BoxHead(nn.Module):
    """Classify each region and regress one box per class.

    Args:
        trunk:        features of a region → [R, out_features].
        num_classes:  K, without background.
        conventions:  losses and limits that differ by origin.
        regions_per_image: drawn to learn from.
        score_thresh: detections must score more than this, 0..1.
        iou_thresh:   a detection that overlaps a better one of its class by more is dropped.
        detections:   D, per image.

    Source:  Fast R-CNN (arXiv:1504.08083), section 2; Mask R-CNN (arXiv:1703.06870), section 3.
    """

    def __init__(
        self,
        trunk: ConvTrunk | MeanTrunk,
        num_classes: int,
        conventions: Conventions,
        *,
        regions_per_image: int = 512,
        score_thresh: float = 0.05,
        iou_thresh: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conventions = conventions
        self.regions_per_image = regions_per_image
        self.score_thresh = score_thresh
        self.iou_thresh = iou_thresh
        self.detections = detections
        self.trunk = trunk
        self.classify = nn.Linear(trunk.out_features, num_classes + 1)
        self.regress = nn.Linear(trunk.out_features, 4 * num_classes)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.normal_(self.regress.weight, std=0.001)
        nn.init.zeros_(self.classify.bias)
        nn.init.zeros_(self.regress.bias)

    def predict(self, features: Tensor) -> BoxOutput:
        """Class logits and deltas of regions with features [R, C, side, side]."""
        x = self.trunk(features)  # [R, F]
        return BoxOutput(self.classify(x).float(), self.regress(x).float())

    def sample(self, proposals: Proposals, targets: Sequence[InstanceTarget]) -> Regions:
        """Draw the regions that this head and those beside it learn from, see `sample_regions`."""
        return sample_regions(
            proposals, targets, count=self.regions_per_image, num_classes=self.num_classes
        )

    def targets(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """What the regions should predict: labels [R] and, for objects, deltas [P, 4]."""
        inside = regions.objects  # [P]
        deltas = encode_boxes(regions.rois[inside, 1:], regions.gt_boxes[inside], DELTA_WEIGHTS)
        return regions.labels, deltas

    def loss(self, output: BoxOutput, regions: Regions) -> dict[str, Tensor]:
        """Cross entropy of all regions, and the box error of those matched to an object.

        Both are divided by the number of all regions that count, so that a region weighs the same
        in every image however few objects it holds.

        Returns:
            "class" and "box", scalars.
        """
        labels, wanted = self.targets(regions)
        count = (labels != UNCOUNTED).sum().clamp(min=1)
        classification = F.cross_entropy(
            output.logits, labels, ignore_index=UNCOUNTED, reduction="sum"
        )
        inside = regions.objects  # [P]
        rows = inside * self.num_classes + labels[inside]  # [P]
        deltas = output.deltas.reshape(-1, 4).index_select(0, rows)  # [P, 4]
        box = F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=self.conventions.box_beta)
        return {"class": classification / count, "box": box / count}

    def decode(self, output: BoxOutput, proposals: Proposals, size: Size) -> Detections:
        """Turn the predictions into boxes: threshold, regress, clip, suppress within each class.

        Args:
            output:    for the proposals, [B, N, ...] or [B * N, ...].
            proposals: what the output was made from.
            size:      (height, width) of the network input.

        Returns:
            D detections per image.
        """
        batch, count = proposals.valid.shape
        probs = output.logits.softmax(dim=-1)[..., :-1].reshape(batch, count, -1)  # [B, N, K]
        probs = probs.masked_fill(~proposals.valid[..., None], 0.0)
        deltas = output.deltas.reshape(batch, count * self.num_classes, 4)  # [B, N * K, 4]
        limit = max(CANDIDATES, 4 * self.detections)
        scores, index = best_first(probs.flatten(1), min(limit, probs[0].numel()))  # [B, M]
        per_image = [
            self._suppress(scores[b], index[b], deltas[b], proposals.boxes[b], size)
            for b in range(batch)
        ]
        return Detections(*(torch.stack(part) for part in zip(*per_image, strict=True)))

    def _suppress(
        self, scores: Tensor, index: Tensor, deltas: Tensor, references: Tensor, size: Size
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detections of one image from the M candidates at `index`, region * K + class.

        Returns:
            boxes [D, 4], scores [D], labels [D], valid [D].
        """
        rules = self.conventions
        labels = index % self.num_classes  # [M]
        boxes = decode_boxes(
            deltas[index],
            references[index // self.num_classes],
            DELTA_WEIGHTS,
            clamp_both=rules.clamp_both,
        )
        boxes = clip_boxes(boxes, size)  # [M, 4]
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)  # [M]
        passed = (scores > self.score_thresh) & (sides > rules.detection_side_px)  # [M]
        # A rejected candidate goes last, where it can suppress no other.
        scores = scores.masked_fill(~passed, -1.0)
        kept = greedy_nms(boxes, scores, labels, iou_thresh=self.iou_thresh)  # [M] bool
        scores = scores.masked_fill(~kept, -1.0)
        missing = max(0, self.detections - len(scores))
        best, order = best_first(scores[None], min(self.detections, len(scores)))
        best = F.pad(best[0], (0, missing), value=-1.0)  # [D]
        order = F.pad(order[0], (0, missing))  # [D]
        valid = best > -1.0
        return (
            boxes[order].masked_fill(~valid[:, None], 0.0),
            best.masked_fill(~valid, 0.0),
            labels[order].masked_fill(~valid, 0),
            valid,
        )
