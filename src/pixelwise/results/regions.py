"""What every output format is written from: the objects, or the classes of a label map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pixelwise.ops import rle
from pixelwise.ops.polygons import Polygon, mask_to_polygons
from pixelwise.types import RunLengths

if TYPE_CHECKING:
    from pixelwise.result import Result

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Regions:
    """What every format is written from.

    Args:
        masks:  N masks.
        labels: [N] class of each.
        scores: [N] in [0, 1]; None for a label map, whose regions have none.
        boxes:  [N, 4] xyxy; predicted ones where there are, else tight.
        names:  [N] class names.
    """

    masks: RunLengths
    labels: list[int]
    scores: list[float] | None
    boxes: list[list[float]]
    names: list[str]


def regions_of(result: Result) -> Regions:
    """Objects, or one region per class that occurs in the label map."""
    found = result.instances
    if found is not None:
        return Regions(
            found.masks,
            found.labels.numpy().tolist(),
            found.scores.numpy().tolist(),
            found.boxes.numpy().tolist(),
            found.names,
        )
    assert result.semantic is not None
    label_map = result.semantic.labels.numpy()
    present = [i for i in np.unique(label_map).tolist() if i < len(result.classes)]
    parts = [rle.encode((label_map == i)[None]) for i in present]
    masks = RunLengths.concat(parts) if parts else RunLengths.empty(result.size)
    boxes: list[list[float]] = rle.tight_boxes(masks).tolist()
    return Regions(masks, present, None, boxes, [result.classes[i] for i in present])


def polygons_of(masks: RunLengths) -> list[list[Polygon]]:
    """Per mask its pieces, each (exterior, holes), in pixels of the picture."""
    return [
        mask_to_polygons(crop, (float(left), float(top))) for crop, left, top in crops_of(masks)
    ]


def crops_of(masks: RunLengths) -> list[tuple[Pixels, int, int]]:
    """Per mask its window's pixels and the window's left and top."""
    crops = rle.decode_crops(masks)
    pixels, starts = crops.pixels.numpy(), crops.starts.numpy()
    windows: list[list[int]] = masks.windows.tolist()
    return [
        (pixels[starts[i] : starts[i + 1]].reshape(y2 - y1, x2 - x1), x1, y1)
        for i, (x1, y1, x2, y2) in enumerate(windows)
    ]


def cutouts(result: Result, *, margin_px: int = 0) -> list[Pixels]:
    """Each region alone, [h, w, 4] RGBA, transparent outside its mask."""
    from pixelwise.visualize import to_rgb

    image = to_rgb(result.image())
    # Coding again makes the windows tight.
    masks = rle.encode_crops(rle.decode_crops(regions_of(result).masks))
    height, width = result.size
    pieces: list[Pixels] = []
    for crop, left, top in crops_of(masks):
        x1, y1 = max(0, left - margin_px), max(0, top - margin_px)
        x2 = min(width, left + crop.shape[1] + margin_px)
        y2 = min(height, top + crop.shape[0] + margin_px)
        alpha = np.zeros((y2 - y1, x2 - x1), np.uint8)
        alpha[top - y1 :, left - x1 :][: crop.shape[0], : crop.shape[1]] = crop * np.uint8(255)
        pieces.append(np.dstack([image[y1:y2, x1:x2], alpha]))
    return pieces
