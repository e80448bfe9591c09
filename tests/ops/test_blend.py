"""Blending of bases: a slow reference, and the cases in which it is YOLACT or FCIS."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.blend import blend, pool_bases
from pixelwise.ops.mask_assembly import combine
from pixelwise.ops.position_sensitive import assemble

K, M, SIDE = 4, 3, 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def regions() -> Tensor:
    return torch.tensor([[0.0, 8, 12, 61, 70], [1, -10, 3, 30, 90], [0, 20, 20, 21, 24]])


@pytest.fixture
def pooled() -> Tensor:
    return pool_bases(draw(2, K, 24, 24), regions(), SIDE)


def slow(bases: Tensor, attention: Tensor, interpolation: str) -> Tensor:
    """Cell by cell, in words of the paper but for the order of softmax and interpolation."""
    side, cells = bases.shape[-1], attention.shape[-1]
    result = torch.zeros(side, side)
    for y in range(side):
        for x in range(side):
            weights = torch.zeros(len(bases))
            at = [(v + 0.5) * cells / side - 0.5 for v in (y, x)]
            for i in range(cells):
                for j in range(cells):
                    if interpolation == "nearest":
                        share = float(i == y * cells // side and j == x * cells // side)
                    else:
                        inside = [min(max(p, 0), cells - 1) for p in at]
                        share = max(0, 1 - abs(inside[0] - i)) * max(0, 1 - abs(inside[1] - j))
                    weights += share * attention[:, i, j]
            result[y, x] = (weights.softmax(0) * bases[:, y, x]).sum()
    return result


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_equal_to_a_slow_loop(pooled: Tensor, interpolation: Any) -> None:
    attention = draw(3, K, M, M, seed=1)
    found = blend(pooled, attention, interpolation=interpolation)
    wanted = [slow(*pair, interpolation) for pair in zip(pooled, attention, strict=True)]
    torch.testing.assert_close(found, torch.stack(wanted))


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_one_cell_of_attention_is_yolacts_linear_combination(interpolation: Any) -> None:
    """RoIAlign is linear: cutting out and combining may change places."""
    bases, attention = draw(2, K, 24, 24), draw(3, K, 1, 1, seed=1)
    found = blend(pool_bases(bases, regions(), SIDE), attention, interpolation=interpolation)
    coefficients = attention[:, :, 0, 0].softmax(dim=1)
    for region, vector, mask in zip(regions(), coefficients, found, strict=True):
        whole = combine(bases[int(region[0])], vector[None])  # YOLACT's, over the whole image
        cut = pool_bases(whole[None], F.pad(region[1:], (1, 0))[None], SIDE)[0, 0]
        torch.testing.assert_close(mask, cut, rtol=0, atol=1e-6)


def test_one_hot_attention_is_fciss_assembly() -> None:
    """Attention that selects basis i * M + j in cell (i, j) gives each part a map of its own."""
    one_hot = 1e4 * torch.eye(M * M).view(M * M, M, M).expand(3, -1, -1, -1)
    bases = draw(2, M * M, 24, 24)
    pooled = pool_bases(bases, regions(), SIDE)
    found = blend(pooled, one_hot, interpolation="nearest")
    part = torch.arange(SIDE) * M // SIDE
    which = (part[:, None] * M + part).expand(3, 1, -1, -1)
    torch.testing.assert_close(found, pooled.gather(1, which)[:, 0], rtol=0, atol=0)


def test_one_hot_attention_reads_the_cells_that_fcis_copies() -> None:
    """Where the samples of both lie on cells of the maps, the numbers are the same."""
    one_hot = 1e4 * torch.eye(M * M).view(1, M * M, M, M)
    maps = draw(1, M * M, 24, 24)
    roi = torch.tensor([[0.0, 8, 16, 8 + 4 * SIDE, 16 + 4 * SIDE]])  # 12 cells per side
    found = blend(pool_bases(maps, roi, SIDE), one_hot, interpolation="nearest")
    copied = assemble(maps, roi, "copy", parts=M, side=SIDE, scale=1 / 4)[:, 0]
    torch.testing.assert_close(found, copied)


def test_with_one_basis_attention_is_irrelevant(pooled: Tensor) -> None:
    one = pooled[:, :1]
    torch.testing.assert_close(blend(one, draw(3, 1, M, M)), one[:, 0])


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_constant_over_the_bases_changes_nothing(pooled: Tensor, interpolation: Any) -> None:
    attention, shift = draw(3, K, M, M, seed=1), draw(3, 1, M, M, seed=2)
    torch.testing.assert_close(
        blend(pooled, attention + shift, interpolation=interpolation),
        blend(pooled, attention, interpolation=interpolation),
    )


def test_masks_lie_between_the_bases(pooled: Tensor) -> None:
    found = blend(pooled, 5 * draw(3, K, M, M, seed=1))
    assert (found >= pooled.amin(dim=1) - 1e-6).all()
    assert (found <= pooled.amax(dim=1) + 1e-6).all()


def test_the_order_of_softmax_and_interpolation_matters_for_bilinear_only(pooled: Tensor) -> None:
    """The trap of the specification: the paper's order gives other masks."""
    attention = 3 * draw(3, K, M, M, seed=1)
    for interpolation, least, most in (("bilinear", 0.01, 9.0), ("nearest", 0.0, 1e-6)):
        before = F.interpolate(attention.softmax(dim=1), pooled.shape[-2:], mode=interpolation)
        paper = (before * pooled).sum(dim=1)
        kind: Any = interpolation
        apart = (blend(pooled, attention, interpolation=kind) - paper).abs().max()
        assert least <= apart <= most


def test_bases_are_read_at_cell_centres() -> None:
    """A ramp over the columns at stride 4: cell i has its centre at pixel 4 i + 2."""
    ramp = (4 * torch.arange(20.0) + 2).expand(1, 1, 20, 20)
    found = pool_bases(ramp, torch.tensor([[0.0, 10, 20, 42, 36]]), 8)
    wanted = 10 + (torch.arange(8.0) + 0.5) * 4
    torch.testing.assert_close(found[0, 0], wanted.expand(8, 8))


def test_no_regions() -> None:
    bases = draw(1, K, 8, 8).requires_grad_()
    found = blend(pool_bases(bases, torch.zeros(0, 5), SIDE), torch.zeros(0, K, M, M))
    assert found.shape == (0, SIDE, SIDE)
    found.sum().backward()
    assert bases.grad is not None
