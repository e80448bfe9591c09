"""The mask branch of a two-stage detector: a small fully convolutional network per region."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.conventions import Conventions
from pixelwise.nn.detections import Detections, place_in_pictures
from pixelwise.nn.regions import Regions
from pixelwise.ops.masks import mask_targets, paste_masks
from pixelwise.types import ImageSize, InstancePrediction, RunLengths, Size


class MaskHead(nn.Module):
    """Predict one binary mask per class inside each region, at twice the size of its features.

    Classes do not compete: every one has its own sigmoid, and the box branch says which is meant.

    Args:
        in_channels:  of the region features.
        num_classes:  K, without background.
        conventions:  which mask targets.
        convs:        3x3 convolutions before the upsampling; 0 behind a C4 network's last stage.
        channels:     of the convolutions and of the upsampling.
        norm:         of the convolutions.
        class_agnostic: one mask per region, whatever its class.

    Source:  He et al., "Mask R-CNN" (arXiv:1703.06870), section 3 and figure 4.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        conventions: Conventions,
        *,
        convs: int = 4,
        channels: int = 256,
        norm: str | None = None,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conventions = conventions
        self.class_agnostic = class_agnostic
        widths = [in_channels, *[channels] * convs]
        self.convs = nn.Sequential(*(ConvNormAct(a, b, 3, norm=norm) for a, b in pairwise(widths)))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        # Two names, so that a checkpoint shows whether its rows belong to classes.
        last = nn.Conv2d(channels, 1 if class_agnostic else num_classes, 1)
        self.add_module("shared_logits" if class_agnostic else "class_logits", last)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(last.weight, std=0.001)
        for module in (self.upsample, last):
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Mask logits [R, K or 1, 2s, 2s] of regions with features [R, C, s, s]."""
        x = F.relu(self.upsample(self.convs(features)))  # [R, channels, 2s, 2s]
        name = "shared_logits" if self.class_agnostic else "class_logits"
        return self.get_submodule(name)(x).float()

    def of_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mask that belongs to each region's class.

        Args:
            logits: [R, K or 1, M, M].
            labels: [R] int64, 0..K-1.

        Returns:
            [R, M, M] logits.
        """
        if self.class_agnostic:
            return logits[:, 0]
        index = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])  # [R, 1, M, M]
        return logits.gather(1, index)[:, 0]

    def targets(self, regions: Regions, side: int) -> Tensor:
        """The matched objects' masks inside each region, [R, side, side] in [0, 1]."""
        inside = regions.is_object  # [R]
        targets = torch.zeros(len(inside), side, side, device=inside.device)
        if inside.any():
            targets[inside] = mask_targets(
                regions.masks,
                regions.rois[inside, 1:],
                regions.gt_index[inside],
                side,
                mode=self.conventions.mask_targets,
            )
        return targets

    def loss(self, logits: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Binary cross entropy on the mask of the object's class, mean over objects and pixels.

        Args:
            logits:  [R, K or 1, M, M] of `predict`.
            regions: the R regions, of `Regions.foreground`.

        Returns:
            "mask", a scalar; 0 where no region is matched to an object.
        """
        with torch.no_grad():
            wanted = self.targets(regions, logits.shape[-1])  # [R, M, M]
        chosen = self.of_class(logits, regions.labels.clamp(0, self.num_classes - 1))
        error = F.binary_cross_entropy_with_logits(chosen, wanted, reduction="none")
        inside = regions.is_object  # [R]
        total = (error.mean(dim=(1, 2)) * inside).sum()
        return {"mask": total / inside.sum().clamp(min=1)}

    def paste(self, logits: Tensor, boxes: Tensor, size: Size) -> RunLengths:
        """Place masks in a picture, one binary mask per box.

        Args:
            logits: [N, M, M], of each box's class.
            boxes:  [N, 4] xyxy in pixels of the picture.
            size:   (height, width) of the picture.
        """
        return paste_masks(logits.sigmoid(), boxes, size, mode=self.conventions.paste)

    def decode(
        self,
        found: Detections,
        logits: Tensor,
        sizes: Sequence[ImageSize],
        *,
        mask_scores: Tensor | None = None,
    ) -> list[InstancePrediction]:
        """Bring detections back to the original pictures and paste their masks.

        Args:
            found:       of a batch.
            logits:      [B, D, M, M], of each detection's class.
            sizes:       one per image.
            mask_scores: [B, D], where masks are ranked by something else than `found.scores`.
        """
        predictions: list[InstancePrediction] = []
        for image, (index, boxes) in enumerate(place_in_pictures(found, sizes)):
            labels, scores, masks = (
                x[image].cpu()[index] for x in (found.labels, found.scores.float(), logits.float())
            )
            ranks = None if mask_scores is None else mask_scores[image].float().cpu()[index]
            predictions.append(
                InstancePrediction(
                    boxes=boxes,
                    labels=labels,
                    scores=scores,
                    masks=self.paste(masks, boxes, sizes[image].original),
                    mask_scores=ranks,
                )
            )
        return predictions
