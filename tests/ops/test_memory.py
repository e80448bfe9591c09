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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_masks_stay_within_the_bound() -> None:
    """Every pasted box covers the picture; a dense stack of the targets would take 3.6 GB."""
    assert max(peaks_mb(START, PASTE.format(probs="probs"), TARGETS)) < LIMIT_MB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_longest_outlines_stay_within_the_bound() -> None:
    """Noise crosses the threshold in half of all cells, over the whole picture, 200 times."""
    assert max(peaks_mb(START, PASTE.format(probs="torch.rand(n, 28, 28, generator=g)"))) < LIMIT_MB
