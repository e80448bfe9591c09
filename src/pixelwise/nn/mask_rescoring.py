"""Fast mask re-scoring: how well does a mask fit, judged by its shape alone."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.losses.box import smooth_l1
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.prototypes import MASK_THRESH, MaskSamples

_WIDTHS = (8, 16, 32, 64, 128)
LEAST_AREA = 25  # cells; the IoU of smaller objects is not learnt. Released code
_LEAST_SIDE = 63  # below, the convolutions without padding would leave no cell


class MaskRescoring(nn.Module):
    """Predict the IoU that a mask has with its object, for every class.

    Five convolutions of stride 2 without padding, one 1x1 and the maximum over what is left; a ReLU
    follows each, the last too, so the prediction is not negative but has no upper bound.

    Args:
        num_classes: K.

    Source:  YOLACT++ (arXiv:1912.06218), section 6.1; the maximum, which the paper calls global
        pooling, as in its released code.
    Differs: masks with a side below 63 cells get zeros at the right and the bottom.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                ConvNormAct(before, width, stride=2, padding=0, norm=None)
                for before, width in zip((1, *_WIDTHS), _WIDTHS, strict=False)
            )
        )
        self.classify = nn.Conv2d(_WIDTHS[-1], num_classes, 1)

    def forward(self, masks: Tensor) -> Tensor:
        """[N, h, w] soft masks, cropped → [N, K] predicted IoU >= 0."""
        missing = [max(0, _LEAST_SIDE - side) for side in masks.shape[1:]]
        if any(missing):
            masks = F.pad(masks, (0, missing[1], 0, missing[0]))
        x = F.relu(self.classify(self.convs(masks[:, None])))  # [N, K, h', w']
        return x.amax(dim=(2, 3))

    def of_class(self, masks: Tensor, labels: Tensor) -> Tensor:
        """[N, h, w] masks of classes [N] → [N] predicted IoU."""
        return self(masks).gather(1, labels[:, None])[:, 0]

    def loss(self, masks: MaskSamples) -> Tensor:
        """Smooth L1 between predicted and true IoU of the masks of objects that are not tiny.

        The masks are not detached, as in the released code: they learn to be easy to judge.

        Args:
            masks: R of them.

        Returns:
            The sum over the masks.
        """
        large = masks.wanted.sum(dim=(1, 2)) > LEAST_AREA  # [R]
        probs = (masks.logits.sigmoid() * masks.inside)[large]
        drawn, wanted = probs > MASK_THRESH, masks.wanted[large] > 0
        both, either = (drawn & wanted).sum(dim=(1, 2)), (drawn | wanted).sum(dim=(1, 2))
        predicted = self.of_class(probs, masks.labels[large])
        return smooth_l1(predicted.float(), both / either, beta=1.0).sum()
