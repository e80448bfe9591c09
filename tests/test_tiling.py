import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.errors import UsageError
from pixelwise.ops.rle import decode, encode, tight_boxes
from pixelwise.tiling import (
    SemanticStitcher,
    blend_weights,
    merge_instances,
    tile_windows,
    window_starts,
)
from pixelwise.types import InstancePrediction
from tests.fixtures import parity_dir


def sliding_cases() -> list[tuple[int, int, int, list[list[int]]]]:
    path = parity_dir() / "semantic" / "tables.json"
    if not path.exists():
        return []
    table = json.loads(path.read_text())["sliding_windows"]
    return [
        (row["length"], row["crop"], row["stride"], row["windows"])
        for origin in ("semseg", "mmseg")
        for row in table[origin]
    ]


@pytest.mark.parametrize(("length", "crop", "stride", "windows"), sliding_cases())
def test_windows_are_those_of_the_upstreams(
    length: int, crop: int, stride: int, windows: list[list[int]]
) -> None:
    ends = [min(w[1], length) for w in windows]  # semseg pads small pictures, we do not
    starts = window_starts(length, crop, stride)
    assert starts == [w[0] for w in windows]
    assert [min(s + crop, length) for s in starts] == ends


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    overlap=st.integers(0, 7),
)
def test_tiles_cover_the_picture_and_overlap(
    height: int, width: int, tile: tuple[int, int], overlap: int
) -> None:
    windows = tile_windows((height, width), tile, overlap_px=overlap)
    seen = np.zeros((height, width), int)
    for x1, y1, x2, y2 in windows:
        assert (y2 - y1, x2 - x1) == (min(tile[0], height), min(tile[1], width))
        seen[y1:y2, x1:x2] += 1
    assert seen.min() >= 1
    for axis, n in ((0, width), (1, height)):
        first = sorted({(int(w[axis]), int(w[axis + 2])) for w in windows})
        assert all(a[1] - b[0] >= overlap for a, b in itertools.pairwise(first)), n


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(UsageError, match="64 px does not fit tiles of 64x64"):
        tile_windows((100, 100), (64, 64), overlap_px=64)


@pytest.mark.parametrize("size", [(61, 83), (20, 20), (64, 31)])
def test_stitched_labels_of_a_local_function_equal_the_whole_picture(size: tuple[int, int]) -> None:
    probs = torch.rand(5, *size, generator=torch.Generator().manual_seed(0)).softmax(0)
    stitcher = SemanticStitcher(size, 5)
    for x1, y1, x2, y2 in tile_windows(size, (24, 32), overlap_px=9).tolist():
        stitcher.add(probs[:, y1:y2, x1:x2], (x1, y1, x2, y2))
        assert stitcher.band.shape[1] <= 24
    assert torch.equal(stitcher.finish().labels.long(), probs.argmax(0))


def test_a_pixel_follows_the_tile_that_sees_it_best() -> None:
    """Two tiles that contradict each other meet in the middle of their overlap."""
    stitcher = SemanticStitcher((4, 30), 2)
    for number, window in enumerate(tile_windows((4, 30), (4, 20), overlap_px=3).tolist()):
        probs = torch.zeros(2, 4, 20)
        probs[number] = 1
        stitcher.add(probs, window)
    assert stitcher.finish().labels[0].tolist() == [0] * 15 + [1] * 15


def test_blend_weights_are_positive_and_largest_inside() -> None:
    weights = blend_weights((5, 4))
    assert weights.min() > 0
    assert weights[2, 1] == weights.max() == weights[2, 2]


def cut_into_tiles(
    masks: np.ndarray, windows: np.ndarray, scores: list[float], labels: list[int]
) -> list[InstancePrediction]:
    """What a perfect detector finds in every tile: the visible part of each object."""
    found = []
    for x1, y1, x2, y2 in windows:
        parts = masks[:, y1:y2, x1:x2]
        keep = parts.any((1, 2)).nonzero()[0]
        boxes = [
            [c.min(), r.min(), c.max() + 1, r.max() + 1]
            for r, c in (parts[k].nonzero() for k in keep)
        ]
        found.append(
            InstancePrediction(
                boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                labels=torch.tensor([labels[k] for k in keep], dtype=torch.int64),
                scores=torch.tensor([scores[k] for k in keep]),
                masks=encode(parts[keep]) if len(keep) else encode(np.zeros((0, *parts.shape[1:]))),
            )
        )
    return found


def discs(size: tuple[int, int], circles: list[tuple[int, int, int]]) -> np.ndarray:
    y, x = np.ogrid[: size[0], : size[1]]
    return np.stack([(x - cx) ** 2 + (y - cy) ** 2 <= r * r for cx, cy, r in circles])


@pytest.mark.parametrize(
    ("circles", "labels", "why"),
    [
        ([(20, 20, 6)], [0], "inside one tile"),
        ([(56, 20, 6)], [0], "inside the overlap of two tiles"),
        ([(48, 20, 9)], [0], "cut in one tile, whole in the next"),
        ([(56, 56, 7)], [0], "at a corner where four tiles meet"),
        ([(60, 60, 45)], [0], "larger than a tile: united from pieces"),
        ([(50, 30, 6), (62, 30, 5)], [0, 0], "two neighbours on one seam stay two"),
        ([(56, 20, 8), (56, 20, 6)], [0, 1], "other classes are other objects"),
        ([(56, 20, 6), (90, 90, 8), (10, 100, 7), (58, 64, 10)], [0, 1, 0, 2], "many"),
    ],
)
def test_objects_across_seams_come_out_once(
    circles: list[tuple[int, int, int]], labels: list[int], why: str
) -> None:
    size = (120, 125)
    masks = discs(size, circles)
    scores = [0.9 - 0.1 * i for i in range(len(circles))]
    windows = tile_windows(size, (64, 64), overlap_px=16)
    merged = merge_instances(cut_into_tiles(masks, windows, scores, labels), windows, size)
    assert merged.labels.tolist() == labels, why
    assert np.array_equal(decode(merged.masks), masks.astype(np.uint8)), why
    rows = [m.nonzero() for m in masks]
    boxes = [[c.min(), r.min(), c.max() + 1, r.max() + 1] for r, c in rows]
    assert merged.boxes.tolist() == boxes, why
    assert merged.scores.tolist() == pytest.approx(scores)


def test_no_objects_at_all() -> None:
    windows = tile_windows((50, 90), (32, 32), overlap_px=8)
    empty = cut_into_tiles(np.zeros((0, 50, 90), bool), windows, [], [])
    assert len(merge_instances(empty, windows, (50, 90))) == 0


def views(
    size: tuple[int, int], windows: np.ndarray, seen: list[list[tuple[np.ndarray, float]]]
) -> list[InstancePrediction]:
    """Per tile the objects it reports, given as (mask of the whole picture, score)."""
    found = []
    for (x1, y1, x2, y2), objects in zip(windows.tolist(), seen, strict=True):
        masks = np.array([mask[y1:y2, x1:x2] for mask, _ in objects]).reshape(-1, y2 - y1, x2 - x1)
        runs = encode(masks)
        found.append(
            InstancePrediction(
                boxes=torch.from_numpy(tight_boxes(runs)),
                labels=torch.zeros(len(objects), dtype=torch.int64),
                scores=torch.tensor([score for _, score in objects]),
                masks=runs,
                mask_scores=torch.tensor([score / 2 for _, score in objects]),
            )
        )
    return found


def block(size: tuple[int, int], x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize("scores", list(itertools.permutations([0.9, 0.8, 0.7, 0.6])))
def test_a_bar_over_four_tiles_is_one_object_whatever_the_scores(
    scores: tuple[float, ...],
) -> None:
    """The outer pieces never meet; they belong together through the inner ones."""
    size = (32, 104)
    windows = tile_windows(size, (32, 32), overlap_px=8)
    assert len(windows) == 4
    bar = block(size, 3, 10, 101, 20)
    found = views(size, windows, [[(bar, score)] for score in scores])
    merged = merge_instances(found, windows, size)
    assert np.array_equal(decode(merged.masks)[0], bar)
    assert len(merged) == 1
    assert merged.boxes.tolist() == [[3, 10, 101, 20]]
    assert merged.scores.tolist() == pytest.approx([0.9])


TWO = (40, 56)  # two tiles: columns 0..40 and 16..56, shared 16..40


@pytest.mark.parametrize(
    ("left", "right", "expected", "why"),
    [
        (
            [((20, 5, 34, 15), 0.5)],
            [((20, 5, 27, 15), 0.9), ((27, 5, 34, 15), 0.8)],
            [((20, 5, 27, 15), 0.9), ((27, 5, 34, 15), 0.8)],
            "one tile joins what the other tells apart: the better scored decide, both of them",
        ),
        (
            [((20, 5, 34, 15), 0.95)],
            [((20, 5, 27, 15), 0.9), ((27, 5, 34, 15), 0.8)],
            [((20, 5, 34, 15), 0.95)],
            "the same the other way round",
        ),
        (
            [((4, 5, 40, 35), 0.9)],
            [((16, 5, 52, 35), 0.8), ((30, 10, 34, 14), 0.99)],
            [((30, 10, 34, 14), 0.99), ((4, 5, 52, 35), 0.9)],
            "a small whole object inside of a large cut one does not make it vanish",
        ),
        (
            [((30, 5, 40, 15), 0.99)],
            [((30, 5, 46, 15), 0.4)],
            [((30, 5, 46, 15), 0.4)],
            "a whole view wins over a cut one, whatever the scores",
        ),
        (
            [((30, 5, 40, 15), 0.6)],
            [],
            [((30, 5, 40, 15), 0.6)],
            "a cut view that nobody else reports stays",
        ),
        (
            [((26, 5, 40, 15), 0.6)],
            [((16, 5, 28, 15), 0.7)],
            [((16, 5, 28, 15), 0.7), ((26, 5, 40, 15), 0.6)],
            "two cut views that hardly meet are two objects",
        ),
    ],
)
def test_views_that_disagree(left: list, right: list, expected: list, why: str) -> None:
    windows = tile_windows(TWO, (40, 40), overlap_px=24)
    assert windows.tolist() == [[0, 0, 40, 40], [16, 0, 56, 40]]
    seen = [[(block(TWO, *box), score) for box, score in side] for side in (left, right)]
    merged = merge_instances(views(TWO, windows, seen), windows, TWO)
    assert merged.scores.tolist() == pytest.approx([score for _, score in expected]), why
    assert merged.mask_scores is not None
    assert merged.mask_scores.tolist() == pytest.approx([s / 2 for _, s in expected]), why
    for mask, box, (wanted, _) in zip(
        decode(merged.masks), merged.boxes.tolist(), expected, strict=True
    ):
        assert np.array_equal(mask, block(TWO, *wanted)), why
        assert tuple(box) == wanted, why


@given(seed=st.integers(0, 10_000), overlap=st.integers(14, 30))
@settings(deadline=None, max_examples=30)
def test_objects_smaller_than_the_overlap_come_out_once_and_unchanged(
    seed: int, overlap: int
) -> None:
    rng, size = np.random.default_rng(seed), (90, 110)
    masks = []
    for y, x in itertools.product(range(7, 83, 15), range(7, 103, 15)):
        if rng.random() < 0.7:
            r = int(rng.integers(2, 7))
            masks.append(discs(size, [(x + int(rng.integers(-1, 1)), y, r)])[0])
    stack = np.array(masks).reshape(-1, *size)
    scores = rng.permutation(len(stack)) / 100 + 0.1
    windows = tile_windows(size, (48, 40), overlap_px=overlap)
    tiles = cut_into_tiles(stack, windows, scores.tolist(), [0] * len(stack))
    merged = merge_instances(tiles, windows, size)
    order = np.argsort(-scores)
    assert np.array_equal(decode(merged.masks), stack[order].astype(np.uint8))


BIG = """
import resource, sys, time
import numpy as np, torch
from pixelwise.ops.rle import encode
from pixelwise.tiling import SemanticStitcher, merge_instances, tile_windows
from pixelwise.types import InstancePrediction, RunLengths

size, side = (8000, 8000), 512
torch.set_num_threads(1)
windows = tile_windows(size, (side, side), overlap_px=64)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = peak()
stitcher = SemanticStitcher(size, 4)
for x1, y1, x2, y2 in windows.tolist():
    y, x = torch.arange(y1, y2)[:, None], torch.arange(x1, x2)[None]
    labels = (y // 300 + x // 500) % 4
    stitcher.add(torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float(), (x1, y1, x2, y2))
labels = stitcher.finish()
y, x = torch.arange(8000)[::97, None], torch.arange(8000)[None, ::89]
assert torch.equal(labels[::97, ::89].long(), (y // 300 + x // 500) % 4)
semantic = peak() - start
del labels, stitcher
y, x = np.mgrid[:41, :41] - 20
disc = encode(((x * x + y * y) <= 400)[None])
found, step = [], 50
for x1, y1, x2, y2 in windows.tolist():
    parts, boxes = [], []
    for cy in range(-(-(y1 - 20) // step) * step, y2 + 20, step):
        for cx in range(-(-(x1 - 20) // step) * step, x2 + 20, step):
            top, left = cy - 20 - y1, cx - 20 - x1
            if 0 <= top and 0 <= left and top + 41 <= y2 - y1 and left + 41 <= x2 - x1:
                box = [left, top, left + 41, top + 41]
                tile = (y2 - y1, x2 - x1)
                parts.append(RunLengths(tile, np.array([box]), disc.runs, disc.starts))
                boxes.append(box)
    n = len(parts)
    found.append(InstancePrediction(boxes=torch.tensor(boxes).float(), labels=torch.zeros(n).long(),
        scores=torch.rand(n), masks=RunLengths.concat(parts)))
begin = time.process_time()
merged = merge_instances(found, windows, size)
print(semantic, peak() - start, len(merged), time.process_time() - begin)
"""


@pytest.mark.slow
def test_a_picture_of_64_megapixels_stays_in_bounded_memory() -> None:
    """4 x 8000 x 8000 probabilities would be 1 GB, 25,000 dense masks 1.6 TB."""
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, check=True)
    semantic_mb, all_mb, count, seconds = map(float, done.stdout.split())
    assert semantic_mb < 400
    assert all_mb < 800
    assert count == 159 * 159
    assert seconds < 120


def test_a_margin_counts_only_where_no_other_tile_speaks() -> None:
    """Two tiles of 8 in a row of 12: each is trusted up to 2 px from the border between them."""
    stitcher = SemanticStitcher((1, 12), 2, margin_px=2, with_probs=True)
    left, right = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    stitcher.add(left[:, None, None].expand(2, 1, 8), (0, 0, 8, 1))
    stitcher.add(right[:, None, None].expand(2, 1, 8), (4, 0, 12, 1))
    found = stitcher.finish()
    assert found.labels[0].tolist() == [0] * 6 + [1] * 6
    expected = torch.where(torch.arange(12) < 6, left[0], right[0])
    torch.testing.assert_close(found.probs[0, 0], expected, rtol=0, atol=1e-5)
    alone = SemanticStitcher((1, 12), 2, margin_px=2)
    alone.add(right[:, None, None].expand(2, 1, 8), (0, 0, 8, 1))
    assert alone.finish().labels[0, :8].tolist() == [1] * 8
