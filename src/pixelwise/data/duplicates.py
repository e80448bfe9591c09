"""Pictures that are nearly the same: found by a difference hash, confirmed by a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pixelwise.types import IntArray

_SIDE = 16  # the hash has 16 x 16 bits
_MAX_BITS = 24  # of 256; saving as JPEG or resizing changes fewer
_MAX_GREY = 6.0  # mean difference of the thumbnails, of 255
_MIN_CONTRAST = 2.0  # flat pictures resemble each other without being copies
_BLOCK = 512


class Fingerprint(NamedTuple):
    """What two pictures are compared by.

    Args:
        bits:  [256] bool, whether brightness falls to the right.
        thumb: [16, 17] uint8 grey.
    """

    bits: npt.NDArray[np.bool_]
    thumb: npt.NDArray[np.uint8]


def fingerprint(image: npt.NDArray[np.uint8]) -> Fingerprint | None:
    """The fingerprint of a picture, None where it is too flat to be told from others.

    Args:
        image: [H, W, C].

    Source: the difference hash (dHash), with 256 bits instead of 64.
    """
    from PIL import Image

    grey = Image.fromarray(image[..., :3]).convert("L") if image.shape[2] >= 3 else image[..., 0]
    picture = grey if isinstance(grey, Image.Image) else Image.fromarray(grey)
    thumb = np.asarray(picture.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX, reducing_gap=2.0))
    if thumb.std() < _MIN_CONTRAST:
        return None
    return Fingerprint((thumb[:, 1:] < thumb[:, :-1]).reshape(-1), thumb)


def find_duplicates(
    prints: Sequence[Fingerprint | None], sources: IntArray, names: Sequence[str]
) -> list[tuple[int, int]]:
    """Pairs of pictures of different splits that are nearly the same; at most one per picture.

    Args:
        prints:  n fingerprints.
        sources: [n] the source of each picture.
        names:   the split of each source.

    Returns:
        (earlier, later) positions, the closest partner of each later one.
    """
    known = np.array([i for i, mark in enumerate(prints) if mark is not None], np.int64)
    if not len(known):
        return []
    kept = [mark for mark in prints if mark is not None]
    # Equal minus unequal bits, as a product of -1 and 1: matrix multiplication does the comparing.
    signs = np.stack([mark.bits for mark in kept]).astype(np.float32) * 2 - 1  # [m, 256]
    thumbs = np.stack([mark.thumb for mark in kept]).astype(np.float32)  # [m, 16, 17]
    order = {name: k for k, name in enumerate(dict.fromkeys(names))}
    split = np.array([order[name] for name in names])[sources[known]]
    pairs: list[tuple[int, int]] = []
    for group in range(1, len(order)):
        later, earlier = np.nonzero(split == group)[0], np.nonzero(split < group)[0]
        if len(earlier):
            pairs += _match(later, earlier, signs, thumbs)
    return [(int(known[a]), int(known[b])) for a, b in pairs]


def _match(
    later: IntArray,
    earlier: IntArray,
    signs: npt.NDArray[np.float32],
    thumbs: npt.NDArray[np.float32],
) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    least = signs.shape[1] - 2 * _MAX_BITS
    for start in range(0, len(later), _BLOCK):
        block = later[start : start + _BLOCK]
        best = np.full(len(block), -np.inf, np.float32)
        partner = np.zeros(len(block), np.int64)
        for other in range(0, len(earlier), 8 * _BLOCK):
            piece = earlier[other : other + 8 * _BLOCK]
            agreement = signs[block] @ signs[piece].T
            at = agreement.argmax(axis=1)
            found = agreement[np.arange(len(block)), at]
            better = found > best
            best[better], partner[better] = found[better], piece[at[better]]
        for row in np.nonzero(best >= least)[0]:
            a, b = int(partner[row]), int(block[row])
            if np.abs(thumbs[a] - thumbs[b]).mean() <= _MAX_GREY:
                pairs.append((a, b))
    return pairs
