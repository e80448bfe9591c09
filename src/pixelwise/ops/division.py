"""Division that rounds in the same way on every device."""

from __future__ import annotations

from torch import Tensor


def divide(x: Tensor, by: float) -> Tensor:
    """A quotient whose floor or ceiling decides something.

    Of a Python number CUDA takes the reciprocal and multiplies, which may be off by the last bit:
    84 / 28 becomes more than 3, and its ceiling 4. Of a tensor it does not.

    Args:
        x:  [...] of a float type.
        by: the divisor.

    Returns:
        [...] x / by, correctly rounded.
    """
    return x / x.new_full((), by)
