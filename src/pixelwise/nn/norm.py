"""Normalisation layers by name; checkpoints and batch sizes decide which one a network needs."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError

Norm = Literal["batch", "frozen", "sync", "group", "affine"]
NORMS = ("batch", "frozen", "sync", "group", "affine")

_GROUPS = 32  # Group Normalization (arXiv:1803.08494), section 4: the best of 2..64


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that survives a batch with one value per channel.

    A 1x1 map of a single image (the image-pooling branch at batch size 1) has no variance; PyTorch
    raises there. This layer then normalises with its running statistics, as in evaluation, and
    leaves them unchanged. Everywhere else it is `nn.BatchNorm2d`, state dict included.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def _normalised(
    x: Tensor, mean: Tensor, var: Tensor, affine: tuple[Tensor, Tensor], eps: float
) -> Tensor:
    """`F.batch_norm` in evaluation, which refuses an eps of 0 in some versions of PyTorch."""
    fast = torch.backends.cudnn.enabled
    return torch.batch_norm(x, *affine, mean, var, False, 0.0, eps, fast)


class _FrozenBatchNorm(torch.autograd.Function):
    """`F.batch_norm` with another backward pass: PyTorch's keeps the input, which is not needed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, affine: tuple[Tensor, Tensor], eps: float
    ) -> Tensor:
        ctx.save_for_backward(affine[0], var)
        ctx.eps = eps
        return _normalised(x, mean, var, affine, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, var = ctx.saved_tensors  # [C] each
        zeros = torch.zeros_like(var)
        # Gradients get the scale and no shift: in one pass too, whatever their precision.
        return _normalised(grads[0], zeros, var, (weight, zeros), ctx.eps), None, None, None, None


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine map, all buffers.

    Args:
        channels: C of the [B, C, H, W] input.
        eps:      added to the variance; torchvision's first Mask R-CNN weights need 0.

    Source: the detection convention since Faster R-CNN on ResNet: one or two large images per
        device give batch statistics too poor to train with.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape, in one pass and in the precision of `x`."""
        mean, var, weight, bias = self.running_mean, self.running_var, self.weight, self.bias
        if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
            return cast("Tensor", _FrozenBatchNorm.apply(x, mean, var, (weight, bias), self.eps))
        return _normalised(x, mean, var, (weight, bias), self.eps)

    def extra_repr(self) -> str:
        """Shown in the printed module."""
        return f"{len(self.weight)}, eps={self.eps}"


class ChannelAffine(nn.Module):
    """A fixed scale and shift per channel: a frozen batch norm whose statistics were folded in.

    Args:
        channels: C of the [B, C, H, W] input.

    Source: Detectron and Detectron.pytorch, which store their backbones so.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        scale, shift = self.weight.to(x.dtype), self.bias.to(x.dtype)  # [C]
        return x * scale[:, None, None] + shift[:, None, None]  # [B, C, H, W]


def make_norm(kind: Norm | str | None, channels: int, eps: float = 1e-5) -> nn.Module:
    """The normalisation layer of this kind.

    Args:
        kind:     "batch", "frozen" (fixed statistics), "sync" (statistics over all processes; plain
                  batch statistics where there is only one), "group" (32 groups, fewer where 32 does
                  not divide the channels), "affine" (no statistics, a fixed affine map) or None for
                  no normalisation.
        channels: C of its input.
        eps:      added to the variance.

    Raises:
        UsageError: unknown kind.
    """
    if kind is None:
        return nn.Identity()
    if kind == "batch":
        return BatchNorm(channels, eps=eps)
    if kind == "frozen":
        return FrozenBatchNorm(channels, eps=eps)
    if kind == "sync":
        return nn.SyncBatchNorm(channels, eps=eps)
    if kind == "group":
        groups = next(g for g in range(min(_GROUPS, channels), 0, -1) if channels % g == 0)
        return nn.GroupNorm(groups, channels, eps=eps)
    if kind == "affine":
        return ChannelAffine(channels)
    raise UsageError(f"no norm is named {kind!r}; choose one of {', '.join(NORMS)}")
