"""Networks whose atrous convolutions run as plain ones, for runtimes without dilated kernels."""

from __future__ import annotations

from torch import Tensor, nn

from pixelwise.ops.space_to_batch import atrous_conv


class SpaceToBatchConv(nn.Conv2d):
    """A `Conv2d` that sorts its input into sub-maps instead of dilating its kernel.

    Source: DeepLab V2 (arXiv:1606.00915), section 3.1, the second of two implementations.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] → [B, D, H, W]."""
        return atrous_conv(input, self.weight, self.bias, rate=self.dilation[0], groups=self.groups)


def use_space_to_batch(module: nn.Module) -> int:
    """Make every atrous convolution of a network run through space-to-batch, in place.

    Results, parameters and the keys of the state dict stay what they are. Convolutions that
    `atrous_conv` cannot do (with a stride, an even kernel, or a padding that changes the size) stay
    dilated.

    >>> net = create("deeplabv2")              # doctest: +SKIP
    >>> use_space_to_batch(net)                # doctest: +SKIP
    30

    Args:
        module: any network, such as a whole system or its ASPP.

    Returns:
        How many convolutions were changed.
    """
    found = [m for m in module.modules() if type(m) is nn.Conv2d and _is_atrous(m)]
    for conv in found:
        conv.__class__ = SpaceToBatchConv  # keeps parameters, hooks and everyone's references
    return len(found)


def _is_atrous(conv: nn.Conv2d) -> bool:
    side, rate = conv.kernel_size[0], conv.dilation[0]
    return (
        rate > 1
        and conv.dilation == (rate, rate)
        and conv.kernel_size == (side, side)
        and side % 2 == 1
        and conv.stride == (1, 1)
        and conv.padding == (rate * (side // 2),) * 2
        and conv.padding_mode == "zeros"
    )
