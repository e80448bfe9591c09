"""What a detector found: a fixed number of boxes per image, and their way back to the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from pixelwise.ops.boxes import clip_boxes
from pixelwise.types import ImageSize


class Detections(NamedTuple):
    """The same number of detections for every image, best first.

    boxes: [B, D, 4] xyxy in network-input pixels, zeros where not valid. scores: [B, D] in [0, 1].
    labels: [B, D] int64. valid: [B, D] bool.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor


class Boxes(Protocol):
    """Anything with boxes [B, D, 4] in network-input pixels, of which `valid` [B, D] are meant."""

    @property
    def boxes(self) -> Tensor: ...  # noqa: D102

    @property
    def valid(self) -> Tensor: ...  # noqa: D102


def place_in_pictures(found: Boxes, sizes: Sequence[ImageSize]) -> Iterator[tuple[Tensor, Tensor]]:
    """Undo resizing and padding: which detections lie in each picture, and where.

    Args:
        found: of a batch.
        sizes: one per image.

    Yields:
        per image, positions [N] int64 in 0..D-1, ascending, and boxes [N, 4] xyxy in original
        pixels, on the CPU. What lies in the padding is left out.
    """
    for image, size in enumerate(sizes):
        valid = found.valid[image].cpu()  # [D]
        boxes = clip_boxes(found.boxes[image].float().cpu(), size.content)  # [D, 4]
        scale_y, scale_x = size.scale_yx
        boxes = boxes / boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        boxes = clip_boxes(boxes, size.original)
        # A box in the padding has lost its area by now.
        kept = valid & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)  # [D]
        yield kept.nonzero()[:, 0], boxes[kept]


def drop_faint(raw: Any, score_thresh: float) -> Any:
    """Leave out what cannot become a detection of this score, before time is spent on its mask.

    No system's `decode` raises a score of `raw`, or lets a detection of a lower score change one of
    a higher, so that the detections which reach the threshold stay the same.

    Args:
        raw:          what any system's `forward` gives.
        score_thresh: detections that score less are not wanted, 0..1.

    Returns:
        The same with fewer `valid`, or without them with zeros in `scores`; what has no scores, or
        no single one for each that may be valid, comes back as it is.
    """
    valid, scores = getattr(raw, "valid", None), getattr(raw, "scores", None)
    if scores is None:
        return raw
    if valid is None:
        return raw._replace(scores=scores * (scores >= score_thresh))
    if valid.shape != scores.shape:
        return raw
    return raw._replace(valid=valid & (scores >= score_thresh))
