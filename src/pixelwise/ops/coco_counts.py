"""The runs inside COCO's mask records: a list, or its compressed string.

Source: the run-length format of the COCO API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixelwise.errors import DataError
from pixelwise.types import IntArray, Size


def size_of(rle: Mapping[str, Any], i: int) -> Size:
    """Read the picture size of a COCO mask.

    Args:
        rle: the mask, with `size` [height, width].
        i:   its position, for the message.

    Returns:
        (height, width) in pixels.

    Raises:
        DataError: there is no such size.
    """
    size = rle.get("size")
    if not isinstance(size, Sequence) or len(size) != 2:
        raise DataError(f"mask {i}: run lengths need a size [height, width], not {size!r}")
    return int(size[0]), int(size[1])


def read_counts(counts: Any, size: Size, i: int) -> IntArray:
    """Read the runs of a mask and check that they fit its picture.

    Args:
        counts: a list of runs, or the compressed string (str or bytes); empty stands for no pixel.
        size:   (height, width) of the picture.
        i:      position of the mask, for the message.

    Returns:
        [T] int64 runs down the columns, 0-runs first; their sum is the picture's area, or there
        are none.

    Raises:
        DataError: they are damaged or do not cover the picture exactly.
    """
    runs = _decompress(counts, i) if isinstance(counts, str | bytes) else _list(counts, i)
    if (runs < 0).any():
        raise DataError(f"mask {i}: counts hold a negative run; export the annotation again")
    if len(runs) and int(runs.sum()) != size[0] * size[1]:
        raise DataError(
            f"mask {i}: its runs cover {int(runs.sum())} pixels, a picture of {size} (height, "
            f"width) has {size[0] * size[1]}; export the annotation again for this picture"
        )
    return runs


def _list(counts: Any, i: int) -> IntArray:
    """The runs of an uncompressed mask."""
    runs = np.asarray(counts)
    if runs.ndim != 1 or (len(runs) and not np.issubdtype(runs.dtype, np.number)):
        raise DataError(f"mask {i}: counts must be a list of runs or COCO's compressed string")
    if (runs != runs.astype(np.int64)).any():
        raise DataError(f"mask {i}: counts must be whole numbers; export the annotation again")
    return runs.astype(np.int64)


def _decompress(counts: str | bytes, i: int) -> IntArray:
    """The runs of COCO's compressed string.

    Numbers are groups of five bits, least significant first, as characters from 48 on: bit 32 says
    that the number goes on, bit 16 of its last group is the sign. From the fourth on, a number is
    the difference from the one two places before.
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(groups):
        return groups
    is_last = groups & 32 == 0
    if (groups < 0).any() or (groups > 63).any() or not is_last[-1]:
        raise DataError(f"mask {i}: counts are no COCO run lengths; export the annotation again")
    ends = np.flatnonzero(is_last)
    begins = np.concatenate([[0], ends[:-1] + 1])
    if (ends - begins).max() > 6:  # 35 bits: more than any run of 32 bits needs
        raise DataError(f"mask {i}: counts hold a run that is far too long")
    shift = 5 * (np.arange(len(groups)) - np.repeat(begins, ends - begins + 1))
    runs = np.add.reduceat((groups & 31) << shift, begins)
    runs -= np.where(groups[ends] & 16, np.int64(1) << (shift[ends] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
