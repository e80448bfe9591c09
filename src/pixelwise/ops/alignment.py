"""Where the cells of a map lie on the image, and how far two maps must be cut to coincide."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple


class Window(NamedTuple):
    """One convolution or pool along an axis.

    Args:
        extent:  cells from its first to its last tap: dilation * (kernel - 1) + 1.
        stride:  input cells per output cell.
        padding: cells before the first.
        transposed: it spreads cells (a transposed convolution) instead of gathering them; its
            padding cuts the result.
    """

    extent: int
    stride: int = 1
    padding: int = 0
    transposed: bool = False


class AxisMap(NamedTuple):
    """The position of an output cell's centre for an input position x: scale * x + shift."""

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def then(self, layer: Window) -> AxisMap:
        """The map through one more layer.

        A gathering layer takes x to (x + padding - (extent - 1) / 2) / stride, a transposed one to
        stride * x + (extent - 1) / 2 - padding.
        """
        middle = Fraction(layer.extent - 1, 2)
        if layer.transposed:
            return AxisMap(
                self.scale * layer.stride, self.shift * layer.stride + middle - layer.padding
            )
        return AxisMap(
            self.scale / layer.stride, (self.shift + layer.padding - middle) / layer.stride
        )


def compose(layers: Iterable[Window]) -> AxisMap:
    """The map through a stack of layers, in the order in which data passes them."""
    total = AxisMap()
    for layer in layers:
        total = total.then(layer)
    return total


def crop_offset(long: Iterable[Window], short: Iterable[Window] = ()) -> int:
    """How many cells to leave out at the start of one map so that it lies on another.

    A pool of 2x2 and the bilinear kernel of 4x4 back to full size leave one cell at each end:

    >>> crop_offset([Window(2, 2), Window(4, 2, transposed=True)])
    1

    Args:
        long:  the layers from the image to the map that is cut.
        short: the layers from the image to the map that it is laid on; none is the image itself.

    Returns:
        The first cell of the long map that coincides with cell 0 of the short one.

    Raises:
        ValueError: the maps have different strides, or lie between each other's cells.

    Source: the coordinate arithmetic of FCN's release (arXiv:1411.4038).
    """
    one, other = compose(long), compose(short)
    if one.scale != other.scale:
        raise ValueError(f"the maps have strides {1 / one.scale} and {1 / other.scale}")
    offset = one.shift - other.shift
    if offset.denominator != 1:
        raise ValueError(f"the maps lie {offset} cells apart, which is no whole number")
    return int(offset)
