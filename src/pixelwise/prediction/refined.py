"""A dense CRF after the network: label maps drawn to the edges of the picture."""

from __future__ import annotations

from difflib import get_close_matches

import numpy as np
import numpy.typing as npt
import torch

from pixelwise.errors import UsageError
from pixelwise.ops.crf import PRESETS, DenseCRF, dense_crf
from pixelwise.types import SemanticPrediction


def as_crf(crf: DenseCRF | str | bool | None) -> DenseCRF | None:
    """What a user's `crf` means: True for DeepLab V2's values, or a name of `PRESETS`.

    Raises:
        UsageError: no such preset.
    """
    if crf is None or crf is False:
        return None
    if crf is True:
        return DenseCRF()
    if isinstance(crf, DenseCRF):
        return crf
    if crf not in PRESETS:
        close = get_close_matches(crf, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PRESETS)}"
        raise UsageError(f"no CRF is named {crf!r}; {hint}")
    return PRESETS[crf]


def refine(
    prediction: SemanticPrediction,
    image: npt.NDArray[np.uint8],
    crf: DenseCRF,
    *,
    with_probs: bool = False,
) -> SemanticPrediction:
    """Let the picture itself correct a label map.

    Args:
        prediction: of the network at the size of the picture, with `probs` [K, H, W].
        image:      [H, W, C], the picture as stored; what was normalised for the network will not
                    do, since the CRF's reach in colour is in grey levels.
        crf:        the parameters.
        with_probs: keep the CRF's marginals, [K, H, W].

    Returns:
        A label map of the same size and type.
    """
    assert prediction.probs is not None
    marginals = dense_crf(prediction.probs, torch.from_numpy(image.copy()), crf)
    labels = marginals.argmax(0).to(prediction.labels.dtype)
    return SemanticPrediction(labels=labels, probs=marginals if with_probs else None)
