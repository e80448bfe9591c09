"""The mask IoU head: how well does a predicted mask fit its object?"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.regions import Regions
from pixelwise.ops.masks import shares_inside

MaskIoUPool = Literal["flatten", "mean"]
_CONVS = 4  # Mask Scoring R-CNN, figure 3; the last one has stride 2


class MaskIoUHead(nn.Module):
    """Regress the IoU between the mask of a region and the object that it stands for.

    The class score says how sure the class is, not how good the mask is. This head sees the
    region's features together with the mask that was predicted from them.

    Args:
        in_channels: C of the mask head's region features.
        num_classes: K; one IoU for each, since what a good mask looks like depends on the class.
        side:        height and width of the region features, cells, even.
        channels:    of the convolutions.
        out_features: of the two fully connected layers.
        pool:        "flatten" reads all cells in order; "mean" averages them before the first
            fully connected layer.

    Source:  Huang et al., "Mask Scoring R-CNN" (arXiv:1903.00241), section 3.3 and figure 3.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        side: int = 14,
        channels: int = 256,
        out_features: int = 1024,
        pool: MaskIoUPool = "flatten",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool: MaskIoUPool = pool
        self.convs = nn.Sequential(
            *(
                ConvNormAct(
                    in_channels + 1 if i == 0 else channels,
                    channels,
                    3,
                    stride=2 if i == _CONVS - 1 else 1,
                    norm=None,
                )
                for i in range(_CONVS)
            )
        )
        cells = 1 if pool == "mean" else (side // 2) ** 2
        self.fcs = nn.Sequential(
            nn.Linear(channels * cells, out_features),
            nn.ReLU(inplace=True),
            nn.Linear(out_features, out_features),
            nn.ReLU(inplace=True),
        )
        self.iou = nn.Linear(out_features, num_classes)
        for layer in self.fcs:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.iou.weight, std=0.01)
        nn.init.zeros_(self.iou.bias)

    def predict(self, features: Tensor, logits: Tensor) -> Tensor:
        """Estimate the IoU of each region's mask, were it of each of the classes.

        Args:
            features: [R, C, s, s], what the mask head saw.
            logits:   [R, 2s, 2s] of the mask, of the region's class.

        Returns:
            [R, K], not bounded to [0, 1].
        """
        mask = F.max_pool2d(logits.sigmoid()[:, None], kernel_size=2)  # [R, 1, s, s]
        x = self.convs(torch.cat([features, mask.to(features.dtype)], dim=1))  # [R, 256, s/2, s/2]
        x = x.mean(dim=(2, 3)) if self.pool == "mean" else x.flatten(1)  # channel, then y, then x
        return self.iou(self.fcs(x)).float()

    def of_class(self, ious: Tensor, labels: Tensor) -> Tensor:
        """[R] estimates for each region's class, from [R, K] and [R] int64 in 0..K-1."""
        return ious.gather(1, labels[:, None])[:, 0]

    @torch.no_grad()
    def targets(self, logits: Tensor, regions: Regions) -> Tensor:
        """IoU of the predicted masks, binarised at probability 0.5, with the whole objects.

        A region may cut off a part of its object. What is inside is compared cell by cell; what is
        outside counts in the union, its area known from the share of the object that is inside.

        Args:
            logits:  [R, M, M] of the object's class.
            regions: the R regions.

        Returns:
            [R] in [0, 1]; 0 where a region is matched to no object.

        Source:  Mask Scoring R-CNN (arXiv:1903.00241), section 3.3.
        Differs: MMDetection compares logits, not probabilities, with 0.5.
        """
        inside = regions.objects  # [F]
        wanted = regions.object_masks(logits.shape[-1]) > 0  # [R, M, M]
        found = logits > 0  # [R, M, M]
        share = shares_inside(regions.masks, regions.rois[inside, 1:], regions.gt_index[inside])
        common = (found & wanted).sum(dim=(1, 2))  # [R] cells
        whole = wanted.sum(dim=(1, 2)).float()
        whole[inside] /= share.clamp(min=1e-10)
        union = found.sum(dim=(1, 2)) + whole - common  # [R]
        return torch.where(regions.is_object, common / union.clamp(min=1), 0.0)

    def loss(self, ious: Tensor, logits: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Half the squared error for the object's class, mean over masks that meet their object.

        Args:
            ious:    [R, K] of `predict`.
            logits:  [R, M, M], the masks that it judged.
            regions: the R regions, of `Regions.foreground`.

        Returns:
            "mask_iou", a scalar; 0 where no mask meets an object.
        """
        wanted = self.targets(logits, regions)  # [R]
        chosen = self.of_class(ious, regions.labels.clamp(0, self.num_classes - 1))
        counted = wanted > 0  # [R]
        total = (0.5 * (chosen - wanted) ** 2 * counted).sum()
        return {"mask_iou": total / counted.sum().clamp(min=1)}
