"""The parts of a two-path network: detail on a short path, context on a deep one, joined by gates.

Every gate is one number per channel of the whole image, between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm

FusionGate = Literal["two_layer", "norm", "norm_relu"]


class SpatialPath(nn.Sequential):
    """Few wide convolutions down to stride 8, which keep where things are.

    Args:
        in_channels: of the images.
        widths:      three: 3x3 convolutions of stride 2 (the paper); four: the first is 7x7, and a
                     1x1 without stride follows (the authors' and all later code).
        norm:        see `make_norm`.

    Source: BiSeNet (arXiv:1808.00897), section 3.1.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], *, norm: Norm | str | None = "batch"
    ) -> None:
        kernels = (3, 3, 3) if len(widths) == 3 else (7, 3, 3, 1)
        inputs = (in_channels, *widths[:-1])
        super().__init__(
            *(
                ConvNormAct(c_in, c_out, kernel, stride=1 if kernel == 1 else 2, norm=norm)
                for c_in, c_out, kernel in zip(inputs, widths, kernels, strict=True)
            )
        )


class AttentionRefinement(nn.Module):
    """A map whose channels are weighed by what the whole image holds.

    Args:
        in_channels:  of the map.
        out_channels: of the 3x3 convolution before the gate.
        norm:         see `make_norm`; where batch norm meets a single image in training, the gate
                      uses its running statistics (see `BatchNorm`).

    Source:  BiSeNet (arXiv:1808.00897), section 3.2 and figure 2(b).
    Differs: figure 2(b) draws no convolution before the gate; the authors' code and all ports have
        it, since it brings the maps to one width.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: Norm | str | None = "batch"
    ) -> None:
        super().__init__()
        self.project = ConvNormAct(in_channels, out_channels, norm=norm)
        self.attend = ConvNormAct(out_channels, out_channels, 1, bias=False, norm=norm, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, H, W]."""
        x = self.project(x)
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """[B, out, H, W] → [B, out, 1, 1] in (0, 1)."""
        return self.attend(x.mean((2, 3), keepdim=True)).sigmoid()


class FeatureFusion(nn.Module):
    """Join two maps of different kind, and let the image choose among their channels.

    Args:
        in_channels:  of both maps together.
        out_channels: of the fused map.
        gate: "two_layer": 1x1, ReLU, 1x1 (the paper); "norm": one 1x1 with norm (CoinCheung);
              "norm_relu": a ReLU after that (mmseg), so that the gate is at least one half.
        norm: see `make_norm`.

    Source: BiSeNet (arXiv:1808.00897), section 3.3 and figure 2(c), after squeeze-and-excitation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        gate: FusionGate = "two_layer",
        norm: Norm | str | None = "batch",
    ) -> None:
        super().__init__()
        self.fuse = ConvNormAct(in_channels, out_channels, 1, norm=norm)
        if gate == "two_layer":
            self.attend: nn.Module = nn.Sequential(
                ConvNormAct(out_channels, out_channels, 1, bias=False, norm=None),
                ConvNormAct(out_channels, out_channels, 1, bias=False, norm=None, act=None),
            )
        else:
            act = "relu" if gate == "norm_relu" else None
            self.attend = ConvNormAct(out_channels, out_channels, 1, bias=False, norm=norm, act=act)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        """[B, C1, H, W] and [B, C2, H, W] → [B, out, H, W], at most twice the fused map."""
        x = self.fuse(torch.cat([detail, context], 1))
        return x + x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """[B, out, H, W] → [B, out, 1, 1] in (0, 1)."""
        return self.attend(x.mean((2, 3), keepdim=True)).sigmoid()
