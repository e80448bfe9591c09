"""Mask branches: chosen cells are what all cells would be; products, kernels, coordinates."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.grid_masks import (
    DecoupledMasks,
    DynamicMasks,
    GridCategories,
    GridMasks,
    even_levels,
)

GRIDS = (5, 4, 3, 3, 2)


def pyramid(batch: int = 2, channels: int = 8) -> list[Tensor]:
    """Strides 4 to 64 of an odd picture, 75 x 101."""
    torch.manual_seed(0)
    sizes = [(-(-75 // s), -(-101 // s)) for s in (4, 8, 16, 32, 64)]
    return [torch.randn(batch, channels, h, w) for h, w in sizes]


def build(form: str, **changes: bool) -> nn.Module:
    torch.manual_seed(1)
    widths = {"width": 8, "convs": 2}
    if form == "full":
        return GridMasks(8, GRIDS, **widths, **changes)
    if form == "dynamic":
        return DynamicMasks(8, GRIDS, kernel_width=6, **widths, **changes)
    return DecoupledMasks(8, GRIDS, shared=form == "light", **widths, **changes)


FORMS = ("full", "decoupled", "light", "dynamic")


def test_levels_are_evened_out() -> None:
    levels = pyramid()
    even = even_levels(levels)
    assert [tuple(x.shape[2:]) for x in even] == [(10, 13), (10, 13), (5, 7), (3, 4), (3, 4)]
    assert all(a is b for a, b in zip(even[1:4], levels[1:4], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_chosen_cells_are_those_of_all_cells(form: str) -> None:
    """In any order, more than once, and none at all."""
    branch, own = build(form), None
    maps = branch(pyramid())
    for level, side in enumerate(GRIDS):
        own = branch.draw(level, maps[level], torch.arange(side**2).expand(2, -1))
        cells = torch.tensor([[3, 0, 3], [1, 2, 0]])
        some = branch.draw(level, maps[level], cells)
        torch.testing.assert_close(some, torch.stack([own[0, [3, 0, 3]], own[1, [1, 2, 0]]]))
        assert branch.draw(level, maps[level], cells[:, :0]).shape == (2, 0, *own.shape[2:])
        assert own.min() >= 0
        assert own.max() <= 1


@pytest.mark.parametrize("form", FORMS)
def test_sizes_and_strides_of_the_maps(form: str) -> None:
    branch = build(form)
    maps = branch(pyramid())
    shapes = [
        tuple(branch.draw(i, m, torch.zeros(2, 1, dtype=torch.int64)).shape[2:])
        for i, m in enumerate(maps)
    ]
    if form == "dynamic":
        assert shapes == [(19, 26)] * 5
        assert branch.strides == (4,) * 5
    else:
        assert shapes == [(20, 26), (20, 26), (10, 14), (6, 8), (6, 8)]
        assert branch.strides == (4, 4, 8, 16, 16)
    resized = branch.draw(4, maps[4], torch.zeros(2, 1, dtype=torch.int64), (20, 26))
    assert resized.shape == (2, 1, 20, 26)


def test_full_channels_are_a_1x1_convolution_in_row_major_order() -> None:
    branch = build("full")
    maps = branch(pyramid())
    for level, side in enumerate(GRIDS):
        conv = branch.cells[level]
        assert conv.weight.shape[:2] == (side**2, 8)
        wanted = conv(maps[level][0]).sigmoid()
        ours = branch.draw(level, maps[level], torch.arange(side**2).expand(2, -1))
        torch.testing.assert_close(ours, wanted)


def test_published_channels() -> None:
    grids = (40, 36, 24, 16, 12)
    with torch.device("meta"):
        full = GridMasks(256, grids, width=256, convs=7)
        split = DecoupledMasks(256, grids, width=256, convs=7)
        light = DecoupledMasks(256, grids, width=256, convs=4, shared=True)
    assert [c.out_channels for c in full.cells] == [1600, 1296, 576, 256, 144]
    assert [c.out_channels for c in (*split.columns, *split.rows)] == [*grids, *grids]
    assert full.tower[0].conv.in_channels == 258
    assert [t[0].conv.in_channels for t in split.towers] == [257, 257]
    assert [t[0].conv.in_channels for t in light.towers] == [258]


def test_a_decoupled_mask_is_the_product_of_its_column_and_its_row() -> None:
    branch = build("decoupled")
    maps = branch(pyramid())
    side = GRIDS[0]
    convs, features = (branch.columns[0], branch.rows[0]), maps[0]
    columns, rows = (f(x).sigmoid() for f, x in zip(convs, features, strict=True))
    for i in range(side):
        for j in range(side):
            cell = torch.full((2, 1), i * side + j)
            mask = branch.draw(0, maps[0], cell)[:, 0]
            torch.testing.assert_close(mask, columns[:, j] * rows[:, i])
            assert (mask <= columns[:, j]).all()
            assert (mask <= rows[:, i]).all()
    # Each factor is resized, not the product.
    resized = branch.draw(0, maps[0], torch.full((2, 1), 7), (37, 50))[:, 0]
    wanted = [F.interpolate(m, (37, 50), mode="bilinear") for m in (columns, rows)]
    torch.testing.assert_close(resized, wanted[0][:, 2] * wanted[1][:, 1])


@pytest.mark.parametrize("form", ["decoupled", "light"])
def test_only_columns_and_rows_of_chosen_cells_are_convolved(form, monkeypatch) -> None:
    branch = build(form)
    maps, widths = branch(pyramid()), []
    conv2d = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *a, **k: widths.append(len(a[1])) or conv2d(*a, **k))
    branch.draw(0, maps[0], torch.tensor([[0, 1], [1, 1]]))  # two columns of one row
    assert widths == [2, 1]
    branch.draw(0, maps[0], torch.zeros(2, 0, dtype=torch.int64)).sum().backward()
    assert widths[2:] == [1, 1]
    assert branch.columns[0].weight.grad is not None  # as every layer's, in several processes


def test_dynamic_kernels_convolve_the_shared_map() -> None:
    branch = build("dynamic")
    maps = branch(pyramid(batch=1))
    kernels, shared = maps[1]
    assert kernels.shape == (1, 6, 4, 4)
    wanted = F.conv2d(shared, kernels[0, :, 2, 3].reshape(1, 6, 1, 1)).sigmoid()
    torch.testing.assert_close(branch.draw(1, maps[1], torch.tensor([[2 * 4 + 3]])), wanted)


def test_x_reaches_the_columns_and_y_the_rows() -> None:
    """On a blank picture the x tower can vary along x only, away from the border."""
    branch = build("decoupled")
    blank = [torch.zeros(1, 8, 64 // 2**i, 64 // 2**i) for i in range(5)]
    columns, rows = branch(blank)[0]
    inner = slice(12, -12)
    for maps, still, varies in ((columns, 2, 3), (rows, 3, 2)):
        middle = maps[:, :, inner, inner]
        assert middle.diff(dim=still).abs().max() < 1e-5
        assert middle.diff(dim=varies).abs().max() > 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_without_coordinates_a_blank_picture_looks_the_same_everywhere(form: str) -> None:
    blank = [torch.zeros(1, 8, 128 // 2**i, 128 // 2**i) for i in range(5)]
    cell = torch.zeros(1, 1, dtype=torch.int64)
    spread = []
    for with_coords in (True, False):
        branch = build(form, with_coords=with_coords)
        mask = branch.draw(0, branch(blank)[0], cell)[0, 0]
        inner = mask[40:88, 40:88].logit()
        spread.append((inner.max() - inner.min()).item())
    assert spread[1] < 1e-5
    assert spread[0] > 1e-4


def test_outputs_start_as_rare_events() -> None:
    torch.manual_seed(0)
    categories = GridCategories(8, 3, GRIDS, width=8, convs=2)
    maps = build("full")
    with torch.no_grad():
        logits = categories(pyramid())
    assert [tuple(x.shape) for x in logits] == [(2, 3, s, s) for s in GRIDS]
    assert logits[0].sigmoid().mean().item() == pytest.approx(0.01, abs=0.003)
    for conv in (categories.classify, *maps.cells):
        assert conv.bias.unique().item() == pytest.approx(-math.log(99))
