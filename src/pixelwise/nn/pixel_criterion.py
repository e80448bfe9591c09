"""What a semantic system minimises, as the module that holds its class weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pixelwise.losses.semantic import PixelLoss, semantic_loss
from pixelwise.ops.resize import resize


class PixelCriterion(nn.Module):
    """A named loss on logits brought to the size of the labels.

    Resizing the logits, not the labels, keeps every annotated pixel in the loss; DeepLabV3
    (arXiv:1706.05587, table 4) measures what that is worth.

    Args:
        kind:          see `semantic_loss`.
        class_weights: one per class, or None.
        align_corners: of the resize.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        kind: PixelLoss = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        *,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.align_corners = align_corners
        weights = None if class_weights is None else torch.tensor(class_weights)
        # The system's config holds them already; a checkpoint need not.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            logits:  [B, K, h, w] at any size.
            labels:  [B, H, W] int64, 0..K-1 or 255 (ignored).
            weights: [B, H, W] of the pixels, or None; see `stack_targets`.

        Returns:
            A scalar; 0 where no pixel is valid.
        """
        size = (labels.shape[1], labels.shape[2])
        if (logits.shape[2], logits.shape[3]) != size:
            logits = resize(logits, size, align_corners=self.align_corners)  # [B, K, H, W]
        return semantic_loss(
            logits, labels, kind=self.kind, class_weights=self.class_weights, weights=weights
        )
