import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.cell_grid import grid_size, labels_at_cells, resize_grid


def ramp(height: int, width: int, *, step: float = 1, offset: float = 0) -> Tensor:
    """[1, 1, H, W] whose value is the place: row + 1000 columns."""
    y = torch.arange(height, dtype=torch.float64) * step + offset
    x = torch.arange(width, dtype=torch.float64) * step + offset
    return (y[:, None] + 1000 * x)[None, None]


def test_sizes_that_fit() -> None:
    assert grid_size((41, 41), 8) == (321, 321)
    assert grid_size((1, 13), 8) == (1, 97)


@pytest.mark.parametrize("cells", [(41, 33), (5, 1), (1, 1), (2, 7)])
@pytest.mark.parametrize("step", [1, 2, 8])
def test_equals_aligned_corners_where_the_size_fits(cells: tuple[int, int], step: int) -> None:
    x = torch.randn(2, 3, *cells, dtype=torch.float64)
    size = grid_size(cells, step)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(resize_grid(x, size, step=step), expected)


@pytest.mark.parametrize("size", [(33, 41), (30, 36), (37, 48)])
def test_no_size_shifts_a_cell(size: tuple[int, int]) -> None:
    """The value under pixel (y, x) is y + 1000 x, until the last cell, whose value continues."""
    found = resize_grid(ramp(5, 6, step=8), size, step=8)[0, 0]
    y = torch.arange(size[0], dtype=torch.float64).clamp(max=32)
    x = torch.arange(size[1], dtype=torch.float64).clamp(max=40)
    torch.testing.assert_close(found, y[:, None] + 1000 * x)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1 / 3])
@pytest.mark.parametrize("side", [20, 21, 33])
def test_a_scaled_image_and_back(scale: float, side: int) -> None:
    """Pixel j of an image of scale s shows place j / s; its cells come back to where they lay."""
    count = int((side - 1) * scale + 1e-9) + 1
    small = resize_grid(ramp(side, side), (count, count), step=scale)
    torch.testing.assert_close(small, ramp(count, count, step=1 / scale))
    inside = int((count - 1) / scale + 1e-9) + 1
    back = resize_grid(small, (inside, inside), step=1 / scale)
    torch.testing.assert_close(back, ramp(inside, inside))


def test_half_an_image_is_every_other_pixel() -> None:
    x = torch.randn(1, 3, 9, 13)
    assert torch.equal(resize_grid(x, (5, 7), step=0.5), x[..., ::2, ::2])


def test_gradients_reach_every_cell_once_per_weight() -> None:
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resize_grid(x, (11, 6), step=3), (x,))
    resize_grid(x, (10, 7), step=3).sum().backward()
    # The weights of one axis: half a triangle at the ends, a whole one between.
    triangle = [2.0, 3, 3, 2]
    torch.testing.assert_close(x.grad[0, 0, :, 0], 2.0 * torch.tensor(triangle).double())


def test_labels_at_a_step_are_a_subsampling() -> None:
    """The target of DeepLab V1 at 321: every eighth label."""
    labels = torch.randint(0, 21, (2, 321, 305))
    assert torch.equal(labels_at_cells(labels, (41, 39), step=8), labels[:, ::8, ::8])


def test_cells_beyond_the_map_are_outside() -> None:
    labels = torch.ones(1, 16, 17, dtype=torch.int64)
    found = labels_at_cells(labels, (3, 3), step=8, outside=255)
    assert found.tolist() == [[[1, 1, 1], [1, 1, 1], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("step", "expected", "why"),
    [
        (32 / 3, [0, 11, 21, 32], "10.67 is nearer to 11, 21.33 to 21"),
        (16.0, [0, 16, 32, 48], "half scale"),
        (4 / 3, [0, 1, 3, 4], "1.33, 2.67"),
    ],
)
def test_a_step_with_a_fraction_takes_the_nearest_pixel(step, expected, why) -> None:
    labels = torch.arange(64).expand(1, 64, 64)
    assert labels_at_cells(labels, (1, 4), step=step)[0, 0].tolist() == expected, why


@pytest.mark.parametrize("cells", [(41, 41), (21, 20), (7, 9), (1, 1), (50, 70)])
@pytest.mark.parametrize("size", [(321, 321), (97, 129), (64, 50)])
def test_without_a_step_it_is_pillows_nearest(cells, size) -> None:
    labels = torch.randint(0, 21, size)
    picture = Image.fromarray(labels.numpy().astype(np.uint8))
    wanted = np.asarray(picture.resize(cells[::-1], Image.Resampling.NEAREST)).astype(np.int64)
    found = labels_at_cells(labels[None], cells)[0]
    # A centre on the border of two pixels goes wherever Pillow's rounding errors send it.
    clear = [
        torch.tensor([(2 * i + 1) * length % (2 * count) != 0 for i in range(count)])
        for count, length in zip(cells, size, strict=True)
    ]
    both = clear[0][:, None] & clear[1]
    assert both.float().mean() > 0.7 or cells == (1, 1)
    assert torch.equal(found[both], torch.from_numpy(wanted)[both])


def test_weights_are_picked_like_labels() -> None:
    weights = torch.rand(1, 24, 24)
    assert torch.equal(labels_at_cells(weights, (3, 3), step=8), weights[:, ::8, ::8])
