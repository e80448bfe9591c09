"""FCN's skips: a coarse map of scores, refined with the scores of shallower maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from pixelwise.nn.bilinear_deconv import BilinearDeconv
from pixelwise.ops.resize import resize


class Crops(NamedTuple):
    """How maps that carry the traces of a border around the image are laid on each other.

    Args:
        skips:  cells to leave out at the start of each shallower score map, deepest first.
        whole:  pixels to leave out at the start of the last upsampled map.
        factor: of the last upsampling.
        kernel: of the last upsampling.
    """

    skips: tuple[int, ...]
    whole: int
    factor: int
    kernel: int


class SkipFusion(nn.Module):
    """Score maps of several depths, added from the deepest up; each step doubles the resolution.

    A 1x1 convolution of the concatenated maps would compute the same as one 1x1 convolution per map
    and a sum. All score layers start at zero, so that a new shallower one leaves what is trained
    unchanged.

    Args:
        num_classes: K.
        channels:    of the maps, deepest first.
        scales:      constant factor on each map before its score layer; see `systems.fcn`.
        learn:       the doublings are transposed convolutions that start bilinear; otherwise they
                     stay bilinear: resizing to the exact size, or fixed kernels where maps are cut.
        crops:       for maps with the traces of a border: the shallower map is cut to the doubled
                     one, and the result is upsampled to the image by a fixed kernel. None: every
                     map has ceil(H / stride) rows, and the doubled one is cut to the shallower.

    Source: FCN (arXiv:1411.4038), section 4.2.
    """

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        *,
        scales: Sequence[float] | None = None,
        learn: bool = True,
        crops: Crops | None = None,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales or [1.0] * len(channels))
        self.crops = crops
        self.score = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in channels)
        for layer in self.score.parameters():
            nn.init.zeros_(layer)
        self.up = nn.ModuleList()
        if learn or crops is not None:
            padding = 1 if crops is None else 0
            for _ in channels[1:]:
                self.up.append(BilinearDeconv(num_classes, 2, padding=padding))
            self.up.requires_grad_(learn)
        if crops is not None:
            last = BilinearDeconv(num_classes, crops.factor, kernel=crops.kernel, padding=0)
            self.up.append(last.requires_grad_(False))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Scores of the shallowest map.

        Args:
            maps: [B, channels, h, w] each, deepest first.
            size: of the image.

        Returns:
            [B, K, h, w] of the shallowest map, or [B, K, *size] with crops.
        """
        scores = [
            layer(x if scale == 1 else x * scale)
            for layer, x, scale in zip(self.score, maps, self.scales, strict=True)
        ]
        total = scores[0]
        if self.crops is None:
            for i, skip in enumerate(scores[1:]):
                total = self._double(i, total, (skip.shape[2], skip.shape[3])) + skip
            return total
        for i, (skip, offset) in enumerate(zip(scores[1:], self.crops.skips, strict=True)):
            total = self.up[i](total)  # [B, K, 2h + 2, 2w + 2]
            total = total + _cut(skip, offset, (total.shape[2], total.shape[3]))
        return _cut(self.up[len(scores) - 1](total), self.crops.whole, size)

    def _double(self, step: int, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.up:
            return resize(x, size)
        return _cut(self.up[step](x), 0, size)


def _cut(x: Tensor, start: int, size: tuple[int, int]) -> Tensor:
    return x[:, :, start : start + size[0], start : start + size[1]]
