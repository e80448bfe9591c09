"""Bottom-up path aggregation: a second, short way from the finest level to the coarsest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.blocks import Act, ConvNormAct

Chain = Literal["output", "sum"]


class PathAggregation(nn.Module):
    """Carry what the finest level of a pyramid sees up to the coarsest in a few convolutions.

    In an FPN a fine detail reaches the coarsest level through the whole backbone. Here each level
    receives the one below it, halved by a 3x3 convolution; a second 3x3 convolution smooths the
    sum. The finest level stays as it is. One more level, every second cell of the last, follows.

    Args:
        channels: of every level.
        levels:   L, those of the pyramid that take part.
        chain:    "output": what climbs is the smoothed level (the paper); "sum": the sum before it
            is smoothed, so that the smoothing convolutions are side branches (OpenMMLab).
        norm:     of all convolutions, see `make_norm`; None: biases instead.
        act:      after all convolutions; "relu" in the paper.

    Source:  PANet (arXiv:1803.01534), section 3.1.
    Differs: the released code adds the ReLUs only together with a norm; OpenMMLab has none.
    """

    def __init__(
        self,
        channels: int = 256,
        levels: int = 4,
        *,
        chain: Chain = "output",
        norm: str | None = None,
        act: Act | None = "relu",
    ) -> None:
        super().__init__()
        self.chain: Chain = chain
        # The released convolutions have biases also under their norms, OpenMMLab's have not.
        bias = True if chain == "output" else None

        def conv(stride: int) -> ConvNormAct:
            return ConvNormAct(channels, channels, 3, stride=stride, bias=bias, norm=norm, act=act)

        self.down = nn.ModuleList(conv(2) for _ in range(levels - 1))
        self.output = nn.ModuleList(conv(1) for _ in range(levels - 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Climb from the finest level to the coarsest.

        Args:
            pyramid: L or more of [B, channels, h_l, w_l], finest first, each ceil(half) of the one
                before it; levels after the first L are left out.

        Returns:
            L + 1 of [B, channels, h_l, w_l], finest first.
        """
        levels = [pyramid[0]]
        climbing = pyramid[0]
        # strict=False: the pyramid's own extra level is made anew below.
        for above, down, output in zip(pyramid[1:], self.down, self.output, strict=False):
            total = above + down(climbing)  # [B, channels, h_l, w_l]
            levels.append(output(total))
            climbing = total if self.chain == "sum" else levels[-1]
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]
