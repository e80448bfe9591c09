"""Fully connected fusion: one more view of a mask, which sees the whole region at every pixel."""

from __future__ import annotations

from torch import Tensor, nn

from pixelwise.nn.blocks import Act, ConvNormAct, make_act


class FullyConnectedFusion(nn.Module):
    """Predict one class-agnostic mask with a single fully connected layer, to add to all classes'.

    A fully connected layer has its own weights at every place, so it can tell the object that fills
    the region from its neighbours, where a convolution sees only its surroundings. One layer alone
    keeps the mask's layout; a hidden one would collapse it.

    Args:
        channels: C of the features; the second convolution halves them.
        side:     height and width of the features, cells.
        norm:     of the convolutions.
        act:      after the fully connected layer; "relu" lets it only add foreground.

    Source:  PANet (arXiv:1803.01534), section 3.3 and figure 4.
    Differs: the paper names no activation of the last layer; the released code has the ReLU.
    """

    def __init__(
        self, channels: int, side: int, *, norm: str | None = None, act: Act | None = "relu"
    ) -> None:
        super().__init__()
        half = channels // 2
        self.convs = nn.Sequential(
            ConvNormAct(channels, channels, 3, norm=norm),
            ConvNormAct(channels, half, 3, norm=norm),
        )
        self.fc = nn.Linear(half * side**2, (2 * side) ** 2)
        self.act = make_act(act)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[R, C, s, s] → [R, 1, 2s, 2s], to be added to mask logits."""
        mask = self.act(self.fc(self.convs(features).flatten(1)))  # [R, 2s * 2s]
        side = 2 * features.shape[-1]
        return mask.unflatten(1, (1, side, side))
