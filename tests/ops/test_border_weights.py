import numpy as np
import pytest

from pixelwise.ops.border_weights import border_weights, nearest_two_distances, separate_touching


def scattered(seed: int, size: tuple[int, int] = (24, 31), count: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    objects = np.zeros(size, np.int32)
    for number in range(1, count + 1):
        y, x = rng.integers(0, size[0] - 3), rng.integers(0, size[1] - 3)
        objects[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = 10 * number
    return objects


def slow_distances(objects: np.ndarray) -> np.ndarray:
    """[n, H, W]: from every pixel to every pixel of each object."""
    y, x = np.indices(objects.shape)
    layers = []
    for number in np.unique(objects[objects > 0]):
        ys, xs = np.nonzero(objects == number)
        squared = (y[..., None] - ys) ** 2 + (x[..., None] - xs) ** 2
        layers.append(np.sqrt(squared.min(-1)))
    return np.stack(layers)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reach", [4, 60])
def test_distances_equal_the_slow_ones(seed: int, reach: int) -> None:
    objects = scattered(seed)
    ordered = np.sort(slow_distances(objects), axis=0)[:2]
    ordered[ordered > reach] = np.inf
    for ours, expected in zip(nearest_two_distances(objects, reach), ordered, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_the_formula_on_background_pixels(seed: int) -> None:
    objects = scattered(seed)
    d1, d2 = np.sort(slow_distances(objects), axis=0)[:2]
    expected = np.where(objects == 0, 10 * np.exp(-((d1 + d2) ** 2) / (2 * 5**2)), 0)
    np.testing.assert_allclose(border_weights(objects), expected, atol=1.1e-3, rtol=1e-5)


def two_blocks(gap: int) -> np.ndarray:
    objects = np.zeros((40, 80), np.int32)
    objects[10:30, 20:30] = 1
    objects[10:30, 30 + gap : 40 + gap] = 2
    return objects


def test_the_narrower_the_gap_the_larger_the_weight() -> None:
    middle = [border_weights(two_blocks(gap))[20, 30 + gap // 2] for gap in (1, 3, 5, 9)]
    assert middle == sorted(middle, reverse=True)
    assert middle[0] == pytest.approx(10 * np.exp(-(2**2) / 50), rel=1e-5)


def test_the_largest_weight_lies_in_the_gap_and_nothing_is_far_away() -> None:
    weights = border_weights(two_blocks(3))
    y, x = np.unravel_index(weights.argmax(), weights.shape)
    assert 10 <= y < 30
    assert 30 <= x < 33
    assert (weights[:, :8] == 0).all()
    assert (weights[:, 60:] == 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_objects_add_nothing(count: int) -> None:
    objects = np.zeros((9, 9), np.int32)
    objects[2:4, 2:4] = count
    assert not border_weights(objects).any()


def test_no_peak_costs_no_work() -> None:
    assert not border_weights(two_blocks(1), peak=0.0).any()


def test_touching_objects_are_parted_by_two_pixels_and_lonely_ones_stay() -> None:
    objects = np.zeros((9, 12), np.int32)
    objects[1:5, 1:5], objects[1:5, 5:9], objects[7, 1:3] = 1, 2, 3
    parted = separate_touching(objects)
    assert (parted[1:5] == [[0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0]] * 4).all()
    assert (parted[7] == objects[7]).all()


def test_objects_that_meet_at_a_corner_are_parted() -> None:
    objects = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 2]])
    assert (separate_touching(objects) == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]).all()
