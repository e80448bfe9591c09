"""Decoding stays within the stated bound: 200 instances on 3000 x 1500, whatever the masks are.

Run lengths of noise are as long as those of its outlines: 157 MB of the 400 for YOLACT.
"""

import sys

import pytest

from tests.memory import LIMIT_MB, peaks_mb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

SHARED = """
from torch.nn import functional as F
from pixelwise.ops import rle
from pixelwise.types import ImageSize

g = torch.Generator().manual_seed(0)
n = 200
corner = torch.rand(n, 2, generator=g) * 4
far = torch.tensor([550.0, 550.0]) - torch.rand(n, 2, generator=g) * 4
square = torch.cat([corner, far], 1)[None]  # [1, n, 4], nearly the whole input of 550 x 550
scores = torch.linspace(1, 0.1, n)[None]
labels = torch.zeros(1, n, dtype=torch.int64)
valid = torch.ones(1, n, dtype=torch.bool)
distorted = ImageSize(original=(1500, 3000), content=(550, 550), input=(550, 550))
kept = ImageSize(original=(1500, 3000), content=(667, 1333), input=(672, 1344))
y, x = torch.meshgrid(torch.linspace(-1, 1, 168), torch.linspace(-1, 1, 336), indexing="ij")
"""

WORK = """
(found,) = net.decode(raw, [size])
assert len(found) >= {count}
assert rle.areas(found.masks).sum() > {pixels}
"""

YOLACT = """
from pixelwise.systems.yolact import YOLACT, Raw, YOLACTConfig

size = distorted
net = YOLACT(YOLACTConfig(backbone="test_resnet", channels=8, detections_per_image=n))
prototypes = {prototypes}
coefficients = torch.randn(1, n, 32, generator=g).tanh()
raw = Raw(square, scores, labels, valid, scores, coefficients, prototypes)
net.decode(Raw(*(x[:, :2] for x in raw[:-1]), prototypes[:, :, :20, :20]), [size])
"""

SOLO = """
from pixelwise.systems.solo import SOLO, Raw, SOLOConfig

size = kept
with torch.device("meta"):
    net = SOLO(SOLOConfig(final_thresh=0.0, detections_per_image=n, suppression="{suppression}"))
reach = 0.5 + 0.7 * torch.rand(500, generator=g)
masks = {masks}
raw = Raw(torch.linspace(0.9, 0.2, 500)[None, :, None] * torch.eye(80)[:1], masks)
net.decode(Raw(raw.scores, masks[:, :, :8, :8].contiguous()), [ImageSize.same((32, 32))])
"""

EMBEDDING = """
from pixelwise.systems.embedding import Embedding, EmbeddingConfig, EmbeddingRaw

size = ImageSize.same((1500, 3000))
h, w = 375, 750
net = Embedding(EmbeddingConfig(backbone="test_resnet", detections_per_image=n, delta_d={delta_d}))
owner = {owner}
points = (8 * torch.randn(n, 8, generator=g))[owner].permute(2, 0, 1)
points = points + 0.05 * torch.randn(8, h, w, generator=g)
logits = torch.full((9, h, w), -4.0)
logits[0] = 4.0
raw = EmbeddingRaw(logits[None], points[None].contiguous())
net.decode(EmbeddingRaw(*(x[..., :20, :20] for x in raw)), [ImageSize.same((80, 80))])
"""

BLENDMASK = """
from pixelwise.systems.blendmask import BlendMask, BlendMaskConfig, Raw

size = kept
with torch.device("meta"):
    net = BlendMask(BlendMaskConfig(backbone="test_resnet", channels=40))
boxes = square * torch.tensor([1333 / 550, 667 / 550]).repeat(2)
raw = Raw(boxes, scores, labels, valid, torch.randn(1, n, 56, 56, generator=g))
net.decode(Raw(*(x[:, :2] for x in raw)), [size])
"""

POLARMASK = """
from pixelwise.systems.polarmask import PolarMask, PolarMaskConfig, Raw

size = kept
with torch.device("meta"):
    net = PolarMask(PolarMaskConfig())
centres = 300 + 100 * torch.rand(n, 2, generator=g)
whole = torch.tensor([0.0, 0.0, 1333.0, 667.0]).expand(1, n, 4)
raw = Raw(whole, scores, labels, valid, centres[None], {rays})
small = ImageSize(original=(40, 80), content=(667, 1333), input=(672, 1344))
net.decode(raw._replace(rays=raw.rays[:, :, :8]), [small])
"""

SMOOTH = "F.interpolate(torch.randn(1, 32, 6, 6, generator=g), (138, 138), mode='bicubic')"
DISCS = "torch.sigmoid(9 * (reach[:, None, None] - torch.sqrt(x**2 + y**2)))[None]"
NOISE = "torch.rand(1, 500, 168, 336, generator=g)"
BLOCKS = "(torch.arange(h) * 10 // h)[:, None] * 20 + torch.arange(w) * 20 // w"
SCATTER = "torch.randint(0, n, (h, w), generator=g)"
WHITE = "torch.randn(1, 32, 138, 138, generator=g)"
OVERLAPPING, APART = (200, 10**8), (200, 4 * 10**6)  # least objects, and pixels of all of them


@pytest.mark.parametrize(
    ("setup", "least"),
    [
        pytest.param(YOLACT.format(prototypes=SMOOTH), OVERLAPPING, id="yolact, smooth"),
        pytest.param(YOLACT.format(prototypes=WHITE), OVERLAPPING, id="yolact, noise"),
        pytest.param(SOLO.format(suppression="gaussian", masks=DISCS), OVERLAPPING, id="solo"),
        pytest.param(
            SOLO.format(suppression="gaussian", masks=NOISE), OVERLAPPING, id="solo, noise"
        ),
        pytest.param(
            SOLO.format(suppression="mask", masks=NOISE), OVERLAPPING, id="solo, mask nms, noise"
        ),
        pytest.param(BLENDMASK, OVERLAPPING, id="blendmask, noise"),
        pytest.param(
            POLARMASK.format(rays="200 + 60 * torch.rand(1, n, 36, generator=g)"),
            OVERLAPPING,
            id="polarmask",
        ),
        pytest.param(  # spikes at every degree
            POLARMASK.format(rays="700 * torch.rand(1, n, 360, generator=g)"),
            (200, 10**7),
            id="polarmask, noise",
        ),
        pytest.param(EMBEDDING.format(delta_d=1.5, owner=BLOCKS), APART, id="embedding, blocks"),
        pytest.param(EMBEDDING.format(delta_d=50.0, owner=SCATTER), APART, id="embedding, noise"),
    ],
)
def test_decoding_stays_within_the_bound(setup, least):
    """A dense stack of the masks would take up to 3.6 GB."""
    count, pixels = least
    (peak,) = peaks_mb(SHARED + setup, WORK.format(count=count, pixels=pixels))
    print(f"{peak:.0f} MB above the start")
    assert peak < LIMIT_MB
