"""VGG, the plain stack of 3x3 convolutions under FCN, DeepLab V1 and V2, and ParseNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.nn.norm import Norm
from pixelwise.ops.alignment import Window

PoolKernel = Literal[2, 3]

# Each project's set of knobs: arguments of `VGG`; what is not named has the default.
STYLES: dict[str, dict[str, Any]] = {
    "caffe": {},
    "torchvision": {"pool_ceil": False},
    "fcn": {"first_padding": 100},  # the border that lets FCN take images of any size
    "deeplab": {"pool_kernel": 3},
}


class Plan(NamedTuple):
    """What a name such as vgg16 stands for: convolutions per group, width of the first group."""

    convs: tuple[int, int, int, int, int]
    width: int = 64


VGGS: dict[str, Plan] = {
    "vgg11": Plan((1, 1, 2, 2, 2)),
    "vgg13": Plan((2, 2, 2, 2, 2)),
    "vgg16": Plan((2, 2, 3, 3, 3)),
    "vgg19": Plan((2, 2, 4, 4, 4)),
    "test_vgg": Plan((1, 1, 1, 1, 1), width=8),  # for tests, as timm's "test_" models
}


class MaxPool(nn.Module):
    """Max-pooling of non-negative maps that can lose its stride.

    A stride-1 pool of 2x2 looks to the right and below, so that its cells at multiples of the
    removed stride are those of the strided pool. Zeros are padding enough behind a ReLU, also for a
    last window that sticks out; torch's own rounding up has a rule that exporters cannot follow.

    Args:
        kernel:   2, or 3 with one cell of padding on every side.
        stride:   2 or 1.
        dilation: of a 2x2 window, the strides removed before it.
        ceil:     round the size up: a last window that sticks out counts.
    """

    def __init__(self, kernel: PoolKernel, *, stride: int, dilation: int, ceil: bool) -> None:
        super().__init__()
        self.stride = stride
        self.reach = (dilation if kernel == 2 else 0) if stride == 1 else int(ceil)
        self.pool = nn.MaxPool2d(
            kernel,
            stride,
            padding=1 if kernel == 3 else 0,
            dilation=dilation if kernel == 2 else 1,
        )

    def window(self) -> Window:
        """Its geometry."""
        kernel, stride, padding, dilation = (
            cast("int", getattr(self.pool, name))
            for name in ("kernel_size", "stride", "padding", "dilation")
        )
        return Window((kernel - 1) * dilation + 1, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H / stride, W / stride], rounded as asked."""
        if self.reach:
            x = F.pad(x, (0, self.reach, 0, self.reach))
        return self.pool(x)


class VGG(nn.Module):
    """The convolutions of a VGG as a list of feature maps, at any output stride.

    Level n is the map after the n-th pool. A pool whose cumulative stride would exceed
    `output_stride` keeps stride 1, and the convolutions behind it are dilated by what was removed:
    at output stride 8 the fourth and fifth pools have stride 1 and conv5 has dilation 2; what comes
    after the last map shall have the `dilation` of this object (4). Weights are the same.

    With the defaults a level has ceil(H / stride) rows, with `pool_ceil=False` floor(H / stride).
    3x3 pools that round up give one row more where the size before is even, as DeepLab's do.

    Args:
        name:          row of `VGGS`.
        in_channels:   of the images.
        output_stride: 8, 16 or 32.
        levels:        which maps to return; groups after the last are not built.
        norm:          ignored: these networks have none.
        pool_kernel:   2, or 3 (padded by 1) as in DeepLab.
        pool_ceil:     round sizes up, as Caffe does.
        first_padding: zeros around the image, in pixels, at the first convolution; 100 in FCN.
        before_pool:   level n is the last convolution of group n, before its pool; the last pool
                       is left to the caller (`last_pool`).

    Attributes:
        channels: of each returned map.  strides: input pixels per cell of each returned map.
        dilation: that a next convolution needs to keep its field of view.

    Source: arXiv:1409.1556, table 1; DeepLab's form: arXiv:1412.7062, section 3.1.
    """

    def __init__(  # noqa: PLR0913 (the knobs in which checkpoints differ)
        self,
        name: str = "vgg16",
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        levels: Sequence[int] = (3, 4, 5),
        norm: Norm | str | None = None,
        pool_kernel: PoolKernel = 2,
        pool_ceil: bool = True,
        first_padding: int = 1,
        before_pool: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise UsageError(f"output_stride is 8, 16 or 32, not {output_stride}")
        self.before_pool = before_pool
        self.name, plan = name, VGGS[name]
        self.levels = tuple(sorted(levels))
        self.convs = plan.convs[: self.levels[-1]]
        channels, strides = [in_channels], [1]
        dilation = 1
        for group, count in enumerate(self.convs, start=1):
            width = min(plan.width << (group - 1), 8 * plan.width)
            for i in range(count):
                first = group == 1 and i == 0
                conv = nn.Conv2d(
                    channels[-1] if i == 0 else width,
                    width,
                    3,
                    padding=first_padding if first else dilation,
                    dilation=dilation,
                )
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast("Tensor", conv.bias))
                self.add_module(f"conv{group}_{i + 1}", conv)
            step = 2 if strides[-1] * 2 <= output_stride else 1
            pool = MaxPool(pool_kernel, stride=step, dilation=dilation, ceil=pool_ceil)
            self.add_module(f"pool{group}", pool)
            channels.append(width)
            strides.append(strides[-1] * step)
            dilation *= 2 // step
        self.dilation = dilation
        self.channels = tuple(channels[level] for level in self.levels)
        self.strides = tuple(strides[level - before_pool] for level in self.levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        x, maps = images, dict[int, Tensor]()
        for group, count in enumerate(self.convs, start=1):
            for i in range(count):
                x = F.relu(self.get_submodule(f"conv{group}_{i + 1}")(x))
            if self.before_pool:
                maps[group] = x
            if not self.before_pool or group < len(self.convs):
                x = self.get_submodule(f"pool{group}")(x)
            if not self.before_pool:
                maps[group] = x
        return [maps[level] for level in self.levels]

    @property
    def last_pool(self) -> MaxPool:
        """The pool of the last group."""
        return cast("MaxPool", self.get_submodule(f"pool{len(self.convs)}"))

    def windows(self, level: int) -> list[Window]:
        """The convolutions and pools that lead to a level, for `ops.alignment`."""
        found: list[Window] = []
        for group, count in enumerate(self.convs[:level], start=1):
            for i in range(count):
                conv = cast("nn.Conv2d", self.get_submodule(f"conv{group}_{i + 1}"))
                extent = 2 * conv.dilation[0] + 1
                found.append(Window(extent, 1, cast("int", conv.padding[0])))
            pool = cast("MaxPool", self.get_submodule(f"pool{group}"))
            found.append(pool.window())
        return found

    def freeze(self, stages: int) -> None:
        """Stop training the first groups of convolutions.

        Args:
            stages: 0 none, n the first n groups.
        """
        for name, conv in self.named_children():
            if isinstance(conv, nn.Conv2d) and int(name[4]) <= stages:
                conv.requires_grad_(False)


def convolution_names(name: str) -> list[str]:
    """conv1_1, conv1_2, conv2_1 and so on: the layers of a VGG in order."""
    return [f"conv{g}_{i + 1}" for g, n in enumerate(VGGS[name].convs, start=1) for i in range(n)]
