import pytest
import torch

from pixelwise.nn.coord_conv import with_coordinates


def test_planes_run_from_minus_one_to_one_along_their_axis() -> None:
    x = torch.randn(2, 3, 4, 5)
    both = with_coordinates(x)
    assert both.shape == (2, 5, 4, 5)
    assert torch.equal(both[:, :3], x)
    line = torch.tensor([-1, -0.5, 0, 0.5, 1])
    torch.testing.assert_close(both[:, 3], line.expand(2, 4, 5))
    line = torch.tensor([-1, -1 / 3, 1 / 3, 1])[:, None]
    torch.testing.assert_close(both[:, 4], line.expand(2, 4, 5))


@pytest.mark.parametrize(("axes", "planes"), [("x", [3]), ("y", [4]), ("", [])])
def test_single_planes(axes: str, planes: list[int]) -> None:
    x = torch.randn(1, 3, 4, 5)
    assert torch.equal(with_coordinates(x, axes), with_coordinates(x)[:, [0, 1, 2, *planes]])


def test_one_cell_is_no_error() -> None:
    assert with_coordinates(torch.zeros(1, 1, 1, 1)).flatten().tolist() == [0, -1, -1]
