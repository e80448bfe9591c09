"""Drawing: where pixels are, which colours, where text goes."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

from pixelwise.data.sample import Instances, Sample
from pixelwise.drawing.labels import Label, draw_labels
from pixelwise.drawing.palette import from_oklab, ink_on, to_oklab, vary
from pixelwise.ops import rle
from pixelwise.types import InstancePrediction, SemanticPrediction
from pixelwise.visualize import (
    class_colors,
    draw,
    draw_ground_truth,
    line_width_px,
    side_by_side,
    to_rgb,
)

BLACK = np.zeros((120, 160, 3), np.uint8)


def instances(masks: np.ndarray, labels: list[int] | None = None) -> InstancePrediction:
    runs = rle.encode(masks)
    return InstancePrediction(
        boxes=torch.as_tensor(rle.tight_boxes(runs)),
        labels=torch.tensor(labels or [0] * len(masks), dtype=torch.int64),
        scores=torch.linspace(0.99, 0.5, len(masks)),
        masks=runs,
    )


def square(x1: int, y1: int, x2: int, y2: int, size=(120, 160)) -> np.ndarray:
    mask = np.zeros((1, *size), bool)
    mask[0, y1:y2, x1:x2] = True
    return mask


def bare(image: np.ndarray, prediction, classes=("a", "b"), **options) -> np.ndarray:
    return draw(image, prediction, classes, with_text=False, **options).astype(int)


# --- pixels -------------------------------------------------------------------------------------


def test_a_mask_sits_on_its_pixels() -> None:
    drawn = bare(BLACK, instances(square(40, 30, 100, 80))).sum(2)
    width = line_width_px((120, 160))
    reach = int(np.ceil(width / 2 + 0.5))
    # Beyond the outline nothing is touched, on each side alike; inside everything is.
    outside = np.ones((120, 160), bool)
    outside[30 - reach : 80 + reach, 40 - reach : 100 + reach] = False
    assert (drawn[outside] == 0).all()
    assert (drawn[30:80, 40:100] > 0).all()
    # The outline is symmetric about the edge: rows 29 and 30 mirror each other, 79 and 80 too.
    middle = 70
    line_out, line_in = drawn[29, middle], drawn[30, middle]
    fill = drawn[55, middle]
    assert line_out > 0.5 * line_in > 0
    assert drawn[80, middle] == pytest.approx(line_out, abs=6)
    assert drawn[79, middle] == pytest.approx(line_in, abs=6)
    assert drawn[55, 39] == pytest.approx(line_out, abs=6)
    assert drawn[55, 99] == pytest.approx(line_in, abs=6)
    assert line_in > 1.5 * fill


def test_the_centre_of_the_drawing_is_the_centre_of_the_mask() -> None:
    y, x = np.mgrid[:120, :160]
    disc = ((y + 0.5 - 61) ** 2 + (x + 0.5 - 83) ** 2 < 30**2)[None]
    drawn = bare(BLACK, instances(disc)).sum(2).astype(float)
    assert (drawn * (x + 0.5)).sum() / drawn.sum() == pytest.approx(83, abs=0.02)
    assert (drawn * (y + 0.5)).sum() / drawn.sum() == pytest.approx(61, abs=0.02)


def test_outlines_are_antialiased() -> None:
    y, x = np.mgrid[:120, :160]
    slope = 0.37
    above = y + 0.5 < slope * (x + 0.5) + 20
    drawn = bare(BLACK, instances(above[None])).sum(2)
    # Outside the mask only the outline is drawn: its opacity follows the distance to the edge.
    distance = np.abs(y + 0.5 - slope * (x + 0.5) - 20) / np.hypot(1, slope)
    ideal = np.clip(line_width_px((120, 160)) / 2 + 0.5 - distance, 0, 1)
    middle = ~above & (x > 20) & (x < 140)
    opacity = drawn / sum(class_colors(1)[0])
    near = middle & (distance < 3)
    assert np.abs(opacity - ideal)[near].mean() < 0.06
    assert np.abs(opacity - ideal)[near].max() < 0.35  # a staircase is off by up to 1
    assert (opacity[middle & (distance >= 3)] == 0).all()


def test_fill_blends_and_keeps_the_picture_visible() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    drawn = bare(image, instances(square(20, 20, 140, 100)))
    color = np.array(class_colors(1)[0])
    inner = np.s_[40:80, 40:120]
    assert np.abs(drawn[inner] - (0.58 * image[inner] + 0.42 * color)).max() <= 2


def test_a_hole_shows_the_picture() -> None:
    mask = square(20, 20, 140, 100)
    mask[0, 40:80, 60:100] = False
    assert (bare(BLACK, instances(mask))[46:74, 66:94] == 0).all()


def test_small_objects_lie_above_large_ones() -> None:
    both = np.concatenate([square(60, 50, 80, 70), square(20, 20, 140, 100)])
    drawn = bare(np.full_like(BLACK, 255), instances(both, [1, 0]))
    alone = bare(np.full_like(BLACK, 255), instances(square(60, 50, 80, 70), [1]))
    # Blue over red over white, the red one first.
    assert drawn[60, 70, 2] > drawn[60, 70, 0]
    assert not np.array_equal(drawn[60, 70], alone[60, 70])


@pytest.mark.parametrize("zoom", [2, 3])
def test_zoom_keeps_masks_on_their_pixels(zoom: int) -> None:
    drawn = bare(BLACK, instances(square(40, 30, 100, 80)), zoom=zoom).sum(2)
    assert drawn.shape == (120 * zoom, 160 * zoom)
    rows = np.flatnonzero(drawn.any(1))
    columns = np.flatnonzero(drawn.any(0))
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(55 * zoom, abs=0.5)
    assert (columns[0] + columns[-1] + 1) / 2 == pytest.approx(70 * zoom, abs=0.5)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (square(0, 0, 160, 120), "the whole picture"),
        (square(0, 0, 1, 1), "one pixel in the corner"),
        (square(159, 119, 160, 120), "one pixel in the other corner"),
        (np.zeros((1, 120, 160), bool), "empty"),
        (np.zeros((0, 120, 160), bool), "no object"),
    ],
)
def test_extreme_masks(mask: np.ndarray, why: str) -> None:
    drawn = draw(BLACK, instances(mask), ("a",))
    assert drawn.shape == BLACK.shape, why
    assert drawn.any() == mask.any(), why


# --- label maps ---------------------------------------------------------------------------------


def test_regions_get_their_class_colour() -> None:
    labels = torch.zeros(120, 160, dtype=torch.uint8)
    labels[:, 80:] = 1
    labels[:20, :20] = 255
    drawn = bare(BLACK, SemanticPrediction(labels=labels))
    for x, color in ((40, class_colors(2)[0]), (120, class_colors(2)[1])):
        assert np.abs(drawn[60, x] - 0.55 * np.array(color)).max() <= 2
    assert (drawn[2:14, 2:14] == 0).all()  # ignored pixels stay as they are
    border = drawn[60, 79:81].sum(1)
    assert border.min() > drawn[60, 40].sum()  # a light line between the regions
    assert np.array_equal(drawn[0, 40], drawn[60, 40])  # and none at the picture's frame


def test_legend_names_the_classes_that_occur() -> None:
    labels = torch.zeros(120, 160, dtype=torch.uint8)
    labels[:, 80:] = 1
    names = [f"class number {i}" for i in range(30)]
    two = draw(BLACK, SemanticPrediction(labels=labels), names)
    assert two.shape[0] > 120
    assert two.shape[1:] == (160, 3)
    assert np.array_equal(two[:120], bare(BLACK, SemanticPrediction(labels=labels), names))
    many = torch.arange(30).repeat_interleave(640).reshape(120, 160).to(torch.uint8)
    assert len(draw(BLACK, SemanticPrediction(labels=many), names)) > len(two)
    legend = two[120:].reshape(-1, 3).astype(int)
    for color in class_colors(2):
        assert (np.abs(legend - np.array(color)).max(1) <= 2).sum() > 50


# --- text ---------------------------------------------------------------------------------------


def test_labels_do_not_cover_each_other() -> None:
    canvas = Image.new("RGB", (640, 480))
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 400, (12, 2))
    labels = [Label(f"object {i}", (x, y, x + 90, y + 60)) for i, (x, y) in enumerate(corners)]
    colors = class_colors(12)
    areas: list[np.ndarray] = []
    for i in range(12):  # each label's pixels, with all labels drawn before it
        before = np.asarray(canvas).copy()
        canvas = Image.new("RGB", (640, 480))
        draw_labels(canvas, labels[: i + 1], colors[: i + 1])
        areas.append((np.asarray(canvas) != before).any(2))
    assert sum(a.any() for a in areas) >= 10
    assert np.sum(areas, axis=0).max() == 1


def test_text_is_left_out_where_objects_are_tiny() -> None:
    masks = np.concatenate([square(x, 10, x + 6, 16, (480, 640)) for x in range(0, 600, 12)])
    image = np.zeros((480, 640, 3), np.uint8)
    assert np.array_equal(draw(image, instances(masks), ("a", "b")), bare(image, instances(masks)))
    large = np.concatenate([square(100, 100, 300, 300, (480, 640)), masks])
    assert not np.array_equal(
        draw(image, instances(large), ("a", "b")), bare(image, instances(large))
    )


def test_the_only_class_is_not_named() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    found = instances(square(100, 100, 300, 300, (480, 640)))
    assert np.array_equal(
        draw(image, found, ("nucleus",), with_scores=False), bare(image, found, ("nucleus",))
    )


def test_labels_stay_inside_the_picture() -> None:
    canvas = Image.new("RGB", (200, 100))
    draw_labels(canvas, [Label("wide name of an object", (150, 0, 200, 100))], [(255, 0, 0)])
    drawn = np.asarray(canvas).any(2)
    assert drawn[:, -1].any()  # pushed to the border
    assert drawn.any(0).sum() > 100  # not cut off


# --- colours ------------------------------------------------------------------------------------


def test_a_class_keeps_its_colour_whatever_the_number_of_classes() -> None:
    assert class_colors(80)[:7] == class_colors(7)
    assert class_colors(300)[255:] == class_colors(45)


def test_colours_are_far_apart() -> None:
    lab = to_oklab(np.array(class_colors(80), float))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(80)
    assert distance[:20, :20].min() > 0.1  # 0.02 is about the smallest that the eye can see
    assert distance.min() > 0.06


def test_oklab_there_and_back() -> None:
    rgb = np.random.default_rng(0).uniform(0, 255, (100, 3))
    assert np.abs(from_oklab(to_oklab(rgb)) - rgb).max() < 1e-6
    white = to_oklab(np.array([[255.0, 255, 255]]))[0]
    assert white == pytest.approx([1, 0, 0], abs=1e-4)


def test_instances_of_a_class_vary_and_stay_recognisable() -> None:
    colors = class_colors(10)
    base = to_oklab(np.array(colors, float))
    for i, color in enumerate(colors[:9]):  # the tenth is nearly grey
        assert vary(color, 0) == color
        varied = [vary(color, k) for k in range(1, 12)]
        assert len(set(varied)) == 11
        lab = to_oklab(np.array(varied, float))
        nearest = np.linalg.norm(lab[:, None] - base[None], axis=-1).argmin(1)
        assert (nearest == i).mean() >= 0.5
    first, second = (to_oklab(np.array([vary(colors[1], k)], float)) for k in (1, 2))
    assert np.linalg.norm(first - second) > 0.05


def test_text_has_contrast_on_every_colour() -> None:
    def luminance(color: tuple[int, ...]) -> float:
        share = np.array(color) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for color in class_colors(255):
        low, high = sorted((luminance(color), luminance(ink_on(color))))
        assert (high + 0.05) / (low + 0.05) > 3.5, color


# --- ground truth, sheets, other pictures -------------------------------------------------------


def test_ground_truth_of_both_kinds() -> None:
    masks = rle.encode(square(40, 30, 100, 80))
    truth = Instances(
        masks=masks, labels=np.array([1]), boxes=rle.tight_boxes(masks),
        crowd=np.zeros(1, bool), ids=np.zeros(1, np.int64),
    )  # fmt: skip
    sample = Sample(image=BLACK, path="a.png", index=0, labels=None, instances=truth)
    expected = bare(BLACK, instances(square(40, 30, 100, 80), [1]))
    assert np.array_equal(draw_ground_truth(sample, ("a", "b"), with_text=False), expected)
    labels = np.zeros((120, 160), np.uint8)
    labels[:, 80:] = 255
    both = Sample(image=BLACK, path="a.png", index=0, labels=labels, instances=None)
    drawn = draw_ground_truth(both, ("a", "b"), with_text=False)
    assert drawn[60, 40].any()
    assert not drawn[60, 120].any()
    neither = Sample(image=BLACK, path="a.png", index=0, labels=None, instances=None)
    assert np.array_equal(draw_ground_truth(neither, ("a", "b")), BLACK)


def test_side_by_side() -> None:
    left, right = np.full((10, 20, 3), 50, np.uint8), np.full((16, 30, 3), 90, np.uint8)
    sheet = side_by_side([left, right])
    assert sheet.shape == (16, 20 + 8 + 30, 3)
    assert (sheet[:10, :20] == 50).all()
    assert (sheet[:, 28:] == 90).all()
    titled = side_by_side([left, right], titles=["truth", "found"])
    assert np.array_equal(titled[-16:], sheet)
    assert titled[:-16].min() < 128  # text


@pytest.mark.parametrize(
    ("image", "pixel", "why"),
    [
        (np.full((4, 4), 9, np.uint8), [9, 9, 9], "grey"),
        (np.full((4, 4, 1), 9, np.uint8), [9, 9, 9], "one channel"),
        (np.full((4, 4, 2), 9, np.uint8), [9, 9, 9], "two channels"),
        (np.full((4, 4, 6), 9, np.uint8), [9, 9, 9], "six channels"),
    ],
)
def test_to_rgb(image: np.ndarray, pixel: list[int], why: str) -> None:
    assert to_rgb(image)[0, 0].tolist() == pixel, why


def test_16_bit_pictures_are_stretched() -> None:
    image = np.linspace(1000, 1400, 100).reshape(10, 10).astype(np.uint16)
    drawn = to_rgb(image)
    assert drawn.min() == 0
    assert drawn.max() == 255


def test_drawing_is_fast() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    discs = np.stack(
        [
            (y - a) ** 2 + (x - b) ** 2 < r**2
            for a, b, r in rng.uniform(30, 400, (20, 3)) * (1, 1, 0.15)
        ]
    )
    image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    found = instances(discs, [i % 2 for i in range(20)])
    draw(image, found, ("a", "b"))  # fonts and tables are made once
    spent: list[float] = []
    for _ in range(5):
        start = time.thread_time()  # other processes do not count
        draw(image, found, ("a", "b"))
        spent.append(time.thread_time() - start)
    assert min(spent) < 0.06
