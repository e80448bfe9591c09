"""Depthwise convolution, with gradients that take the fast kernels of a CPU.

oneDNN (3.12, in PyTorch 2.14) has kernels made for the forward pass of every depthwise convolution,
but for the gradients of some only: of the weights up to 3x3 and, in bf16, of the input at stride 1.
The others go through kernels for ordinary convolutions and take 10 to 100 times as long as the
forward pass: more than half of a training step of EfficientNet. Both gradients are depthwise
convolutions themselves, and here they are computed as such.

Where the kernel is dilated, its bf16 gradient for the weights is wrong in maps of 32 columns and
more, channels last: numbers from memory that nobody wrote, up to 1e36. There the convolution runs
in float32 while it is trained, whose kernels are right.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pixelwise.types import Size

_FAST_SIDE = 3  # of the largest kernel whose weights have a fast gradient
_HALF = (torch.bfloat16, torch.float16)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Size = (1, 1),
    padding: Size = (0, 0),
    dilation: Size = (1, 1),
) -> Tensor:
    """Convolve every channel with its own kernel; equal to `conv2d(..., groups=C)`.

    Args:
        x:        [B, C, H, W].
        weight:   [C, 1, k, l].
        bias:     [C] or None.
        stride:   cells between two outputs.
        padding:  zeros on both sides.
        dilation: cells between two taps of the kernel.

    Returns:
        [B, C, h, w].
    """
    if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        if torch.is_autocast_enabled("cpu"):  # it casts for conv2d, not for functions of one's own
            kind = torch.get_autocast_dtype("cpu")
            x, weight = x.to(kind), weight.to(kind)
        if max(dilation) > 1 and x.dtype in _HALF:
            where = {"stride": stride, "padding": padding, "dilation": dilation}
            return _in_float32(x, weight, bias, **where)
        if _has_slow_gradient(x, weight, stride, padding, dilation):
            return cast("Tensor", _FastGradients.apply(x, weight, bias, stride, padding))
    return F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[1])


def depthwise_weight_gradient(
    x: Tensor, grad: Tensor, sides: Size, *, stride: Size, padding: Size
) -> Tensor:
    """The gradient of a depthwise convolution for its weights, in blocks of at most 3x3 of them.

    A block of a kernel is a smaller kernel that reads a shifted input.

    Args:
        x:       [B, C, H, W], the input.
        grad:    [B, C, h, w], the gradient for the output.
        sides:   (k, l), height and width of the kernel.
        stride:  of the convolution.
        padding: of the convolution.

    Returns:
        [C, 1, k, l].
    """
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    total = x.new_empty(x.shape[1], 1, *sides)
    step = _FAST_SIDE
    for top in range(0, sides[0], step):
        for left in range(0, sides[1], step):
            block = total[:, :, top : top + step, left : left + step]
            bottom = top + (grad.shape[2] - 1) * stride[0] + block.shape[2]
            right = left + (grad.shape[3] - 1) * stride[1] + block.shape[3]
            read = padded[:, :, top:bottom, left:right]
            block.copy_(_gradient("weight", grad, read, block, stride=stride, padding=(0, 0)))
    return total


def depthwise_input_gradient(
    grad: Tensor, weight: Tensor, size: Size, *, stride: Size, padding: Size
) -> Tensor:
    """The gradient of a depthwise convolution for its input, as a convolution of stride 1.

    The gradient for the output is spread over the cells that the outputs stand on, and convolved
    with the kernel turned round.

    Args:
        grad:    [B, C, h, w], the gradient for the output.
        weight:  [C, 1, k, l].
        size:    (H, W) of the input.
        stride:  of the convolution.
        padding: of the convolution, less than the kernel's sides.

    Returns:
        [B, C, H, W].
    """
    batch, channels = grad.shape[:2]
    reach = (weight.shape[2] - 1, weight.shape[3] - 1)
    # Channels last in memory, for the fast kernel.
    spread = grad.new_zeros(batch, size[0] + reach[0], size[1] + reach[1], channels)
    spread = spread.permute(0, 3, 1, 2)  # [B, C, H + k - 1, W + l - 1]
    rows, columns = (
        slice(reach[i] - padding[i], reach[i] - padding[i] + n * stride[i], stride[i])
        for i, n in enumerate(grad.shape[2:])
    )
    spread[:, :, rows, columns] = grad
    return F.conv2d(spread, weight.flip(2, 3), groups=channels)


def _has_slow_gradient(
    x: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size
) -> bool:
    sides = (weight.shape[2], weight.shape[3])
    possible = max(dilation) == 1 and padding[0] < sides[0] and padding[1] < sides[1]
    return possible and (max(sides) > _FAST_SIDE or (max(stride) > 1 and x.dtype in _HALF))


class _FastGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Size
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator's doing)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        given, weight = cast("tuple[Tensor, Tensor]", ctx.saved_tensors)
        where = {"stride": ctx.stride, "padding": ctx.padding}
        # The fast kernels want channels last, whatever the network has.
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (given, grads[0]))
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            if max(ctx.stride) > 1 and x.dtype in _HALF:
                for_x = depthwise_input_gradient(grad, weight, (x.shape[2], x.shape[3]), **where)
            else:
                for_x = _gradient("input", grad, x, weight, **where)
            for_x = for_x if x is given else for_x.contiguous()
        if ctx.needs_input_grad[1]:
            sides = (weight.shape[2], weight.shape[3])
            for_weight = depthwise_weight_gradient(x, grad, sides, **where)
        for_bias = grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None
        return for_x, for_weight, for_bias, None, None


def _in_float32(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Size,
    padding: Size,
    dilation: Size,
) -> Tensor:
    """`depthwise_conv2d` whose passes both run in float32, to the dtype of the input."""
    wide = None if bias is None else bias.float()
    with torch.autocast("cpu", enabled=False):
        y = F.conv2d(x.float(), weight.float(), wide, stride, padding, dilation, x.shape[1])
    return y.to(x.dtype)


def _gradient(
    which: Literal["input", "weight"],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    stride: Size,
    padding: Size,
) -> Tensor:
    """PyTorch's own gradient; of `x` or `weight` only the shape is read where it is the one."""
    wanted = [which == "input", which == "weight", False]
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), x.shape[1], wanted
    )
    return found[0 if which == "input" else 1]
