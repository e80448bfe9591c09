"""GCN, Global Convolutional Network: kernels that see an object whole, at every level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.bilinear_deconv import BilinearDeconv
from pixelwise.nn.large_kernel import BoundaryRefinement, GlobalConv
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.resize import logits_to_predictions, resize
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, SemanticPrediction, SemanticTarget

Upsample = Literal["deconv", "bilinear"]
_LEVELS = (2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class GCNConfig:
    """Settings of GCN; the defaults are the paper's.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`; needs maps at strides 4, 8, 16 and 32.
        in_channels:    of the images.
        backbone_style: set of knobs of our ResNets, see `build_backbone`.
        norm:           of the backbone: "batch", "frozen", "sync" or "group"; the head has none.
        kernel:         k of the large kernels, cells, odd; section 4.1.1 finds 15 the best.
        with_refinement: boundary refinement after every map; without, nothing takes its place.
        upsample:       "deconv": learnt, starting as bilinear interpolation (figure 2); "bilinear":
                        with aligned corners, to the exact size of the next map.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: Large Kernel Matters (arXiv:1703.02719), sections 3 and 4.
    """

    num_classes: int = 21
    backbone: str = "resnet152"
    in_channels: int = 3
    backbone_style: str | None = None
    norm: Norm = "batch"
    kernel: int = 15
    with_refinement: bool = True
    upsample: Upsample = "deconv"
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, {"upsample": get_args(Upsample), "norm": NORMS})
        check_pixel_loss(self.loss)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UsageError(f"kernel is odd, so that it has a centre; it cannot be {self.kernel}")


class GCNRaw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, H, W].
    """

    logits: Tensor


class GCN(nn.Module):
    """GCN (a `System`): score maps of every level by large kernels, added from the deepest up.

    Images of any size go in: the map of a level is ceil(size / stride), and what is upsampled is
    brought to exactly that size (cut, after a learnt doubling; resized, after interpolation).

    Args:
        cfg: the settings.

    Source: Large Kernel Matters, CVPR 2017 (arXiv:1703.02719).
    """

    # Every map of the head has a channel per class: outputs of all its convolutions, and inputs of
    # those that read a score map.
    CLASS_ROWS: ClassVar[dict[str, int]] = {"context": 1, "refine": 1, "up": 1}
    CLASS_COLUMNS: ClassVar[dict[str, int]] = {
        **{f"context.{i}.down_across.1": 1 for i in range(len(_LEVELS))},
        **{f"context.{i}.across_down.1": 1 for i in range(len(_LEVELS))},
        "refine": 1,
        "up": 1,
    }

    def __init__(self, cfg: GCNConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            levels=_LEVELS,
            norm=cfg.norm,
            style=cfg.backbone_style,
        )
        classes, levels = cfg.num_classes, len(_LEVELS)
        # All lists run from the deepest map upwards.
        self.context = nn.ModuleList(
            GlobalConv(channels, classes, kernel=cfg.kernel)
            for channels in reversed(self.backbone.channels)
        )
        refined = 2 * levels + 1 if cfg.with_refinement else 0  # one per level, one per doubling
        self.refine = nn.ModuleList(BoundaryRefinement(classes) for _ in range(refined))
        doublings = levels + 1 if cfg.upsample == "deconv" else 0
        self.up = nn.ModuleList(BilinearDeconv(classes) for _ in range(doublings))
        self.criterion = PixelCriterion(cfg.loss, cfg.class_weights)

    def forward(self, images: Tensor) -> GCNRaw:
        """[B, C, H, W] normalised images of any size → logits of that size."""
        maps = self.backbone(images)[::-1]
        scores = [
            self._refine(i, context(x))
            for i, (context, x) in enumerate(zip(self.context, maps, strict=True))
        ]
        height, width = _size(images)
        sizes = [*map(_size, scores[1:]), ((height + 1) // 2, (width + 1) // 2), (height, width)]
        joining = [*scores[1:], None, None]  # nothing joins at strides 2 and 1
        x = scores[0]  # [B, K, H/32, W/32]
        for i, (size, score) in enumerate(zip(sizes, joining, strict=True)):
            x = self._double(i, x, size)
            x = self._refine(len(scores) + i, x if score is None else x + score)
        return GCNRaw(x)

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel".

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        return {"pixel": self.criterion(self(images).logits, labels, own)}

    @torch.no_grad()
    def decode(
        self, raw: GCNRaw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        return logits_to_predictions(raw.logits, sizes, align_corners=False, with_probs=with_probs)

    def _refine(self, number: int, x: Tensor) -> Tensor:
        return self.refine[number](x) if self.cfg.with_refinement else x

    def _double(self, number: int, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Score maps [B, K, h, w] at twice the resolution, `size`: 2h or 2h - 1, and so for w."""
        if self.cfg.upsample == "deconv":
            y = self.up[number](x)  # [B, K, 2h, 2w]
            # Negative padding cuts; a slice would compare sizes, which fixes them in an export.
            return F.pad(y, (0, size[1] - y.shape[3], 0, size[0] - y.shape[2]))
        return resize(x, size, align_corners=True)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]
