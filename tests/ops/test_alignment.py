from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from pixelwise.ops.alignment import AxisMap, Window, compose, crop_offset


@pytest.mark.parametrize(
    ("layers", "scale", "shift", "why"),
    [
        ([], 1, 0, "nothing moves nothing"),
        ([Window(3, 1, 1)], 1, 0, "a same convolution"),
        ([Window(3)], 1, -1, "without padding the first cell lies on pixel 1"),
        ([Window(3, 1, 100)], 1, 99, "FCN's border"),
        ([Window(2, 2)], Fraction(1, 2), Fraction(-1, 4), "cell 0 lies between pixels 0 and 1"),
        ([Window(5, 1, 2)], 1, 0, "3 taps of dilation 2: extent 5"),
        ([Window(3, 2, 1, transposed=True)], 2, 0, "the exact inverse of stride 2"),
        ([Window(4, 2, transposed=True)], 2, Fraction(3, 2), "uncut, it grows at both ends"),
        ([Window(4, 2, 1, transposed=True)], 2, Fraction(1, 2), "bilinear x2 from pixel corners"),
    ],
)
def test_positions_by_hand(layers: list[Window], scale, shift, why: str) -> None:
    assert compose(layers) == AxisMap(Fraction(scale), Fraction(shift)), why


@pytest.mark.parametrize("seed", range(8))
def test_positions_on_a_ramp(seed: int) -> None:
    """Symmetric kernels of sum 1 on the picture x -> x give each cell's place, off the border."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    x, layers = torch.arange(400).double()[None, None], []
    for _ in range(3):
        kernel, stride = draw(1, 5), draw(1, 3)
        layer = Window(kernel, stride, draw(0, kernel - 1))
        weight = torch.full((1, 1, kernel), 1 / kernel).double()
        x = F.conv1d(x, weight, stride=stride, padding=layer.padding)
        layers.append(layer)
    factor = draw(2, 4)
    layers.append(Window(2 * factor - 1, factor, draw(0, 1), transposed=True))
    tent = 1 - (torch.arange(2 * factor - 1) - (factor - 1)).abs().double() / factor
    x = F.conv_transpose1d(x, tent[None, None], stride=factor, padding=layers[-1].padding)[0, 0]
    found = compose(layers)
    cells = torch.arange(len(x) // 3, 2 * len(x) // 3)
    expected = (cells.double() - float(found.shift)) / float(found.scale)
    torch.testing.assert_close(x[cells], expected)


def test_an_offset_is_where_the_short_map_begins() -> None:
    padded, back = Window(3, 2, 5), Window(3, 2, 1, transposed=True)
    assert crop_offset([padded, back]) == 4
    assert crop_offset([Window(3, 1, 4)], [Window(3, 1, 1)]) == 3
    assert crop_offset([Window(3, 1, 1)], [Window(3, 1, 4)]) == -3


@pytest.mark.parametrize(
    ("long", "message"),
    [([Window(2, 2)], "strides 2 and 1"), ([Window(2)], "-1/2 cells apart")],
)
def test_maps_that_do_not_fit_are_refused(long: list[Window], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crop_offset(long)
