"""What a semantic system minimises: the named losses of the field and their sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.losses.focal import softmax_focal
from pixelwise.losses.lovasz import lovasz_softmax
from pixelwise.losses.overlap import dice_loss
from pixelwise.losses.pixel import (
    cross_entropy,
    hardest_by_loss,
    hardest_by_probability,
    mean_over_all,
    pixel_weights,
    weighted_mean,
)
from pixelwise.types import IGNORE, SemanticTarget

PixelLoss = str  # a name of `PIXEL_LOSSES`, or a sum such as "cross_entropy+lovasz"


def check_pixel_loss(kind: PixelLoss) -> None:
    """Refuse a loss that does not exist; for the `__post_init__` of a config.

    Raises:
        UsageError: a term that is not in `PIXEL_LOSSES`.
    """
    for term in kind.split("+"):
        if term not in PIXEL_LOSSES:
            raise UsageError(
                f"no pixel loss is named {term!r}; choose one of {', '.join(PIXEL_LOSSES)}, "
                "or a sum such as 'cross_entropy+dice'"
            )


def semantic_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    kind: PixelLoss = "cross_entropy",
    class_weights: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The loss of a batch of label maps, reduced as its authors reduce it.

    | kind | |
    | --- | --- |
    | cross_entropy | mean over the valid pixels, divided by the sum of their weights |
    | ohem | the same over the hard pixels: p < 0.7, at least a sixteenth of the valid ones |
    | ohem_mmseg | hard pixels: at least 100,000 per image; divided by all pixels |
    | focal | gamma 2, mean over the valid pixels |
    | dice | mean over the classes present in the batch |
    | lovasz | Lovász-softmax, mean over the classes present in the batch |

    Class weights multiply pixels in the first four, and classes in the last two.

    Args:
        logits:        [B, K, H, W] at the size of the labels.
        labels:        [B, H, W] int64, 0..K-1 or 255 (ignored).
        kind:          a name of the table, or a sum of them with "+" between.
        class_weights: [K], or None for ones.
        weights:       [B, H, W] of the pixels, or None for ones.

    Returns:
        A scalar; 0, with a gradient of 0, where no pixel is valid.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    for term in kind.split("+"):
        total = total + PIXEL_LOSSES[term](logits, labels, class_weights, weights)
    return total


def stack_targets(targets: Sequence[SemanticTarget]) -> tuple[Tensor, Tensor | None]:
    """Labels and own pixel weights of a batch.

    Args:
        targets: one per image, all of one size.

    Returns:
        labels:  [B, H, W] int64.
        weights: [B, H, W] float32, or None where no image has any.
    """
    labels = torch.stack([t.labels for t in targets])
    if all(t.weights is None for t in targets):
        return labels, None
    ones = torch.ones_like(targets[0].labels, dtype=torch.float32)
    return labels, torch.stack([ones if t.weights is None else t.weights for t in targets])


_Term = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def _cross_entropy(
    logits: Tensor, labels: Tensor, classes: Tensor | None, own: Tensor | None
) -> Tensor:
    weights = pixel_weights(labels, class_weights=classes, weights=own)
    return weighted_mean(cross_entropy(logits, labels), weights)


def _ohem(logits: Tensor, labels: Tensor, classes: Tensor | None, own: Tensor | None) -> Tensor:
    losses = cross_entropy(logits, labels)
    kept = hardest_by_loss(losses, labels)
    return weighted_mean(losses, kept * pixel_weights(labels, class_weights=classes, weights=own))


def _ohem_mmseg(
    logits: Tensor, labels: Tensor, classes: Tensor | None, own: Tensor | None
) -> Tensor:
    kept = hardest_by_probability(logits, labels)
    weights = kept * pixel_weights(labels, class_weights=classes, weights=own)
    return mean_over_all(cross_entropy(logits, labels), weights)


def _focal(logits: Tensor, labels: Tensor, classes: Tensor | None, own: Tensor | None) -> Tensor:
    weights = pixel_weights(labels, class_weights=classes, weights=own)
    return weighted_mean(softmax_focal(logits, labels), weights)


def _dice(logits: Tensor, labels: Tensor, classes: Tensor | None, own: Tensor | None) -> Tensor:
    probs, marks, weights = _by_class(logits, labels, own)
    return _mean_of_present(dice_loss(probs, marks, weights), marks, weights, classes)


def _lovasz(logits: Tensor, labels: Tensor, classes: Tensor | None, own: Tensor | None) -> Tensor:
    probs, marks, weights = _by_class(logits, labels, own)
    return _mean_of_present(lovasz_softmax(probs, marks, weights), marks, weights, classes)


def _by_class(logits: Tensor, labels: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [K, P], marks [K, P] and weights [P] of all P pixels of the batch."""
    probs = logits.float().softmax(1).transpose(0, 1).flatten(1)
    flat = torch.where(labels == IGNORE, -1, labels).flatten()
    marks = flat == torch.arange(len(probs), device=flat.device)[:, None]
    return probs, marks, pixel_weights(labels, weights=own).flatten()


def _mean_of_present(
    losses: Tensor, marks: Tensor, weights: Tensor, classes: Tensor | None
) -> Tensor:
    """The mean of [K] losses over the classes that have a pixel, with class weights."""
    present = ((weights * marks).sum(1) > 0).float()
    return weighted_mean(losses, present if classes is None else present * classes.float())


PIXEL_LOSSES: dict[str, _Term] = {
    "cross_entropy": _cross_entropy,
    "ohem": _ohem,
    "ohem_mmseg": _ohem_mmseg,
    "focal": _focal,
    "dice": _dice,
    "lovasz": _lovasz,
}
