import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelwise.errors import UsageError
from pixelwise.ops.rle import decode, encode
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
    assert torch.equal(stitcher.finish().long(), probs.argmax(0))


def test_a_pixel_follows_the_tile_that_sees_it_best() -> None:
    """Two tiles that contradict each other meet in the middle of their overlap."""
    stitcher = SemanticStitcher((4, 30), 2)
    for number, window in enumerate(tile_windows((4, 30), (4, 20), overlap_px=3).tolist()):
        probs = torch.zeros(2, 4, 20)
        probs[number] = 1
        stitcher.add(probs, window)
    assert stitcher.finish()[0].tolist() == [0] * 15 + [1] * 15


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
