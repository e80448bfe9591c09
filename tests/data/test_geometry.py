from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.data.geometry import Axis, Geometry
from pixelwise.ops.rle import dense_crops, encode, encode_crops
from pixelwise.types import IGNORE, Size

sizes = st.tuples(st.integers(20, 61), st.integers(20, 61))


@st.composite
def transforms(draw: st.DrawFn) -> Geometry:
    """Resize, crop or pad, flip: what training and inference do."""
    before, scaled, after = draw(sizes), draw(sizes), draw(sizes)
    corner = [draw(st.integers(min(0, s - a), max(0, s - a))) for s, a in zip(scaled, after)]  # noqa: B905
    cut = Geometry.window(scaled, (corner[0], corner[1]), after)
    flip = Geometry.mirror(after, vertical=draw(st.booleans()), horizontal=draw(st.booleans()))
    return Geometry.resize(before, scaled).then(cut).then(flip)


def disc(size: Size, centre_xy: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return (x - centre_xy[0]) ** 2 + (y - centre_xy[1]) ** 2 <= radius**2


def centroid_xy(mask: np.ndarray) -> np.ndarray:
    y, x = mask.nonzero()
    return np.array([x.mean() + 0.5, y.mean() + 0.5])


@given(g=transforms(), point=st.tuples(st.integers(-50, 90), st.integers(-50, 90)))
def test_the_inverse_is_exact(g: Geometry, point: tuple[int, int]) -> None:
    there_and_back = g.then(g.inverse())
    assert (there_and_back.y, there_and_back.x) == (Axis(), Axis())
    assert there_and_back.before == there_and_back.after == g.before
    assert g.inverse().inverse() == g
    moved = g.inverse().points(g.points(np.array([point], float)))
    assert moved == pytest.approx(np.array([point]), abs=1e-9)


@given(g=transforms())
def test_composing_moves_points_as_one_after_the_other(g: Geometry) -> None:
    half = Geometry.resize(g.after, (g.after[0] // 2, g.after[1] // 2))
    points = np.array([[0.0, 0.0], [3.25, 9.5], [17.0, 2.0]])
    one_by_one = half.points(g.points(points))
    assert g.then(half).points(points) == pytest.approx(one_by_one, abs=1e-9)


@st.composite
def resized_boxes(draw: st.DrawFn) -> tuple[Geometry, list[int]]:
    """A resize with flips, and the (left, top, right, bottom) of a filled box in the picture."""
    before, after = draw(sizes), draw(sizes)
    flips = draw(st.tuples(st.booleans(), st.booleans()))
    g = Geometry.resize(before, after)
    g = g.then(Geometry.mirror(after, vertical=flips[0], horizontal=flips[1]))
    ends = [sorted([draw(st.integers(0, n)), draw(st.integers(0, n))]) for n in before]
    return g, [ends[1][0], ends[0][0], ends[1][1], ends[0][1]]


def filled(size: Size, box: list[int]) -> np.ndarray:
    mask = np.zeros((1, *size), np.uint8)
    mask[:, box[1] : box[3], box[0] : box[2]] = 1
    return mask


@given(case=resized_boxes())
@settings(deadline=None)
def test_every_edge_of_a_mask_lands_within_half_a_pixel(case: tuple[Geometry, list[int]]) -> None:
    g, box = case
    crops, visible = g.masks(encode(filled(g.before, box)))
    exact = g.boxes(np.array([box], float))[0]
    if len(crops.pixels):
        assert np.abs(crops.windows[0].numpy() - exact).max() <= 0.5 + 1e-9
        assert crops.pixels.all()
        assert visible[0] == 1
    else:  # then it is thinner than a pixel, or was nothing
        assert (exact[2:] - exact[:2]).min() < 1


@given(case=resized_boxes())
@settings(deadline=None)
def test_a_round_trip_shifts_a_mask_at_most_half_a_pixel(case: tuple[Geometry, list[int]]) -> None:
    """Through a larger size nothing moves at all.

    Through a smaller one every edge is at most half a pixel of that coarser grid away, before it
    is rounded to a whole pixel of the picture again: more cannot be kept in fewer pixels.
    """
    g, box = case
    there, _ = g.masks(encode(filled(g.before, box)))
    back, _ = g.inverse().masks(encode_crops(there))
    if not len(back.pixels):
        exact = g.boxes(np.array([box], float))[0]
        assert (exact[2:] - exact[:2]).min() < 1
        return
    shift = np.abs(back.windows[0].numpy() - box).reshape(2, 2)  # two corners, (x, y)
    coarse = np.array([float(1 / abs(axis.scale)) for axis in (g.x, g.y)])
    assert (shift <= np.where(coarse <= 1, 0, 0.5 * coarse + 0.5) + 1e-9).all()


@given(g=transforms(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_picture_labels_and_masks_stay_aligned(g: Geometry, data: st.DataObject) -> None:
    """A disc drawn into the picture is, after resampling, where its mask and label went."""
    cy, cx = (data.draw(st.floats(8, side - 8)) for side in g.before)
    mask = disc(g.before, (cx, cy), 7.3)
    picture = torch.from_numpy(mask.astype(np.uint8) * 255)[None]
    seen = g.image(picture)[0].numpy() > 127
    crops, visible = g.masks(encode(mask[None]))
    moved = dense_crops(crops)[0].numpy().astype(bool)
    labels = g.labels(np.where(mask, 3, 1).astype(np.uint8))
    assert seen.shape == moved.shape == labels.shape == g.after
    assert np.array_equal(labels == 3, moved)
    stretch = [float(abs(axis.scale)) for axis in (g.y, g.x)]
    if moved.any() and visible[0] == 1 and min(stretch) > 0.5:
        assert np.abs(centroid_xy(seen) - centroid_xy(moved)).max() <= 0.5
        iou = (seen & moved).sum() / (seen | moved).sum()
        assert iou >= 0.8, iou
        assert np.abs(centroid_xy(moved) - g.points(centroid_xy(mask)[None])[0]).max() <= 0.5


@given(g=transforms())
def test_padding_is_zero_ignored_and_free_of_objects(g: Geometry) -> None:
    covered = g.labels(np.zeros(g.before, np.uint8)) == 0
    picture = g.image(torch.full((3, *g.before), 200, dtype=torch.uint8))
    assert np.array_equal((picture == 200).all(0).numpy(), covered)
    assert (picture[:, ~covered] == 0).all()
    assert (g.labels(np.zeros(g.before, np.uint8))[~covered] == IGNORE).all()
    whole, _ = g.masks(encode(np.ones((1, *g.before), np.uint8)))
    assert np.array_equal(dense_crops(whole)[0].numpy().astype(bool), covered)


def test_masks_equal_the_label_map_of_each() -> None:
    """The crop-by-crop resampling against the dense one, with windows that touch all borders."""
    rng = np.random.default_rng(0)
    masks = rng.random((12, 31, 45)) < 0.4
    masks[3] = False
    for k in range(6):
        masks[k, : 5 * k], masks[k, :, : 3 * k] = False, False
    g = Geometry.resize((31, 45), (50, 37))
    g = g.then(Geometry.window((50, 37), (11, -4), (23, 41)))
    g = g.then(Geometry.mirror((23, 41), vertical=False, horizontal=True))
    crops, visible = g.masks(encode(masks))
    expected = np.stack([g.labels(m.astype(np.uint8)) for m in masks]) == 1
    assert np.array_equal(dense_crops(crops).numpy().astype(bool), expected)
    for window, mask in zip(crops.windows.tolist(), expected, strict=True):
        y, x = mask.nonzero()
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert window == box
    # Source pixels with their centre inside: rows 11..34 of 50, all columns.
    inside = (np.arange(31) + 0.5) * 50 / 31
    rows = (inside >= 11) & (inside < 34)
    share = masks[:, rows].sum((1, 2)) / np.maximum(1, masks.sum((1, 2)))
    assert visible == pytest.approx(share)


def test_boxes_of_a_flipped_picture_keep_their_order() -> None:
    g = Geometry.mirror((10, 20), vertical=True, horizontal=True)
    assert g.boxes(np.array([[1.0, 2.0, 5.0, 4.0]])).tolist() == [[15.0, 6.0, 19.0, 8.0]]


def test_halving_takes_whole_pixels() -> None:
    """Pixel centres of the half-size grid lie on the borders of the fine one; flips included."""
    axis = Axis(Fraction(1, 2))
    assert axis.sources(3).tolist() == [1, 3, 5]
    assert axis.then(Axis(Fraction(-1), Fraction(3))).sources(3).tolist() == [5, 3, 1]


def test_a_picture_between_pixels_is_refused() -> None:
    g = Geometry.window((30, 30), (0, 0), (7, 7)).then(Geometry.resize((7, 7), (10, 10)))
    with pytest.raises(ValueError, match="between the pixels"):
        g.image(torch.zeros(1, 30, 30))
    assert g.labels(np.zeros((30, 30), np.uint8)).shape == (10, 10)
