"""AlexNet as Caffe's reference model has it, the smallest of FCN's three networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.nn.norm import Norm
from pixelwise.ops.alignment import Window

# Sets of knobs: arguments of `AlexNet`.
STYLES: dict[str, dict[str, Any]] = {
    "aligned": {"first_padding": 5, "pool_padding": 1},  # every map has ceil(H / stride) rows
    "caffe": {"first_padding": 0, "pool_padding": 0},
    "fcn": {"first_padding": 100, "pool_padding": 0},  # takes images of any size
}


class Layer(NamedTuple):
    """One convolution and whether a pool and a response normalisation follow it."""

    channels: int
    kernel: int
    groups: int = 1
    pool: bool = False
    norm: bool = False


_LAYERS = (
    Layer(96, 11, pool=True, norm=True),
    Layer(256, 5, groups=2, pool=True, norm=True),
    Layer(384, 3),
    Layer(384, 3, groups=2),
    Layer(256, 3, groups=2, pool=True),
)
_FIRST_STRIDE = 4
_LAST = {2: 1, 3: 1, 4: 2, 5: 5}  # level -> number of its last convolution


class AlexNet(nn.Module):
    """The five convolutions of AlexNet as a list of feature maps.

    The order is ReLU, pool, response normalisation (CaffeNet), and the widths are 96, 256, 384,
    384, 256; torchvision's network of this name is a later one (64, 192, 384, 256, 256, no groups).

    Levels: 2 the first convolution (stride 4), 3 its pool and normalisation (8), 4 the second's
    (16), 5 the last pool (32).

    Args:
        in_channels:   of the images.
        output_stride: 32.
        levels:        which maps to return; layers after the last are not built.
        norm:          ignored: the response normalisation has nothing to choose.
        first_padding: zeros around the image, in pixels, at the first convolution.
        pool_padding:  of the 3x3/2 pools, whose sizes are rounded up without and down with it.

    Attributes:
        channels: of each returned map.  strides: input pixels per cell of each returned map.

    Source: Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional Neural
        Networks (NeurIPS 2012), in Caffe's form.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        levels: Sequence[int] = (5,),
        norm: Norm | str | None = None,
        first_padding: int = 5,
        pool_padding: int = 1,
    ) -> None:
        super().__init__()
        if output_stride != 32:
            raise UsageError(f"alexnet has output_stride 32, not {output_stride}")
        self.levels = tuple(sorted(levels))
        if not set(self.levels) <= set(_LAST):
            raise UsageError(f"alexnet has levels 2 to 5, not {', '.join(map(str, self.levels))}")
        self.layers = _LAYERS[: _LAST[self.levels[-1]]]
        width = in_channels
        for i, layer in enumerate(self.layers, start=1):
            conv = nn.Conv2d(
                width,
                layer.channels,
                layer.kernel,
                stride=_FIRST_STRIDE if i == 1 else 1,
                padding=first_padding if i == 1 else layer.kernel // 2,
                groups=layer.groups,
            )
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(cast("Tensor", conv.bias))
            self.add_module(f"conv{i}", conv)
            width = layer.channels
        # Zeros behind a ReLU round the size up; torch's own rounding up has a rule that exporters
        # cannot follow.
        self.room = 0 if pool_padding else 1
        self.pool = nn.MaxPool2d(3, 2, pool_padding)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        self.channels = tuple(_LAYERS[_LAST[level] - 1].channels for level in self.levels)
        self.strides = tuple(2**level for level in self.levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        x, maps = images, dict[int, Tensor]()
        level = 2
        for i, layer in enumerate(self.layers, start=1):
            x = F.relu(self.get_submodule(f"conv{i}")(x))
            if i == 1:
                maps[2] = x  # [B, 96, H/4, W/4]
            if layer.pool and self.levels[-1] > level:
                x = self.pool(F.pad(x, (0, self.room, 0, self.room)) if self.room else x)
                x = self.norm(x) if layer.norm else x
                level += 1
                maps[level] = x
        return [maps[level] for level in self.levels]

    def windows(self, level: int) -> list[Window]:
        """The convolutions and pools that lead to a level, for `ops.alignment`."""
        found: list[Window] = []
        reached = 2
        for i, layer in enumerate(self.layers, start=1):
            conv = cast("nn.Conv2d", self.get_submodule(f"conv{i}"))
            found.append(Window(layer.kernel, conv.stride[0], cast("int", conv.padding[0])))
            if layer.pool and level > reached:
                found.append(Window(3, 2, cast("int", self.pool.padding)))
                reached += 1
        return found

    def freeze(self, stages: int) -> None:
        """Stop training the first convolutions.

        Args:
            stages: 0 none, n the first n.
        """
        for name, conv in self.named_children():
            if name.startswith("conv") and int(name[4]) <= stages:
                conv.requires_grad_(False)
