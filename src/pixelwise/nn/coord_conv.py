"""CoordConv: tell a convolution where it is."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Axes = Literal["xy", "x", "y", ""]


def with_coordinates(x: Tensor, axes: Axes = "xy") -> Tensor:
    """Append planes of normalised coordinates to feature maps.

    A convolution is equivariant to shifts: alone, it cannot tell two equal objects apart.

    Args:
        x:    [B, C, h, w].
        axes: which planes, x before y; "" appends none.

    Returns:
        [B, C + len(axes), h, w]; the planes run from -1 to 1, the centres of the outermost cells.

    Source:  Liu et al., "An Intriguing Failing of Convolutional Neural Networks and the CoordConv
        Solution" (arXiv:1807.03247), section 3; SOLO (arXiv:1912.04488), section 3.1.
    """
    batch, _, height, width = x.shape
    planes = {
        "x": torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device)[None],  # [1, w]
        "y": torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)[:, None],  # [h, 1]
    }
    return torch.cat([x, *(planes[a].expand(batch, 1, height, width) for a in axes)], dim=1)
