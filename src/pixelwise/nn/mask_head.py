"""The mask branch of a two-stage detector: a small fully convolutional network per region."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.losses.mask import mask_cross_entropy
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.conventions import Conventions
from pixelwise.nn.detections import Detections, place_in_pictures
from pixelwise.nn.regions import Regions
from pixelwise.ops.masks import paste_masks
from pixelwise.types import ImageSize, InstancePrediction, RunLengths, Size


class MaskHead(nn.Module):
    """Predict one binary mask per class inside each region, at twice the size of its features.

    Classes do not compete: every one has its own sigmoid, and the box branch says which is meant.

    Args:
        in_channels:  of the region features.
        num_classes:  K, without background.
        conventions:  which mask targets; whether the classes of a pixel compete.
        convs:        3x3 convolutions before the upsampling; 0 behind a C4 network's last stage.
        channels:     of the convolutions and of the upsampling.
        norm:         of the convolutions.
        class_agnostic: one mask per region, whatever its class.
        fuse:         what goes before all this and makes one feature of several, such as a
            `LevelFusion`.
        branch:       [R, channels, s, s] → [R, 1, 2s, 2s], from what enters the last convolution;
            its mask is added to those of all classes, as in `FullyConnectedFusion`.

    Source:  He et al., "Mask R-CNN" (arXiv:1703.06870), section 3 and figure 4.
    """

    def __init__(  # noqa: PLR0913 (the knobs in which mask heads differ)
        self,
        in_channels: int,
        num_classes: int,
        conventions: Conventions,
        *,
        convs: int = 4,
        channels: int = 256,
        norm: str | None = None,
        class_agnostic: bool = False,
        fuse: nn.Module | None = None,
        branch: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conventions = conventions
        self.class_agnostic = class_agnostic
        self.fuse = nn.Identity() if fuse is None else fuse
        self.branch = branch
        # Competing masks need one more channel, last: pixels of no class.
        self.with_softmax = conventions.mask_probs == "softmax"
        rows = (1 if class_agnostic else num_classes) + (1 if self.with_softmax else 0)
        widths = [in_channels, *[channels] * convs]
        self.convs = nn.Sequential(*(ConvNormAct(a, b, 3, norm=norm) for a, b in pairwise(widths)))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        # Two names, so that a checkpoint shows whether its rows belong to classes.
        last = nn.Conv2d(channels, rows, 1)
        self.add_module("shared_logits" if class_agnostic else "class_logits", last)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(last.weight, std=0.001)
        for module in (self.upsample, last):
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Mask logits [R, K or 1, 2s, 2s] of regions with features [R, C, s, s]."""
        before, x = self._enlarged(features)
        logits = self._last(x).float()
        return logits if self.branch is None else logits + self.branch(before).float()

    def predict_class(self, features: Tensor, labels: Tensor) -> Tensor:
        """Only the mask that belongs to each region's class: `of_class(predict(features), labels)`.

        Args:
            features: [R, C, s, s].
            labels:   [R] int64, 0..K-1.

        Returns:
            [R, 2s, 2s] logits.
        """
        if self.with_softmax or self.class_agnostic:
            return self.of_class(self.predict(features), labels)
        before, x = self._enlarged(features)
        weight, bias = self._last.weight[labels, :, 0], self._last.bias  # [R, channels, 1], [K]
        logits = (weight.transpose(1, 2) @ x.flatten(2)).float().view(len(x), *x.shape[2:])
        logits = logits if bias is None else logits + bias[labels, None, None]
        return logits if self.branch is None else logits + self.branch(before)[:, 0].float()

    def _enlarged(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the last convolution [R, channels, s, s], and the upsampled result."""
        x = before = self.fuse(features)  # [R, C, s, s]
        for conv in self.convs:
            before, x = x, conv(x)
        return before, F.relu(self.upsample(x))  # [R, channels, 2s, 2s]

    @property
    def _last(self) -> nn.Conv2d:
        name = "shared_logits" if self.class_agnostic else "class_logits"
        return cast("nn.Conv2d", self.get_submodule(name))

    def of_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mask that belongs to each region's class.

        Args:
            logits: [R, K or 1, M, M], one more where the classes compete.
            labels: [R] int64, 0..K-1.

        Returns:
            [R, M, M] logits, whose sigmoid is the probability.
        """
        index = self._channel(labels, logits)  # [R, 1, M, M]
        chosen = logits.gather(1, index)[:, 0]
        if not self.with_softmax:
            return chosen
        return chosen - logits.scatter(1, index, float("-inf")).logsumexp(dim=1)

    def _channel(self, labels: Tensor, logits: Tensor) -> Tensor:
        """[R, 1, M, M] int64, the channel of each region's class at every pixel."""
        labels = torch.zeros_like(labels) if self.class_agnostic else labels
        return labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])

    def targets(self, regions: Regions, side: int) -> Tensor:
        """The matched objects' masks inside each region, [R, side, side] in [0, 1]."""
        return regions.object_masks(side, mode=self.conventions.mask_targets)

    def loss(self, logits: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Cross entropy on the mask of the object's class, mean over objects and pixels.

        Args:
            logits:  [R, K or 1, M, M] of `predict`.
            regions: the R regions, of `Regions.foreground`.

        Returns:
            "mask", a scalar; 0 where no region is matched to an object.
        """
        with torch.no_grad():
            wanted = self.targets(regions, logits.shape[-1])  # [R, M, M]
        # Regions without an object have no class; what they say is masked below.
        labels = regions.labels.clamp(0, self.num_classes - 1)
        if self.with_softmax:
            log_probs = logits.log_softmax(dim=1)  # [R, K + 1, M, M]
            chosen = log_probs.gather(1, self._channel(labels, logits))[:, 0]
            error = -wanted * chosen - (1 - wanted) * log_probs[:, -1]  # [R, M, M]
        else:
            error = mask_cross_entropy(self.of_class(logits, labels), wanted)
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
