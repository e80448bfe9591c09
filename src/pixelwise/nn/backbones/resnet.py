"""ResNet and ResNeXt with every knob in which the projects' checkpoints differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.deform import DeformConv
from pixelwise.nn.norm import Norm, make_norm

Stem = Literal["plain", "deep32", "deep64"]
Pool = Literal["floor", "ceil", "ceil_unpadded"]

# Each project's set of knobs: arguments of `ResNet`; what is not named has the default.
_MMSEG: dict[str, Any] = {"dilate_second": False, "grid_multiplies": False}

STYLES: dict[str, dict[str, Any]] = {
    "pytorch": {},  # torchvision, mmdet "pytorch": stride on the 3x3, contracted dilation
    "uniform": {"contract_dilation": False},  # the DeepLabs' papers
    "smp": {"contract_dilation": False},
    "caffe": {"stride_in_1x1": True},  # mmdet "caffe", detectron2 R50 and R101
    "mmseg": _MMSEG,
    "v1c": {**_MMSEG, "stem": "deep32"},  # mmseg
    "v1d": {**_MMSEG, "stem": "deep32", "avg_down": True},
    "efficientfcn": {"stem": "deep32", "avg_down": True},
    "semseg": {"stem": "deep64", "contract_dilation": False},
    "deeplab-pytorch": {"stride_in_1x1": True, "pool": "ceil", "contract_dilation": False},
    "fcis": {"stride_in_1x1": True, "pool": "ceil_unpadded", "contract_dilation": False},
}


class Depth(NamedTuple):
    """What a name such as resnext50_32x4d stands for."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64


# fmt: off
RESNETS: dict[str, Depth] = {
    "resnet18": Depth((2, 2, 2, 2), bottleneck=False),
    "resnet34": Depth((3, 4, 6, 3), bottleneck=False),
    "resnet50": Depth((3, 4, 6, 3)),
    "resnet101": Depth((3, 4, 23, 3)),
    "resnet152": Depth((3, 8, 36, 3)),
    "wide_resnet50_2": Depth((3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": Depth((3, 4, 23, 3), group_width=128),
    "resnext50_32x4d": Depth((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x4d": Depth((3, 4, 23, 3), groups=32, group_width=4),
    "resnext101_32x8d": Depth((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Depth((3, 4, 23, 3), groups=64, group_width=4),
}
# fmt: on

_STEMS: dict[str, tuple[int, ...]] = {
    "plain": (64,),
    "deep32": (32, 32, 64),
    "deep64": (64, 64, 128),
}
_EXPANSION = 4


class AverageDown(nn.Sequential):
    """Halve a map by the means of 2x2 windows; at an odd border by the means of what is there.

    The border is repeated and the pool rounds down, which gives the means of an average pool that
    rounds up and counts no padding. But that one compares sizes, which fixes them in an export.
    """

    def __init__(self) -> None:
        super().__init__(nn.ReplicationPad2d((0, 1, 0, 1)), nn.AvgPool2d(2))


class Shortcut(nn.Module):
    """The projection beside a block that changes size or width.

    Args:
        in_channels, out_channels: of the 1x1 convolution.
        stride:   1 or 2, of the convolution, or of an average pool before it.
        avg_down: pool (see `AverageDown`) instead of skipping three of four pixels. Source:
            ResNet-D (arXiv:1812.01187), section 4.2.
        norm, norm_eps: see `make_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        avg_down: bool,
        norm: Norm | str | None,
        norm_eps: float,
    ) -> None:
        super().__init__()
        pooled = avg_down and stride > 1
        self.pool = AverageDown() if pooled else nn.Identity()
        self.conv = nn.Conv2d(
            in_channels, out_channels, 1, stride=1 if pooled else stride, bias=False
        )
        self.norm = make_norm(norm, out_channels, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, ceil(H / stride), ceil(W / stride)]."""
        return self.norm(self.conv(self.pool(x)))


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 (bottleneck).

    Args:
        in_channels:   of the input.
        width:         64, 128, 256, 512 by stage; a bottleneck gives four times as many channels.
        stride:        of the block.
        dilation:      of its 3x3 convolutions.
        dilate_second: of two 3x3 convolutions, both are dilated; mmseg dilates the first alone.
        bottleneck:    which of the two.
        stride_in_1x1: a bottleneck's stride sits on its first 1x1 (Caffe) instead of the 3x3.
        avg_down:      see `Shortcut`.
        groups, group_width: ResNeXt (arXiv:1611.05431); a plain ResNet has 1 and 64.
        deformable:    the 3x3 of a bottleneck is a `DeformConv`.
        norm, norm_eps: see `make_norm`.
    """

    def __init__(  # noqa: PLR0913 (the knobs in which checkpoints differ)
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        dilate_second: bool = True,
        bottleneck: bool = True,
        stride_in_1x1: bool = False,
        avg_down: bool = False,
        groups: int = 1,
        group_width: int = 64,
        deformable: bool = False,
        norm: Norm | str | None = "batch",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        out_channels = width * _EXPANSION if bottleneck else width
        inner = width * group_width // 64 * groups if bottleneck else width
        first = stride if stride_in_1x1 or not bottleneck else 1
        if bottleneck:
            self.conv1 = _conv(in_channels, inner, 1, stride=first)
            step = stride // first
            self.conv2 = (
                DeformConv(inner, inner, stride=step, dilation=dilation)
                if deformable
                else _conv(inner, inner, 3, stride=step, dilation=dilation, groups=groups)
            )
            self.conv3 = _conv(inner, out_channels, 1)
            self.norm3 = make_norm(norm, out_channels, norm_eps)
        else:
            self.conv1 = _conv(in_channels, inner, 3, stride=first, dilation=dilation)
            self.conv2 = _conv(inner, inner, 3, dilation=dilation if dilate_second else 1)
        self.norm1 = make_norm(norm, inner, norm_eps)
        self.norm2 = make_norm(norm, inner, norm_eps)
        self.act = nn.ReLU(inplace=True)
        projected = stride != 1 or in_channels != out_channels
        self.shortcut = (
            Shortcut(
                in_channels,
                out_channels,
                stride=stride,
                avg_down=avg_down,
                norm=norm,
                norm_eps=norm_eps,
            )
            if projected
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, ceil(H / stride), ceil(W / stride)]."""
        y = self.act(self.norm1(self.conv1(x)))  # [B, inner, h, w]
        y = self.norm2(self.conv2(y))  # [B, inner, h, w]
        if self.bottleneck:
            y = self.norm3(self.conv3(self.act(y)))  # [B, 4 * width, h, w]
        # In place: at stride 8 a new map costs more in page faults than the sum itself.
        return self.act(y.add_(self.shortcut(x)))


def _conv(in_channels: int, out_channels: int, kernel: int, **options: int) -> nn.Conv2d:
    padding = options.get("dilation", 1) * (kernel // 2)
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=options.get("stride", 1),
        padding=padding,
        dilation=options.get("dilation", 1),
        groups=options.get("groups", 1),
        bias=False,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def make_stage(
    name: str,
    stage: int,
    *,
    in_channels: int | None = None,
    stride: int = 2,
    dilations: Sequence[int] | None = None,
    deform_interval: int = 0,
    **knobs: Any,
) -> nn.Sequential:
    """One stage of a ResNet on its own, such as the layer4 that C4 detectors run on regions.

    Args:
        name:        row of `RESNETS`.
        stage:       1..4.
        in_channels: of its input; None for what the stage before gives.
        stride:      of its first block.
        dilations:   of each block, cycled; None for 1 everywhere.
        deform_interval: blocks 0, n, 2n, … have a deformable 3x3; 0 for none.
        knobs:       `stride_in_1x1`, `avg_down`, `dilate_second`, `norm`, `norm_eps`, see `ResNet`.

    Returns:
        The blocks in order, keys `0.conv1.weight` and so on.
    """
    depth = RESNETS[name]
    expansion = _EXPANSION if depth.bottleneck else 1
    if in_channels is None:
        in_channels = 64 if stage == 1 else (32 << (stage - 1)) * expansion
    width = 32 << stage
    blocks: list[nn.Module] = []
    for i in range(depth.blocks[stage - 1]):
        blocks.append(
            Block(
                in_channels,
                width,
                stride=stride if i == 0 else 1,
                dilation=dilations[i % len(dilations)] if dilations else 1,
                bottleneck=depth.bottleneck,
                groups=depth.groups,
                group_width=depth.group_width,
                deformable=deform_interval > 0 and i % deform_interval == 0,
                **knobs,
            )
        )
        in_channels = width * expansion
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """ResNet or ResNeXt that returns feature maps, at any output stride.

    A stage whose cumulative stride would exceed `output_stride` keeps stride 1, and the 3x3
    convolutions from there on are dilated by what was removed, so one checkpoint serves every
    output stride. With stride 2 and odd sizes a level has ceil(H / stride) rows.

    Args:
        name:        row of `RESNETS`.
        in_channels: of the images.
        output_stride: 8, 16 or 32.
        levels:      which maps to return: level 1 is the stem (stride 2, before the max-pool), n is
                     layer n-1 with nominal stride 2^n. Stages after the last are not built.
        norm:        see `make_norm`.
        norm_eps:    of every norm.
        stem:        "plain" 7x7 64; "deep32" three 3x3: 32, 32, 64; "deep64" 64, 64, 128.
        pool:        rounding of the 3x3/2 max-pool; "ceil_unpadded" as in original Caffe.
        stride_in_1x1, avg_down, dilate_second: see `Block`.
        contract_dilation: the first block of a dilated stage keeps the dilation of the stage
                     before (torchvision, mmseg); otherwise all its blocks have the new one.
        multi_grid:  factors on the dilations of layer4's blocks. Source: DeepLabV3
                     (arXiv:1706.05587), section 3.2.1.
        grid_multiplies: False makes a multi-grid other than 1 the dilations themselves, whatever
                     the output stride (mmseg).
        deform_interval: of layer2 to layer4, every n-th block has a deformable 3x3, the first one
                     included; 0 for none. Source: YOLACT++ (arXiv:1912.06218), section 6.2.

    Attributes:
        channels: of each returned map.  strides: input pixels per cell of each returned map.

    Source: arXiv:1512.03385; dilation: arXiv:1705.09914.
    """

    def __init__(  # noqa: PLR0913 (the knobs in which checkpoints differ)
        self,
        name: str = "resnet50",
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        levels: Sequence[int] = (2, 3, 4, 5),
        norm: Norm | str | None = "batch",
        norm_eps: float = 1e-5,
        stem: Stem = "plain",
        pool: Pool = "floor",
        stride_in_1x1: bool = False,
        avg_down: bool = False,
        dilate_second: bool = True,
        contract_dilation: bool = True,
        multi_grid: Sequence[int] = (1, 1, 1),
        grid_multiplies: bool = True,
        deform_interval: int = 0,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise UsageError(f"output_stride is 8, 16 or 32, not {output_stride}")
        self.levels = tuple(sorted(levels))
        self.depth = RESNETS[name]
        if deform_interval and not (self.depth.bottleneck and self.depth.groups == 1):
            raise UsageError(
                f"{name} has no deformable form, only ResNets of plain bottlenecks have; "
                "set deform_interval=0 or choose resnet50, resnet101 or resnet152"
            )
        self.stem = _stem(stem, in_channels, norm, norm_eps)
        padding = 0 if pool == "ceil_unpadded" else 1
        # Zeros behind a ReLU round the size up; torch's ceil_mode has a rule that exporters cannot
        # follow where sizes are open.
        room = nn.Identity() if pool == "floor" else nn.ZeroPad2d((0, 1, 0, 1))
        self.pool = nn.Sequential(room, nn.MaxPool2d(3, 2, padding))
        channels, strides = [_STEMS[stem][-1]], [2]
        stride, dilation = 4, 1
        for stage in range(1, self.levels[-1]):
            step, first = (1 if stage == 1 else 2), dilation
            if stride * step > output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            grid = multi_grid if stage == 4 else (1,)
            count = self.depth.blocks[stage - 1]
            dilations = [dilation * grid[i % len(grid)] for i in range(count)]
            if contract_dilation:
                dilations[0] = first * grid[0]
            if not grid_multiplies and max(grid) > 1:
                dilations = [grid[i % len(grid)] for i in range(count)]
            layer = make_stage(
                name,
                stage,
                in_channels=channels[-1],
                stride=step,
                dilations=dilations,
                stride_in_1x1=stride_in_1x1,
                avg_down=avg_down,
                dilate_second=dilate_second,
                deform_interval=deform_interval if stage > 1 else 0,
                norm=norm,
                norm_eps=norm_eps,
            )
            self.add_module(f"layer{stage}", layer)
            channels.append((32 << stage) * (_EXPANSION if self.depth.bottleneck else 1))
            strides.append(stride)
        self.channels = tuple(channels[level - 1] for level in self.levels)
        self.strides = tuple(strides[level - 1] for level in self.levels)
        self._frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        x = self.stem(images)  # [B, 64, H/2, W/2]
        maps = [x]
        x = self.pool(x)  # [B, 64, H/4, W/4]
        for stage in range(1, self.levels[-1]):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return [maps[level - 1] for level in self.levels]

    def freeze(self, stages: int) -> None:
        """Stop training the first parts of the network, their batch statistics included.

        Args:
            stages: 0 none, 1 the stem, 2 the stem and layer1, and so on.
        """
        self._frozen = stages
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ResNet:
        """As usual; frozen parts stay in evaluation."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        parts = [self.stem, *(self.get_submodule(f"layer{s}") for s in range(1, self.levels[-1]))]
        return parts[: self._frozen]


def _stem(kind: Stem, in_channels: int, norm: Norm | str | None, norm_eps: float) -> nn.Sequential:
    """Convolutions down to stride 2; keys `0.conv.weight`, `0.norm.weight` and so on."""
    widths = _STEMS[kind]
    kernel = 7 if len(widths) == 1 else 3
    inputs = (in_channels, *widths[:-1])
    return nn.Sequential(
        *(
            ConvNormAct(
                c_in, c_out, kernel, stride=2 if i == 0 else 1, norm=norm, norm_eps=norm_eps
            )
            for i, (c_in, c_out) in enumerate(zip(inputs, widths, strict=True))
        )
    )
