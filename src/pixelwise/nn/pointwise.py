"""1x1 convolutions on a CPU."""

from __future__ import annotations

from torch import nn


def use_onednn(network: nn.Module) -> None:
    """Let oneDNN compute 1x1 convolutions also where there is one thread, in place.

    On one thread PyTorch (2.14) gives them to its own product of matrices, which takes twice as
    long, unless they are dilated. For a kernel of one cell dilation means nothing, so outputs stay
    the same up to rounding.

    Args:
        network: any.
    """
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1):
            conv.dilation = (2, 2)
