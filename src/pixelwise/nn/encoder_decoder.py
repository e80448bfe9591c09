"""U-Net's two paths: one contracts, the other expands and takes back what it needs of the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm

Padding = Literal["same", "valid"]
Upsample = Literal["deconv", "bilinear", "nearest"]


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with norm and ReLU.

    Weights start with standard deviation sqrt(2 / N), N the inputs of one output (section 3).

    Args:
        in_channels, out_channels: of the pair; the first convolution changes the number.
        padding: "valid" loses 2 pixels on every side, "same" none.
        norm:    see `make_norm`; the paper has none.

    Source: U-Net (arXiv:1505.04597), section 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        padding: Padding = "same",
        norm: Norm | str | None = None,
    ) -> None:
        amount = 0 if padding == "valid" else 1
        convs = [
            ConvNormAct(channels, out_channels, padding=amount, norm=norm)
            for channels in (in_channels, out_channels)
        ]
        for conv in convs:
            nn.init.kaiming_normal_(conv.conv.weight, mode="fan_in", nonlinearity="relu")
        super().__init__(*convs)


class ContractingPath(nn.Module):
    """Levels of two convolutions with a 2x2 max-pool between them; a `Backbone` in its interface.

    With padded convolutions a level has ceil(size / stride) cells, as everywhere in our code.

    Args:
        widths:      channels of each level; each has half the resolution of the one before.
        in_channels: of the images.
        padding:     see `DoubleConv`.
        norm:        see `make_norm`.

    Attributes:
        channels: of each level.  strides: 1, 2, 4 and so on.

    Source: U-Net (arXiv:1505.04597), section 2 and figure 1, the left side.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        *,
        in_channels: int = 3,
        padding: Padding = "same",
        norm: Norm | str | None = None,
    ) -> None:
        super().__init__()
        self.channels = tuple(widths)
        self.strides = tuple(2**i for i in range(len(widths)))
        # The repeated border keeps the last half window. A pool that rounds up would do the same,
        # but it compares sizes, which fixes them in an export.
        border = nn.ReplicationPad2d((0, 1, 0, 1)) if padding == "same" else nn.Identity()
        self.pool = nn.Sequential(border, nn.MaxPool2d(2))
        self.levels = nn.ModuleList()
        for width in widths:
            self.levels.append(DoubleConv(in_channels, width, padding=padding, norm=norm))
            in_channels = width
        self._frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        maps: list[Tensor] = []
        x = images
        for i, level in enumerate(self.levels):
            x = level(x if i == 0 else self.pool(x))
            maps.append(x)
        return maps

    def freeze(self, stages: int) -> None:
        """Stop training the first levels, their batch statistics included."""
        self._frozen = stages
        self.levels[:stages].requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ContractingPath:
        """As usual; frozen levels stay in evaluation."""
        super().train(mode)
        self.levels[: self._frozen].eval()
        return self


class UpBlock(nn.Module):
    """Double the resolution, join the map of the contracting path, convolve twice.

    Two maps that are joined lie on the same pixels, so neither is ever resized to fit the other.
    Valid convolutions make the skip the larger one: its centre is cut out. With padded ones the
    upsampled map may have a row or column too many, where a level had an odd size: they are cut.

    Args:
        in_channels:   of the coarse map.
        skip_channels: of the map that joins, 0 for none.
        out_channels:  after the two convolutions.
        upsample:      "deconv": learnt 2x2 transposed convolution that brings `out_channels` (the
                       paper); "bilinear": then a 1x1 convolution to `out_channels` (mmseg);
                       "nearest": nothing learnt, the channels stay, and the skip is joined last
                       instead of first (segmentation_models.pytorch).
        padding, norm: see `DoubleConv`.

    Source: U-Net (arXiv:1505.04597), section 2 and figure 1, the right side.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        upsample: Upsample = "deconv",
        padding: Padding = "same",
        norm: Norm | str | None = None,
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.padding = padding
        self.reduce: nn.Module = nn.Identity()
        upsampled = in_channels if upsample == "nearest" else out_channels
        if upsample == "deconv":
            self.reduce = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
            # Each output has one tap, so N is the number of input channels.
            nn.init.normal_(self.reduce.weight, std=(2 / in_channels) ** 0.5)
        elif upsample == "bilinear":
            self.reduce = ConvNormAct(in_channels, out_channels, 1, norm=norm)
        self.fuse = DoubleConv(skip_channels + upsampled, out_channels, padding=padding, norm=norm)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Coarse map and skip → the map at twice the resolution.

        Args:
            x:    [B, in, h, w].
            skip: [B, skip, H, W], or None; 2h - 1 or 2h rows at "same" padding, more at "valid".

        Returns:
            [B, out, H, W] at "same" padding (2h and 2w without a skip), 2h - 4 and 2w - 4 at
            "valid".
        """
        x = self._double(x)
        if skip is None:
            return self.fuse(x)
        if self.padding == "valid":
            skip = crop_centre(skip, (x.shape[2], x.shape[3]))
        else:
            x = cut_end(x, (skip.shape[2], skip.shape[3]))
        return self.fuse(torch.cat([x, skip] if self.upsample == "nearest" else [skip, x], 1))

    def _double(self, x: Tensor) -> Tensor:
        if self.upsample == "bilinear":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        elif self.upsample == "nearest":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.reduce(x)


def crop_centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the middle out of maps.

    Args:
        x:    [B, C, H, W].
        size: (height, width), at most H and W.

    Returns:
        [B, C, *size]; of an odd surplus the larger half is at the end.
    """
    top, left = (x.shape[2] - size[0]) // 2, (x.shape[3] - size[1]) // 2
    return x[:, :, top : top + size[0], left : left + size[1]]


def cut_end(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut surplus rows and columns off the bottom and the right of maps.

    Args:
        x:    [B, C, H, W].
        size: (height, width), at most H and W.

    Returns:
        [B, C, *size].
    """
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        # A slice would compare sizes, which fixes them in an export; negative padding cuts too.
        return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))
    return x[:, :, : size[0], : size[1]]  # not a copy, which padding by nothing is


class ExpandingPath(nn.Module):
    """From the deepest map back up, one block per factor of 2.

    Args:
        in_channels:   of the deepest map.
        skip_channels: of the map that joins in each block, deepest first; 0 where none does.
        widths:        channels that each block gives.
        upsample, padding, norm: see `UpBlock`.

    Attributes:
        channels: that each block gives.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: Sequence[int],
        widths: Sequence[int],
        *,
        upsample: Upsample = "deconv",
        padding: Padding = "same",
        norm: Norm | str | None = None,
    ) -> None:
        super().__init__()
        self.channels = tuple(widths)
        self.blocks = nn.ModuleList()
        for skip, width in zip(skip_channels, widths, strict=True):
            self.blocks.append(
                UpBlock(in_channels, skip, width, upsample=upsample, padding=padding, norm=norm)
            )
            in_channels = width

    def forward(self, x: Tensor, skips: Sequence[Tensor | None]) -> list[Tensor]:
        """The deepest map and one skip per block, deepest first → the output of every block."""
        maps: list[Tensor] = []
        for block, skip in zip(self.blocks, skips, strict=True):
            x = block(x, skip)
            maps.append(x)
        return maps


def valid_margin(levels: int) -> int:
    """What a U-Net of valid convolutions loses on each side: 92 pixels with 5 levels.

    Two convolutions lose 4 input pixels times the stride of their level; on the way up, all levels
    but the deepest have two more: 4 (2S - 1) + 4 (S - 1) on both sides together, S the stride of
    the deepest level.

    Args:
        levels: of the contracting path.
    """
    return 6 * 2 ** (levels - 1) - 4


def valid_output_size(size: int, levels: int) -> int:
    """The smallest output of a valid U-Net that covers `size` pixels: 4 + nS.

    An input of it is larger by two `valid_margin`s; then every max-pool meets an even size.

    Args:
        size:   to cover, at least 1.
        levels: of the contracting path.
    """
    stride = 2 ** (levels - 1)
    return 4 + (size - 4 + stride - 1) // stride * stride


def pad_mirrored(images: Tensor, amounts: tuple[int, int, int, int]) -> Tensor:
    """Extend images by mirroring them at their border pixels, as often as it takes.

    `torch.nn.functional.pad` stops where the margin exceeds the image; a small image needs more.

    Args:
        images:  [B, C, H, W].
        amounts: pixels at the (left, right, top, bottom).

    Returns:
        [B, C, top + H + bottom, left + W + right].

    Source: U-Net (arXiv:1505.04597), section 2, the overlap-tile strategy.
    """
    left, right, top, bottom = amounts
    rows = _mirrored(images.shape[2], top, bottom, images.device)
    columns = _mirrored(images.shape[3], left, right, images.device)
    return images.index_select(2, rows).index_select(3, columns)


def _mirrored(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Source position of each pixel of an axis that is continued in a zigzag at both ends."""
    last = length - 1
    # A single pixel has no neighbour to mirror; its zigzag has the period 1.
    period = 2 * last if length > 1 else 1
    position = torch.arange(-before, length + after, device=device).remainder(period)
    return torch.where(position > last, period - position, position)
