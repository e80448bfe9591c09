"""The head of FCOS: towers of convolutions side by side, their outputs scaled level by level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.dense_head import DenseHead

PRIOR_PROB = 0.01  # of every class at the start, so that background does not swamp the loss


class TowerHead(nn.Module):
    """Predict at every cell of a pyramid, with one tower per kind of output.

    All levels share the weights. What one convolution says about small and large objects differs in
    scale, so an output may be multiplied by one learned number per level.

    Args:
        channels: of every level.
        width:    of the towers.
        towers:   per tower the channels of each of its outputs: {"category": {"classify": 80},
                  "box": {"regress": 4, "centerness": 1}}. The output "classify" starts at
                  PRIOR_PROB. Names are no words of Python ("class"), or exporting fails.
        levels:   L.
        convs:    3x3 convolutions of each tower; may be 0.
        shared_convs: of a tower before all others.
        norm:     after every convolution of a tower, see `make_norm`.
        bias:     of the towers' convolutions.
        scaled:   names of the outputs with a learned number per level.

    Source:  FCOS (arXiv:1904.01355), section 3.1 and 3.2; the prior: arXiv:1708.02002, section 3.3.
    """

    def __init__(  # noqa: PLR0913 (what published heads vary)
        self,
        channels: int,
        width: int,
        towers: Mapping[str, Mapping[str, int]],
        *,
        levels: int,
        convs: int = 4,
        shared_convs: int = 0,
        norm: str | None = "group",
        bias: bool = True,
        scaled: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            *(
                ConvNormAct(width if i else channels, width, norm=norm, bias=bias)
                for i in range(shared_convs)
            )
        )
        fed = width if shared_convs else channels
        self.towers = nn.ModuleDict(
            {
                name: DenseHead(fed, width, outputs, convs=convs, norm=norm, bias=bias)
                for name, outputs in towers.items()
            }
        )
        self.scales = nn.ModuleDict(
            {name: nn.ParameterList(torch.ones(1) for _ in range(levels)) for name in scaled}
        )
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    prior = -math.log(1 / PRIOR_PROB - 1) if name.endswith(".classify") else 0.0
                    nn.init.constant_(module.bias, prior)

    def forward(self, levels: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Predict on every level.

        Args:
            levels: L of [B, channels, h_l, w_l].

        Returns:
            Per output, L of [B, channels of the output, h_l, w_l].
        """
        return self.outputs(self.hidden(levels))

    def hidden(self, levels: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """What each tower ends with, L of [B, width, h_l, w_l]; without convs what enters it."""
        shared = [self.shared(level) for level in levels]
        return {
            name: [cast("DenseHead", head).tower(x) for x in shared]
            for name, head in self.towers.items()
        }

    def outputs(self, hidden: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """The second half of `forward`, from the result of `hidden`."""
        maps: dict[str, list[Tensor]] = {}
        for tower, head in self.towers.items():
            for name, conv in cast("DenseHead", head).outputs.items():
                maps[name] = [conv(x) for x in hidden[tower]]
        for name, scales in self.scales.items():
            learned = cast("nn.ParameterList", scales)
            maps[name] = [x * scale for x, scale in zip(maps[name], learned, strict=True)]
        return maps
