import numpy as np
import pytest
import torch

from pixelwise.data.photometric import blur, color_matrix, jitter_color


def picture(channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, 20, 30, generator=torch.Generator().manual_seed(1)) * 255


@pytest.mark.parametrize(
    ("brightness", "contrast", "saturation", "turn", "color", "expected", "why"),
    [
        (1.0, 1.0, 1.0, 0.0, (10, 200, 30), (10, 200, 30), "nothing"),
        (0.5, 1.0, 1.0, 0.0, (10, 200, 30), (5, 100, 15), "half as bright"),
        (1.0, 1.0, 0.0, 0.0, (255, 0, 0), (76.2, 76.2, 76.2), "no saturation is BT.601 grey"),
        (1.0, 1.0, 1.3, 0.1, (90, 90, 90), (90, 90, 90), "grey has no hue"),
        (1.2, 1.1, 1.0, 0.3, (50, 50, 50), (66, 66, 66), "factors multiply"),
    ],
)
def test_color_matrix(
    brightness: float, contrast: float, saturation: float, turn: float,
    color: tuple[float, ...], expected: tuple[float, ...], why: str,
) -> None:  # fmt: skip
    matrix = color_matrix(brightness, contrast, saturation, turn)
    found = matrix @ torch.tensor(color, dtype=torch.float64)
    assert found.tolist() == pytest.approx(expected, abs=0.3), why


def test_a_third_of_a_turn_three_times_is_nothing() -> None:
    third = color_matrix(1.0, 1.0, 1.0, 1 / 3)
    assert torch.allclose(third @ third @ third, torch.eye(3, dtype=torch.float64), atol=1e-9)


def test_jitter_stays_in_range_and_follows_the_generator() -> None:
    image = picture()
    first = jitter_color(image, 1.0, np.random.default_rng(3))
    again = jitter_color(image, 1.0, np.random.default_rng(3))
    other = jitter_color(image, 1.0, np.random.default_rng(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 255
    assert torch.equal(image, picture()), "the input is left as it was"


def test_contrast_keeps_the_mean_grey() -> None:
    """Averaged over many draws brightness is 1 in the mean, so the mean grey is too."""
    image = picture() * 0.4 + 60  # away from the limits
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    before = float((image * luma).sum(0).mean())
    rng = np.random.default_rng(0)
    after = [float((jitter_color(image, 0.3, rng) * luma).sum(0).mean()) for _ in range(200)]
    assert np.mean(after) == pytest.approx(before, rel=0.02)


def test_grey_changes_and_other_channels_do_not() -> None:
    rng = np.random.default_rng(0)
    assert not torch.equal(jitter_color(picture(1), 1.0, rng), picture(1))
    assert torch.equal(jitter_color(picture(5), 1.0, rng), picture(5))


@pytest.mark.parametrize("size", [(20, 30), (3, 2), (1, 40)])
def test_blur_smooths_pictures_of_any_size(size: tuple[int, int]) -> None:
    image = picture()[:, : size[0], : size[1]]
    blurred = blur(image, np.random.default_rng(0))
    assert blurred.shape == image.shape
    assert blurred.var() < image.var()
