"""Fully connected layers as convolutions: a classifier that scores every place of an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError

# Layers that treat every cell alike.
_POINTWISE = (
    nn.Dropout,
    nn.Dropout2d,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
)


class FullyConvolutional(nn.Module):
    """The classifier layers fc6 and fc7 as convolutions, each with ReLU and dropout.

    Args:
        in_channels: of the last map.
        width:   outputs of either layer: 4096, or 1024 in DeepLab-LargeFOV.
        kernel:  of fc6, the side of the map that the classifier saw: 7 for VGG, 6 for AlexNet.
        dilation: of fc6.
        with_padding: zeros around the map keep its size; of an even kernel the odd one is at the
            end. Without, the map loses dilation * (kernel - 1) cells, as the original FCN does.
        dropout: probability, after either layer.

    Source: FCN (arXiv:1411.4038), section 3.1; DeepLab (arXiv:1412.7062), section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 4096,
        *,
        kernel: int = 7,
        dilation: int = 1,
        with_padding: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        missing = dilation * (kernel - 1) if with_padding else 0
        before, after = missing // 2, missing - missing // 2
        self.uneven = (before, after, before, after) if before != after else None
        padding = 0 if self.uneven else before
        self.fc6 = nn.Conv2d(in_channels, width, kernel, padding=padding, dilation=dilation)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(dropout)
        self.out_channels = width
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(cast("Tensor", layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, width, H, W] with the padding."""
        if self.uneven is not None:
            x = F.pad(x, self.uneven)
        x = self.dropout(F.relu(self.fc6(x)))  # [B, width, H, W]
        return self.dropout(F.relu(self.fc7(x)))


def convolutionize(layers: Iterable[nn.Module], shape: tuple[int, int, int]) -> nn.Sequential:
    """The end of any classifier as convolutions: on a larger map it gives a map of scores.

    Each cell of the result is what the classifier says of the window of h x w cells that begins
    there; overlapping windows share their work. (Of the image itself that holds where no layer
    below pads, and elsewhere for windows whose field of view stays clear of the border.)

    Linear layers become convolutions with their own weights, a pool to one cell becomes a sliding
    mean, flattening falls away; convolutions without padding, sequences, activations and dropout
    stay. The new layers train or evaluate as the old ones did.

    >>> head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    >>> convolutionize(head, (512, 7, 7))(torch.zeros(1, 512, 9, 12)).shape
    torch.Size([1, 10, 3, 6])

    Args:
        layers: of the classifier, in order, behind the last map; in evaluation they are exact.
        shape:  (C, h, w) of that map on an image of the classifier's own size.

    Returns:
        [B, C, H, W] → [B, classes, H - h + 1, W - w + 1].

    Raises:
        UsageError: a layer that has no convolutional form, or one that does not fit the map.

    Source: FCN (arXiv:1411.4038), section 3.1.
    """
    result = nn.Sequential()
    for layer in _flat(layers):
        changed, shape = _convolutional(layer, shape)
        if changed is not None:
            result.append(changed.train(layer.training))
    return result


def weight_to_kernel(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A fully connected weight as the kernel that computes the same.

    Args:
        weight: [out, C * h * w]; the map was flattened in the order channel, row, column.
        size:   (h, w).

    Returns:
        [out, C, h, w], the same memory.
    """
    return weight.unflatten(1, (-1, *size))


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        else:
            yield layer


def _convolutional(
    layer: nn.Module, shape: tuple[int, int, int]
) -> tuple[nn.Module | None, tuple[int, int, int]]:
    """One layer's form on maps (None: nothing is left of it), and what it gives for `shape`."""
    if isinstance(layer, nn.Flatten | nn.Identity):
        return None, shape
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return _sliding_mean(layer, shape)
    if isinstance(layer, nn.Linear):
        return _kernel_of(layer, shape), (layer.out_features, 1, 1)
    if isinstance(layer, nn.Conv2d):
        return layer, _behind(layer, shape)
    if isinstance(layer, _POINTWISE):
        return layer, shape
    raise UsageError(f"{type(layer).__name__} has no convolutional form here; convert it by hand")


def _sliding_mean(
    pool: nn.AdaptiveAvgPool2d, shape: tuple[int, int, int]
) -> tuple[nn.Module | None, tuple[int, int, int]]:
    channels, height, width = shape
    target = pool.output_size
    goal = (target, target) if isinstance(target, int) or target is None else tuple(target)
    if goal == (height, width):
        return None, shape
    if goal == (1, 1):
        return nn.AvgPool2d((height, width), stride=1), (channels, 1, 1)
    raise UsageError(f"a pool to {goal} of a {height}x{width} map has no convolutional form")


def _kernel_of(linear: nn.Linear, shape: tuple[int, int, int]) -> nn.Conv2d:
    channels, height, width = shape
    if linear.in_features != channels * height * width:
        raise UsageError(
            f"Linear has {linear.in_features} inputs, the map {channels}x{height}x{width} values"
        )
    bias = cast("Tensor | None", linear.bias)
    conv = nn.Conv2d(
        channels,
        linear.out_features,
        (height, width),
        bias=bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(weight_to_kernel(linear.weight, (height, width)))
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
    return conv


def _behind(conv: nn.Conv2d, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """What a convolution that is one already leaves of the map."""
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    height, width = shape[1] - reach[0], shape[2] - reach[1]
    plain = conv.stride == (1, 1) and conv.padding in ((0, 0), "valid")
    if not plain or conv.in_channels != shape[0] or min(height, width) < 1:
        raise UsageError(
            f"{conv} on a map of {shape[0]}x{shape[1]}x{shape[2]} does not slide over a larger one"
        )
    return conv.out_channels, height, width
