"""Any backbone of timm, as a list of feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

import timm
import torch
from timm.layers import norm_act
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d
from timm.layers.pool2d_same import AvgPool2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from pixelwise.errors import UsageError
from pixelwise.nn.backbones.resnet import AverageDown
from pixelwise.nn.depthwise import is_depthwise, use_depthwise
from pixelwise.nn.norm import FrozenBatchNorm, Norm
from pixelwise.ops.depthwise import depthwise_conv2d
from pixelwise.types import Size


class SameConv(nn.Conv2d):
    """TensorFlow's "SAME" padding: as much as gives ceil(n / stride) cells, the odd one at the end.

    timm's own form of it computes the amount with `max` and `ceil`, on which `torch.export` with
    open sizes takes minutes; this arithmetic is constant where the stride divides the size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, ceil(H / stride), ceil(W / stride)]."""
        amounts: list[int] = []
        for axis in (1, 0):  # F.pad takes the last dimension first
            n, stride = input.shape[2 + axis], self.stride[axis]
            reach = (self.kernel_size[axis] - 1) * self.dilation[axis]
            rest = n % stride
            # A branch, so that an exporter sees constants, not expressions of the size.
            total = reach - stride + 1 if rest == 0 else reach - rest + 1
            amounts += [total // 2, total - total // 2]
        padded = F.pad(input, amounts)
        if is_depthwise(self):
            stride, dilation = cast("Size", self.stride), cast("Size", self.dilation)
            return depthwise_conv2d(
                padded, self.weight, self.bias, stride=stride, dilation=dilation
            )
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class FrozenNorm(FrozenBatchNorm, FrozenBatchNorm2d):
    """The frozen norm that timm puts in place of a plain batch norm, computed as ours is."""


class FrozenNormAct(FrozenBatchNorm, FrozenBatchNormAct2d):
    """The same for families whose norms hold the activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        return self.act(self.drop(super().forward(x)))


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")  # of a pool
_FASTER = {FrozenBatchNorm2d: FrozenNorm, FrozenBatchNormAct2d: FrozenNormAct}


class TimmBackbone(nn.Module):
    """A feature extractor of timm behind the interface of our own backbones.

    Families that round down at odd sizes (patchifying stems) get zeros at the right and bottom up
    to a multiple of their stride, and their maps are cut back to ceil(H / stride).

    Args:
        name:          model name of timm, with or without a ".tag".
        in_channels:   of the images.
        output_stride: 32, or 8 and 16 where the family can dilate.
        levels:        level n has the nominal stride 2^n.
        norm:          "batch" leaves the family's own norms alone; "frozen" and "sync" replace its
                       batch norms.

    Raises:
        UsageError: unknown name, or a family that has no such levels or output stride.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        levels: Sequence[int] = (2, 3, 4, 5),
        norm: Norm | str | None = "batch",
    ) -> None:
        super().__init__()
        _check_name(name)
        levels = tuple(sorted(levels))
        options: dict[str, Any] = {"in_chans": in_channels}
        if output_stride != 32:
            options["output_stride"] = output_stride
        with torch.device("meta"):
            probe = _create(name, options)
        nominal = _nominal_levels(name, probe.feature_info.reduction(), output_stride)
        missing = [level for level in levels if level not in nominal]
        if missing:
            raise UsageError(
                f"backbone {name!r} has no feature map at stride {2 ** missing[0]}; it has "
                f"{', '.join(str(2**n) for n in nominal)}"
            )
        self.levels = levels
        indices = tuple(nominal.index(level) for level in levels)
        body = _create(name, {**options, "out_indices": indices})
        self.body = _replace_norms(_replace_pools(_replace_same_convs(body)), norm, name)
        use_depthwise(self.body)
        self.channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.body.feature_info.reduction())
        self.channels_last = str(getattr(probe, "output_fmt", "NCHW")).endswith("NHWC")
        self.divisor = self._find_divisor(probe, in_channels, [nominal.index(n) for n in levels])
        self._frozen: list[nn.Module] = []

    def _find_divisor(self, probe: nn.Module, in_channels: int, picked: list[int]) -> int:
        """1 where odd sizes round up as everywhere in our code, else the stride to pad to."""
        divisor = 2 ** self.levels[-1]
        axis = 1 if self.channels_last else 2
        problem = ""
        for side in (4 * divisor + 1, 4 * divisor):
            try:
                maps = probe.eval()(torch.empty(1, in_channels, side, side, device="meta"))
            except (RuntimeError, AssertionError, ValueError) as error:
                problem = str(error)
                continue
            sides = [maps[i].shape[axis] for i in picked]
            expected = [math.ceil(side / stride) for stride in self.strides]
            return 1 if sides == expected and side % divisor else divisor
        raise UsageError(
            f"this backbone of timm takes one image size only ({problem}); choose another"
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        height, width = images.shape[-2:]
        # A branch, so that exports for multiples of the divisor hold no arithmetic on sizes.
        fits = height % self.divisor == 0 and width % self.divisor == 0
        if not fits:
            images = F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor))
        maps = cast("list[Tensor]", self.body(images))
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if fits:
            return maps
        return [
            m[..., : -(-height // s), : -(-width // s)]
            for m, s in zip(maps, self.strides, strict=True)
        ]

    def freeze(self, stages: int) -> None:
        """Stop training everything up to the n-th of the family's own feature maps.

        Args:
            stages: 0 none, 1 up to the first map (the stem in most families), and so on.
        """
        if stages == 0:
            return
        infos: list[dict[str, Any]] = self.body.feature_info.info
        target = str(infos[min(stages, len(infos)) - 1]["module"])
        last = -1
        modules = list(self.body.named_modules())
        for i, (name, _) in enumerate(modules):
            # Flattened extractors write "stages_0" for "stages.0".
            flat, wanted = name.replace(".", "_"), target.replace(".", "_")
            if flat == wanted or flat.startswith(wanted + "_"):
                last = i
        # Norms of timm may hold their activation as a child, so leaves alone would miss them.
        self._frozen = [
            m
            for _, m in modules[: last + 1]
            if not list(m.children()) or list(m.parameters(recurse=False))
        ]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TimmBackbone:
        """As usual; frozen parts stay in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        known: list[str] = timm.list_models()
        close = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise UsageError(f"no backbone is named {name!r}; {hint}")


def _create(name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=False, features_only=True, **options)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        stride = options.get("output_stride")
        if stride is None:
            raise UsageError(
                f"backbone {name!r} gives no feature maps ({error}); choose a convolutional one"
            ) from error
        raise UsageError(
            f"backbone {name!r} cannot run at output_stride {stride}: its family has no dilation; "
            "set output_stride=32 or choose another backbone"
        ) from error


def _nominal_levels(name: str, reductions: Sequence[int], output_stride: int) -> list[int]:
    """log2 of the stride that each map would have without dilation."""
    first = round(math.log2(reductions[0]))
    nominal = [first + i for i in range(len(reductions))]
    if [min(2**n, output_stride) for n in nominal] != list(reductions):
        raise UsageError(
            f"backbone {name!r} has maps at strides {', '.join(map(str, reductions))}, which is no "
            f"pyramid at output_stride {output_stride}; choose another backbone or output_stride"
        )
    return nominal


def _replace_same_convs(body: nn.Module) -> nn.Module:
    """Every convolution with TensorFlow's padding as a `SameConv` with the same weights."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, Conv2dSame):
                continue
            conv = cast("nn.Conv2d", child)
            if conv.kernel_size < conv.stride:  # skips pixels; may need no padding at all
                continue
            same = SameConv(
                conv.in_channels,
                conv.out_channels,
                cast("tuple[int, int]", conv.kernel_size),
                stride=cast("tuple[int, int]", conv.stride),
                dilation=cast("tuple[int, int]", conv.dilation),
                groups=conv.groups,
                bias=conv.bias is not None,
            )
            same.weight, same.bias = conv.weight, conv.bias
            setattr(parent, name, same)
    return body


def _replace_pools(body: nn.Module) -> nn.Module:
    """Every pool that rounds sizes up as one that rounds down, of a map with a border more.

    The results are the same, but how torch rounds up no file of `torch.export` with open sizes can
    hold.
    """
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            pool = _rounding_down(child)
            if pool is not None:
                setattr(parent, name, pool)
    return body


def _rounding_down(pool: nn.Module) -> nn.Module | None:
    """What takes the place of a pool; None where nothing has to."""
    if not getattr(pool, "ceil_mode", False):
        return None
    kernel, stride, padding, dilation = (
        value if isinstance(value, int) else value[0]
        for value in (getattr(pool, name, 1) for name in _GEOMETRY)
    )
    if type(pool) is nn.MaxPool2d and (padding, dilation) == (0, 1) and stride <= kernel:
        last = stride - 1
        down = nn.MaxPool2d(kernel, stride)
        border = nn.ConstantPad2d((0, last, 0, last), -math.inf)
        return nn.Sequential(border, down) if last else down
    if type(pool) is AvgPool2dSame and (kernel, stride) == (2, 1):  # its zeros count
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))
    if type(pool) is nn.AvgPool2d and (kernel, stride, padding) == (2, 2, 0):
        return None if pool.count_include_pad else AverageDown()
    return None


def _replace_norms(body: nn.Module, norm: Norm | str | None, name: str) -> Any:
    if norm == "batch":
        return body
    if norm == "frozen":
        frozen = cast("Any", norm_act).freeze_batch_norm_2d(body)
        for module in frozen.modules():
            if type(module) in _FASTER:
                module.__class__ = _FASTER[type(module)]
        return frozen
    if norm == "sync":
        return cast("Any", norm_act).convert_sync_batchnorm(body)
    raise UsageError(
        f"backbone {name!r} comes from timm with its own norms; norm={norm!r} needs one of our own"
    )
