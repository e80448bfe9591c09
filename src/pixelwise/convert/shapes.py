"""What the keys and shapes of another project's state dict tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from pixelwise.errors import ConversionError

State = Mapping[str, Tensor]


def shape_of(state: State, key: str) -> tuple[int, ...]:
    """The shape of a tensor that every checkpoint of an origin and system has.

    Raises:
        ConversionError: there is none of this name.
    """
    if key not in state:
        raise ConversionError(f"the checkpoint has no {key!r}; is it of this origin and system?")
    return tuple(state[key].shape)


def rows_of(state: State, key: str) -> int:
    """The first dimension of such a tensor: outputs of a convolution, classes of a classifier."""
    return shape_of(state, key)[0]


def first_of(state: State, keys: Sequence[str]) -> str:
    """The first of some spellings of a key that the checkpoint has; the first where it has none."""
    return next((key for key in keys if key in state), keys[0])


def count_of(state: State, pattern: str) -> int:
    """One more than the largest number that the pattern's group takes among the keys."""
    found = [int(m[1]) for key in state if (m := re.match(pattern, key))]
    return max(found, default=-1) + 1
