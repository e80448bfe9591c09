"""FCN's skips: a coarse map of scores, refined with the scores of shallower maps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.nn.bilinear_deconv import BilinearDeconv
from pixelwise.ops.alignment import Window, compose, crop_offset
from pixelwise.ops.resize import resize

_DOUBLING = Window(4, 2, transposed=True)


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


def border_crops(paths: Sequence[Sequence[Window]], factor: int) -> Crops:
    """The cuts that follow from the geometry of a network whose first layer pads generously.

    Args:
        paths:  the layers from the image to each score map, deepest map first; each map has half
                the stride of the one before.
        factor: of the last upsampling: the stride of the shallowest map.

    Returns:
        The last kernel has 2 * factor taps, or one less where only an odd one puts cells on pixels.

    Raises:
        ValueError: two maps lie between each other's cells, so that no cut fits.

    Source: FCN (arXiv:1411.4038): the numbers of its released networks, 5, 9, 31 and so on.
    """
    layers = list(paths[0])
    skips: list[int] = []
    for path in paths[1:]:
        layers.append(_DOUBLING)
        skips.append(crop_offset(path, layers))
    shift = Fraction(0)
    for kernel in (2 * factor, 2 * factor - 1):
        shift = compose([*layers, Window(kernel, factor, transposed=True)]).shift
        if shift.denominator == 1:
            return Crops(tuple(skips), int(shift), factor, kernel)
    raise ValueError(f"upsampled {factor} times, the map lies {shift} pixels from the image")


class SkipFusion(nn.Module):
    """Score maps of several depths, added from the deepest up; each step doubles the resolution.

    A 1x1 convolution of the concatenated maps would compute the same as one 1x1 convolution per map
    and a sum. All score layers start at zero, so that a new shallower one leaves what is trained
    unchanged.

    Args:
        num_classes: K.
        channels:    of the maps, deepest first.
        scales:      constant factor on each map before its score layer; None for 1.
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
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)
        self.doublings = nn.ModuleList()
        if learn or crops is not None:
            padding = 1 if crops is None else 0
            self.doublings.extend(
                BilinearDeconv(num_classes, 2, padding=padding) for _ in channels[1:]
            )
            self.doublings.requires_grad_(learn)
        self.last = None
        if crops is not None:
            last = BilinearDeconv(num_classes, crops.factor, kernel=crops.kernel, padding=0)
            self.last = last.requires_grad_(False)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Scores of the shallowest map.

        Args:
            maps: [B, channels, h, w] each, deepest first.
            size: of the image.

        Returns:
            [B, K, h, w] of the shallowest map, or [B, K, *size] with crops.
        """
        total, *skips = (
            layer(x if scale == 1 else x * scale)
            for layer, x, scale in zip(self.score, maps, self.scales, strict=True)
        )
        for step, skip in enumerate(skips):
            total = self._add(step, total, skip)
        if self.last is None or self.crops is None:
            return total
        return _cut(self.last(total), self.crops.whole, size)

    def _add(self, step: int, total: Tensor, skip: Tensor) -> Tensor:
        """[B, K, h, w], doubled, and a skip: of the latter's size, or 2h + 2 rows with crops."""
        if self.crops is not None:
            doubled = self.doublings[step](total)  # [B, K, 2h + 2, 2w + 2]
            return doubled + _cut(skip, self.crops.skips[step], _size(doubled))
        if not self.doublings:
            return resize(total, _size(skip)) + skip
        return _cut(self.doublings[step](total), 0, _size(skip)) + skip


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _cut(x: Tensor, start: int, size: tuple[int, int]) -> Tensor:
    """[B, C, h, w] → [B, C, *size] from cell `start` on, on both axes."""
    # Negative padding cuts; a slice would compare sizes, which fixes them in an export.
    below, right = (n - full + start for n, full in zip(size, _size(x), strict=True))
    return F.pad(x, (-start, right, -start, below))
