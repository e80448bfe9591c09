"""The stated bound: 200 instances on 3000 x 1500 stay below 400 MB above the start."""

import sys

import pytest

from tests.memory import LIMIT_MB, peaks_mb

START = """
from pixelwise.ops.masks import mask_targets, paste_masks
from pixelwise.ops.rle import areas, decode_crops, paint, tight_boxes, to_coco

g = torch.Generator().manual_seed(0)
size, n, peak = (1500, 3000), 200, [0.0]
corner = torch.rand(n, 2, generator=g) * 20
far = torch.tensor([3000.0, 1500.0]) - torch.rand(n, 2, generator=g) * 20
boxes = torch.cat([corner, far], 1)
y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
probs = torch.sigmoid(9 * (0.8 - (x**2 + y**2).sqrt()) + torch.randn(n, 28, 28, generator=g))
paste_masks(probs[:2], boxes[:2], size)  # libraries load on first use
"""

PASTE = """
for mode in ("grid", "expanded"):
    masks = paste_masks({probs}, boxes, size, mode=mode)
assert areas(masks).sum() > 10**8
labels = paint(masks.select(range(4)), list(range(4)), fill=255)
records = to_coco(masks)
assert (tight_boxes(masks) == masks.windows).all()
"""

TARGETS = """
# 48 regions of ground truth that covers a tenth of the picture each.
boxes = torch.cat([corner, corner + torch.tensor([950.0, 470.0])], 1)
crops = decode_crops(paste_masks(probs, boxes, size))
start, peak[0] = resident_mb(), 0.0  # the targets alone
mask_targets(crops, boxes[:48] + 5, torch.arange(48), 28)
"""


ANNOTATIONS = """
import numpy as np
from pixelwise.ops import rle
from pixelwise.ops.masks import mask_targets
from pixelwise.types import RunLengths

size, n = (1500, 3000), 200
g = torch.Generator().manual_seed(0)
corner = torch.rand(n, 2, generator=g) * torch.tensor([2050.0, 1030.0])
boxes = torch.cat([corner, corner + torch.tensor([950.0, 470.0])], 1)  # a tenth of the picture each
polygons = [[[a, b, c, b, c, d, (a + c) / 2, (b + d) / 2, a, d]] for a, b, c, d in boxes.tolist()]
few = rle.from_polygons(polygons[:2], size)  # libraries load on first use
records = rle.to_coco(few) * (n // 2)
bitmap = rle.decode(few)[:1]

def targets(masks):
    found = mask_targets(rle.decode_crops(masks), boxes, torch.arange(n), 28)
    assert found.mean() > 0.2, "the regions see their objects"
"""

FROM_POLYGONS = "targets(rle.from_polygons(polygons, size))"
FROM_RUN_LENGTHS = "boxes[1::2], boxes[::2] = boxes[1].clone(), boxes[0].clone()\n"
FROM_RUN_LENGTHS += "targets(rle.from_coco(records, size=size))"
FROM_BITMAPS = "boxes[:] = boxes[0].clone()\n"
FROM_BITMAPS += "targets(RunLengths.concat([rle.encode(bitmap) for _ in range(n)]))"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_targets_of_any_annotation_never_need_a_dense_stack() -> None:
    """200 masks of 3000 x 1500 pixels are 900 MB even at a byte each; their windows are 89 MB."""
    assert max(peaks_mb(ANNOTATIONS, FROM_POLYGONS, FROM_RUN_LENGTHS, FROM_BITMAPS)) < LIMIT_MB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_masks_stay_within_the_bound() -> None:
    """Every pasted box covers the picture; a dense stack of the targets would take 3.6 GB."""
    assert max(peaks_mb(START, PASTE.format(probs="probs"), TARGETS)) < LIMIT_MB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_longest_outlines_stay_within_the_bound() -> None:
    """Noise crosses the threshold in half of all cells, over the whole picture, 200 times."""
    assert max(peaks_mb(START, PASTE.format(probs="torch.rand(n, 28, 28, generator=g)"))) < LIMIT_MB
