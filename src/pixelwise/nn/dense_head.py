"""A head that predicts at every cell of a pyramid, with one set of weights for all levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct


class DenseHead(nn.Module):
    """A tower of 3x3 convolutions with ReLU, and one 3x3 convolution behind it per output.

    RetinaNet and FCOS have two such heads, YOLACT one whose outputs share the tower.

    Args:
        in_channels: of every level.
        channels:    of the tower.
        outputs:     channels of each output by its name.
        convs:       of the tower.
        norm:        after each convolution of the tower, see `make_norm`; None: biases instead.
        bias:        of the tower's convolutions; None where there is no norm.

    Source:  Lin et al., "Focal Loss for Dense Object Detection" (arXiv:1708.02002), section 4.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        outputs: Mapping[str, int],
        *,
        convs: int,
        norm: str | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            *(
                ConvNormAct(in_channels if i == 0 else channels, channels, norm=norm, bias=bias)
                for i in range(convs)
            )
        )
        width = channels if convs else in_channels
        self.outputs = nn.ModuleDict(
            {name: nn.Conv2d(width, count, 3, padding=1) for name, count in outputs.items()}
        )

    def forward(self, levels: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Predict on every level.

        Args:
            levels: L of [B, in_channels, h_l, w_l].

        Returns:
            Per output, L of [B, channels of the output, h_l, w_l].
        """
        hidden = [self.tower(level) for level in levels]
        return {name: [conv(x) for x in hidden] for name, conv in self.outputs.items()}


def flatten_levels(maps: Sequence[Tensor], channels: int) -> Tensor:
    """All predictions of an image in one row: finest level first, then rows, columns, anchors.

    Args:
        maps:     L of [B, C * A, h_l, w_l]; channel c * A + a is number c of anchor a, so that all
            numbers of one class lie together.
        channels: C, numbers per anchor.

    Returns:
        [B, sum of h_l * w_l * A, C].
    """
    flat: list[Tensor] = []
    for level in maps:
        # Anchor by anchor: one permutation of all numbers takes ONNX Runtime several times as long.
        anchors = level.unflatten(1, (channels, -1)).unbind(2)  # A of [B, C, h, w]
        rows = torch.stack([anchor.permute(0, 2, 3, 1) for anchor in anchors], dim=3)
        flat.append(rows.flatten(1, 3))
    return torch.cat(flat, dim=1)


def best_of_levels(scores: Tensor, counts: Sequence[int], most: int) -> Tensor:
    """Which predictions are among the best of their level.

    Args:
        scores: [B, N], level by level.
        counts: predictions of each level; their sum is N.
        most:   to keep per level.

    Returns:
        [B, N] bool.
    """
    kept = [
        torch.zeros_like(level, dtype=torch.bool).scatter(
            1, level.topk(min(most, level.shape[1]), dim=1).indices, True
        )
        for level in scores.split(list(counts), dim=1)
    ]
    return torch.cat(kept, dim=1)
