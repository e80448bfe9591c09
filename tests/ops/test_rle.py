"""Run-length coding: lossless, equal to pycocotools, and clear about damaged input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from pixelwise.errors import DataError
from pixelwise.ops import rle
from pixelwise.types import MaskCrops, RunLengths
from tests.fixtures import fixture_params, load_fixture


def blobs(n: int, h: int, w: int, seed: int) -> np.ndarray:
    """Masks of every kind: empty, full, noise, rectangles, single pixels, stripes."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, h, w), np.uint8)
    for mask in masks:
        kind = rng.integers(6)
        if kind == 1:
            mask[:] = 1
        elif kind == 2:
            mask[:] = rng.random((h, w)) < rng.random()
        elif kind == 3:
            y, x = rng.integers(h), rng.integers(w)
            mask[y : y + rng.integers(1, h + 1), x : x + rng.integers(1, w + 1)] = 1
        elif kind == 4:
            mask[rng.integers(h), rng.integers(w)] = 1
        elif kind == 5:
            mask[:, rng.integers(w)] = mask[rng.integers(h)] = 1
    return masks


sizes = st.tuples(st.integers(0, 9), st.integers(1, 23), st.integers(1, 23), st.integers(0, 10_000))


def assert_well_formed(masks: RunLengths) -> None:
    """What the docstring of RunLengths promises."""
    h, w = masks.size
    x0, y0, x1, y1 = masks.windows.T
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x1 <= w).all()
    assert (y1 <= h).all()
    assert masks.runs.dtype == np.uint32
    assert masks.windows.dtype == masks.starts.dtype == np.int64
    assert len(masks.starts) == len(masks) + 1
    for i, (a, b) in enumerate(zip(masks.starts, masks.starts[1:], strict=False)):
        runs = masks.runs[a:b]
        assert runs.sum() == (x1 - x0)[i] * (y1 - y0)[i]
        assert (runs[1:] > 0).all(), "only the leading 0-run may be empty"


@settings(max_examples=80, deadline=None)
@given(sizes)
def test_round_trips(case: tuple[int, int, int, int]) -> None:
    dense = blobs(*case)
    packed = rle.encode(dense)
    assert_well_formed(packed)
    np.testing.assert_array_equal(rle.decode(packed), dense)
    np.testing.assert_array_equal(rle.decode(rle.encode(torch.from_numpy(dense).bool())), dense)
    crops = rle.decode_crops(packed)
    np.testing.assert_array_equal(rle.dense_crops(crops).numpy(), dense)
    again = rle.encode_crops(crops)
    for name in ("windows", "runs", "starts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(packed, name))
    np.testing.assert_array_equal(
        rle.dense_crops(rle.crops_from_dense(torch.from_numpy(dense))), dense
    )


@settings(max_examples=80, deadline=None)
@given(sizes)
def test_equals_pycocotools(case: tuple[int, int, int, int]) -> None:
    dense = blobs(*case)
    packed = rle.encode(dense)
    theirs = [coco.encode(np.asfortranarray(m)) for m in dense]
    ours = rle.to_coco(packed)
    assert [o["counts"] for o in ours] == [t["counts"].decode() for t in theirs]
    assert [o["size"] for o in ours] == [t["size"] for t in theirs]
    back = rle.from_coco(theirs, size=packed.size)
    assert_well_formed(back)
    np.testing.assert_array_equal(rle.decode(back), dense)
    np.testing.assert_array_equal(rle.areas(packed), [coco.area(t) for t in theirs])
    boxes = np.array([coco.toBbox(t) for t in theirs]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    solid = rle.areas(packed) > 0
    np.testing.assert_array_equal(rle.tight_boxes(packed)[solid], boxes[solid])
    assert not rle.tight_boxes(packed)[~solid].any()


def test_windows_need_not_be_tight() -> None:
    """A loose window, an empty mask inside one, and a hole that touches both window edges."""
    pixels = np.array([0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0], np.uint8)
    windows = torch.tensor([[3, 1, 6, 5], [0, 0, 3, 4]])
    crops = MaskCrops((6, 8), windows, torch.from_numpy(np.concatenate([pixels, 0 * pixels])))
    packed = rle.encode_crops(crops)
    assert_well_formed(packed)
    assert packed.windows.tolist() == [[4, 2, 5, 4], [0, 0, 0, 0]]
    np.testing.assert_array_equal(rle.decode(packed), rle.dense_crops(crops))
    loose = RunLengths(
        (6, 8), np.array([[1, 1, 4, 4]]), np.array([2, 1, 0, 2, 4], np.uint32), np.array([0, 5])
    )
    assert rle.areas(loose).tolist() == [3]
    assert rle.tight_boxes(loose).tolist() == [[1, 1, 3, 4]]
    assert (
        rle.to_coco(loose)[0]["counts"]
        == coco.encode(np.asfortranarray(rle.decode(loose)[0]))["counts"].decode()
    )


def test_uncompressed_runs() -> None:
    dense = blobs(12, 17, 13, 3)
    plain = []
    for mask in dense:
        flat = mask.T.reshape(-1)
        edges = np.flatnonzero(np.diff(flat, prepend=0))
        plain.append({"size": [17, 13], "counts": np.diff(np.r_[0, edges, flat.size]).tolist()})
    np.testing.assert_array_equal(rle.decode(rle.from_coco(plain)), dense)
    padded = {
        "size": [2, 3],
        "counts": [0, 1, 0, 2, 3, 0],
    }  # runs of 0 in the middle and at the end
    packed = rle.from_coco([padded, {"size": [2, 3], "counts": []}])
    assert_well_formed(packed)
    assert rle.decode(packed).tolist() == [[[1, 1, 0], [1, 0, 0]], [[0] * 3] * 2]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([3, 4], "cover 7 pixels"),
        ([20, -4, 4], "negative"),
        ([19.5, 0.5], "whole numbers"),
        (None, "list of runs"),
        ([[1, 2]], "list of runs"),
        ("~~", "no COCO run lengths"),
        ("52203\x7f", "no COCO run lengths"),
        ("é", "no COCO run lengths|cover"),
        ("P", "no COCO run lengths"),
        ("oooooooo0", "too long"),
    ],
)
def test_damaged_counts_are_named(counts: object, says: str) -> None:
    good = {"size": [4, 5], "counts": [20]}
    with pytest.raises(DataError, match=f"mask 1.*({says})"):
        rle.from_coco([good, {"size": [4, 5], "counts": counts}])


def test_sizes_must_agree() -> None:
    with pytest.raises(DataError, match=r"mask 0 .*\(4, 5\).*\(5, 4\)"):
        rle.from_coco([{"size": [4, 5], "counts": [20]}], size=(5, 4))
    with pytest.raises(DataError, match="size"):
        rle.from_coco([{"counts": [20]}])
    with pytest.raises(ValueError, match="size="):
        rle.from_coco([])
    assert len(rle.from_coco([], size=(3, 4))) == 0
    assert rle.to_coco(RunLengths.empty((3, 4))) == []


def test_polygons_follow_the_coco_rule() -> None:
    polygons = [
        [[2.3, 1.1, 14.2, 3.7, 8.8, 17.9]],
        [[0.0, 0.0, 6.0, 0.0, 6.0, 6.0, 0.0, 6.0], [4.0, 4.0, 12.5, 4.0, 12.5, 30.0]],
        [],
        [[-5.0, -5.0, 60.0, -5.0, 60.0, 60.0, -5.0, 60.0]],
    ]
    ours = rle.decode(rle.from_polygons(polygons, (21, 19)))
    for mask, parts in zip(ours, polygons, strict=True):
        expected = np.zeros((21, 19), np.uint8)
        if parts:
            expected = coco.decode(coco.merge(coco.frPyObjects(parts, 21, 19)))
        np.testing.assert_array_equal(mask, expected)
    assert len(rle.from_polygons([], (21, 19))) == 0


@pytest.mark.parametrize("part", [[1, 1, 4, 4], [1, 1, 4, 4, 2], [1, 1, 4, float("nan"), 2, 2]])
def test_degenerate_polygons_are_named(part: list[float]) -> None:
    with pytest.raises(DataError, match="instance 1"):
        rle.from_polygons([[[0, 0, 3, 0, 3, 3]], [part]], (9, 9))


def test_paint_lets_later_masks_cover_earlier_ones() -> None:
    dense = blobs(9, 15, 22, 5)
    values = [3, 1, 4, 1, 5, 9, 2, 6, 300]
    expected = np.full((15, 22), 255)
    for mask, value in zip(dense, values, strict=True):
        expected[mask != 0] = value
    np.testing.assert_array_equal(rle.paint(rle.encode(dense), values, fill=255), expected)
    assert (rle.paint(RunLengths.empty((4, 5)), [], fill=7) == 7).all()


def test_many_masks_are_unpacked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = blobs(30, 12, 14, 8)
    packed = rle.encode(dense)
    coded = rle.to_coco(packed)
    monkeypatch.setattr(rle, "_CHUNK", 200)
    monkeypatch.setattr(rle, "_RUNS_CHUNK", 50)
    assert rle.to_coco(packed) == coded
    np.testing.assert_array_equal(rle.decode(packed), dense)
    np.testing.assert_array_equal(rle.encode(dense).runs, packed.runs)


@pytest.mark.parametrize("path", fixture_params("instance", "ops_coco_eval*"))
def test_parity(path: object) -> None:
    fixture = load_fixture(path)
    plain = fixture.meta["rle_uncompressed"]
    strings = fixture.meta["rle_compressed"]
    packed = [{"size": p["size"], "counts": s} for p, s in zip(plain, strings, strict=True)]
    masks, again = rle.from_coco(packed), rle.from_coco(plain)
    np.testing.assert_array_equal(rle.decode(masks), rle.decode(again))
    assert [m["counts"] for m in rle.to_coco(again)] == strings
    assert rle.areas(masks).tolist() == [int(a) for a in fixture.meta["rle_area"]]
    boxes = np.array(fixture.meta["rle_bbox"])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_array_equal(rle.tight_boxes(masks), boxes)


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((2, 3, 7, 5), (2, 3, 7, 5)),
        ((2.5, 3.4, 7.5, 5.6), (2, 3, 7, 6)),  # centres are at 2.5 .. 6.5 and 3.5 .. 5.5
        ((2.51, 3.51, 7.49, 5.49), (3, 4, 7, 5)),
        ((-4, -4, 50, 50), (0, 0, 12, 8)),
        ((2.6, 3, 3.4, 5), (0, 0, 0, 0)),  # between two centres
        ((5, 5, 5, 5), (0, 0, 0, 0)),
        ((20, 2, 30, 4), (0, 0, 0, 0)),  # outside
    ],
)
def test_filled_boxes(box, window):
    found = rle.fill_boxes(torch.tensor([box, (0, 0, 1, 1)]), (8, 12))
    assert found.windows.tolist() == [list(window), [0, 0, 1, 1]]
    expected = np.zeros((2, 8, 12), np.uint8)
    expected[0, window[1] : window[3], window[0] : window[2]] = 1
    expected[1, 0, 0] = 1
    assert np.array_equal(rle.decode(found), expected)
    assert rle.to_coco(found) == rle.to_coco(rle.encode(expected))
    assert len(rle.fill_boxes(torch.zeros(0, 4), (8, 12))) == 0


@pytest.mark.parametrize(
    "index", [[0, 1, 2, 3], [2, 3], [3, 1, 2, 1], [], [True, False, False, True]], ids=str
)
def test_selected_masks_are_those_of_the_dense_stack(index: list[int]) -> None:
    dense = np.random.default_rng(0).random((4, 9, 7)) > 0.5
    dense[1] = False  # a mask without runs between the others
    wanted = dense[np.array(index, dtype=bool if True in index[:1] else int)]
    assert np.array_equal(rle.decode(rle.encode(dense).select(np.array(index))), wanted)


def test_parts_may_come_one_by_one_and_be_empty() -> None:
    dense = np.random.default_rng(1).random((6, 9, 7)) > 0.5
    parts = (rle.encode(dense[i : i + 2]) for i in (0, 2, 4))
    joined = RunLengths.concat(part for p in parts for part in (p, RunLengths.empty((9, 7))))
    whole = rle.encode(dense)
    assert joined.runs.dtype == whole.runs.dtype
    for name in ("windows", "runs", "starts"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))
    with pytest.raises(ValueError, match="no parts"):
        RunLengths.concat([])
