from dataclasses import replace

import numpy as np
import torch

from pixelwise.data.geometry import Geometry
from pixelwise.data.mixing import copy_paste, mosaic
from pixelwise.data.sample import Sample
from pixelwise.data.scene import Scene, place
from pixelwise.ops.rle import dense_crops
from pixelwise.types import IGNORE, Size
from tests.data.pictures import PALETTE, squares


def scene(sample: Sample) -> Scene:
    return place(sample, Geometry(before=sample.size, after=sample.size), channels=3)


def test_a_pasted_object_covers_picture_and_masks() -> None:
    below = scene(squares((40, 40), [(0, 0, 20, 20), (30, 30, 40, 40), (5, 5, 9, 9)], crowd=[]))
    above = scene(squares((40, 40), [(4, 4, 14, 24)]))
    mixed = copy_paste(below, above, np.random.default_rng(0), min_visible_frac=0.1)
    assert mixed.objects is not None
    dense = dense_crops(mixed.objects.masks).numpy()
    assert mixed.objects.labels.tolist() == [0, 1, 0], "the small one is hidden, the pasted last"
    assert mixed.objects.boxes.tolist() == [[0, 0, 20, 20], [30, 30, 40, 40], [4, 4, 14, 24]]
    assert dense.sum((1, 2)).tolist() == [400 - 160, 100, 200]
    assert (dense.sum(0) <= 1).all(), "no pixel belongs to two objects"
    assert (mixed.image[:, 22, 6].numpy() == PALETTE[1]).all()
    assert (below.image[:, 22, 6].numpy() == PALETTE[0]).all(), "the input is left as it was"


def test_an_almost_hidden_object_goes_and_a_hidden_crowd_too() -> None:
    below = scene(squares((30, 30), [(0, 0, 10, 10), (0, 0, 10, 9), (12, 0, 30, 10)], crowd=[1, 2]))
    above = scene(squares((30, 30), [(0, 0, 10, 9), (12, 0, 30, 9)]))
    for seed in range(50):
        mixed = copy_paste(below, above, np.random.default_rng(seed), min_visible_frac=0.2)
        assert mixed.objects is not None
        if mixed.objects.crowd.tolist() == [True, False, False]:  # both were pasted
            assert mixed.objects.boxes[0].tolist() == [12, 9, 30, 10]
            return
    raise AssertionError("both objects were never drawn")


def test_crowds_are_not_pasted_and_one_object_always_is() -> None:
    below = scene(squares((30, 30), []))
    above = scene(squares((30, 30), [(0, 0, 5, 5), (10, 10, 15, 15)], crowd=[0]))
    for seed in range(10):
        mixed = copy_paste(below, above, np.random.default_rng(seed), min_visible_frac=0.1)
        assert mixed.objects is not None
        assert mixed.objects.boxes.tolist() == [[10, 10, 15, 15]]


def test_pasting_from_a_larger_and_a_smaller_picture() -> None:
    below = scene(squares((20, 30), [(0, 0, 4, 4)]))
    large = scene(squares((40, 40), [(25, 15, 40, 40)]))
    mixed = copy_paste(below, large, np.random.default_rng(0), min_visible_frac=0.1)
    assert mixed.objects is not None
    assert mixed.objects.boxes.tolist() == [[0, 0, 4, 4], [25, 15, 30, 20]]
    assert mixed.size == mixed.objects.size == (20, 30)
    outside = scene(squares((40, 40), [(32, 0, 40, 9)]))
    assert copy_paste(below, outside, np.random.default_rng(0), min_visible_frac=0.1) is below
    small = scene(squares((10, 10), [(2, 2, 9, 9)]))
    mixed = copy_paste(below, small, np.random.default_rng(0), min_visible_frac=0.1)
    assert mixed.objects is not None
    assert mixed.objects.boxes.tolist() == [[0, 0, 4, 4], [2, 2, 9, 9]]
    assert dense_crops(mixed.objects.masks).sum((1, 2)).tolist() == [12, 49]


def test_nothing_to_paste_leaves_the_picture() -> None:
    below, empty = scene(squares((20, 20), [(0, 0, 4, 4)])), scene(squares((20, 20), []))
    rng = np.random.default_rng(0)
    assert copy_paste(below, empty, rng, min_visible_frac=0.1) is below
    assert (
        copy_paste(replace(below, objects=None), below, rng, min_visible_frac=0.1).objects is None
    )


def test_mosaic_joins_four_pictures_without_gaps() -> None:
    def draw(number: int, size: Size) -> Scene:
        full = (0, 0, size[1], size[0])
        boxes = [(0, 0, 0, 0)] * number + [full]  # class = number % 3
        drawn = scene(squares(size, boxes))
        assert drawn.objects is not None
        return drawn

    for seed in range(20):
        joined = mosaic(draw, (41, 64), np.random.default_rng(seed))
        assert joined.objects is not None
        assert joined.labels is not None
        assert joined.size == (41, 64)
        dense = dense_crops(joined.objects.masks)
        assert (dense.sum(0) == 1).all(), "four objects tile the picture"
        classes = (joined.objects.labels[:, None, None] * dense).sum(0).numpy() + 1
        assert np.array_equal(joined.labels, classes)
        assert (joined.image.permute(1, 2, 0).numpy() == PALETTE[joined.labels]).all()


def test_mosaic_of_pictures_without_labels() -> None:
    def draw(number: int, size: Size) -> Scene:
        image = torch.full((3, *size), number, dtype=torch.uint8)
        return Scene(image=image, labels=np.full(size, IGNORE, np.uint8) if number else None)

    joined = mosaic(draw, (30, 30), np.random.default_rng(0))
    assert joined.labels is None
    assert joined.objects is None
    assert joined.image.unique().tolist() == [0, 1, 2, 3]
