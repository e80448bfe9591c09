import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.nn.holistic import (
    Codebook,
    CodewordAssembly,
    HolisticCodebook,
    MultiScaleFusion,
    assemble,
)

N, D, C = 4, 6, 5  # codewords, their width, channels of the fused maps


def codebook() -> HolisticCodebook:
    torch.manual_seed(0)
    return HolisticCodebook(C, D, N).eval()


def test_weights_are_shares_of_the_positions() -> None:
    """The softmax runs over positions; over codewords it would sum to 1 per position."""
    weights = codebook().weights(10 * torch.randn(2, C, 3, 7))
    assert weights.shape == (2, N, 21)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones(2, N))
    assert not torch.allclose(weights.sum(1), torch.full((2, 21), N / 21), rtol=0.1)


def test_codewords_are_means_of_the_base_map() -> None:
    module, x = codebook(), 3 * torch.randn(2, C, 3, 4)
    found, base, weights = module(x), module.base(x), module.weights(x)
    for b in range(2):
        for n in range(N):
            expected = torch.zeros(D)
            for position in range(12):
                expected += weights[b, n, position] * base[b, :, position // 4, position % 4]
            torch.testing.assert_close(found.codewords[b, :, n], expected)
    torch.testing.assert_close(found.mean, base.mean((2, 3), keepdim=True))


def test_codewords_stay_within_what_the_base_map_holds() -> None:
    module, x = codebook(), 5 * torch.randn(3, C, 6, 5)
    values = module.base(x).flatten(2)
    words = module(x).codewords
    low, high = values.amin(2, keepdim=True), values.amax(2, keepdim=True)
    assert (words >= low - 1e-5).all()
    assert (words <= high + 1e-5).all()


def test_where_things_lie_does_not_matter_to_the_codebook() -> None:
    module, x = codebook(), torch.randn(2, C, 4, 6)
    shuffled = x.flatten(2)[..., torch.randperm(24)].view_as(x)
    torch.testing.assert_close(module(shuffled).codewords, module(x).codewords)
    torch.testing.assert_close(module(shuffled).mean, module(x).mean)


def test_a_map_of_one_cell_is_its_own_codebook() -> None:
    module, x = codebook(), torch.randn(1, C, 1, 1)
    torch.testing.assert_close(
        module(x).codewords, module.base(x).flatten(2).expand(-1, -1, N), rtol=1e-5, atol=1e-6
    )


def test_assembly_combines_codewords_pixel_by_pixel() -> None:
    words, coefficients = torch.randn(2, D, N), torch.randn(2, N, 3, 4)
    found = assemble(words, coefficients)
    assert found.shape == (2, D, 3, 4)
    for y in range(3):
        for x in range(4):
            expected = torch.zeros(2, D)
            for n in range(N):
                expected += coefficients[:, n, y, x, None] * words[:, :, n] / math.sqrt(N)
            torch.testing.assert_close(found[:, :, y, x], expected)


def test_assembly_is_linear_in_the_coefficients() -> None:
    words, a, b = torch.randn(2, D, N), torch.randn(2, N, 3, 4), torch.randn(2, N, 3, 4)
    found = assemble(words, 2 * a - 3 * b)
    torch.testing.assert_close(found, 2 * assemble(words, a) - 3 * assemble(words, b))


def permute_codewords(module: torch.nn.Sequential, order: Tensor) -> None:
    """The last block of a sequence with its output channels in another order."""
    last = module[-1]
    with torch.no_grad():
        last.conv.weight.copy_(last.conv.weight[order])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(last.norm, name).copy_(getattr(last.norm, name)[order])


def test_the_order_of_codewords_is_arbitrary() -> None:
    book, assembly = codebook(), CodewordAssembly(C, D, N).eval()
    coarse, fine = torch.randn(2, C, 2, 3), torch.randn(2, C, 8, 12)
    before = assembly(fine, book(coarse))
    order = torch.tensor([2, 0, 3, 1])
    permute_codewords(book.spread, order)
    assert not torch.allclose(assembly(fine, book(coarse)), before)
    permute_codewords(assembly.coefficients, order)
    torch.testing.assert_close(assembly(fine, book(coarse)), before)


def test_the_mean_joins_the_guide_before_the_coefficients_alone() -> None:
    assembly = CodewordAssembly(C, D, N).eval()
    fine = torch.randn(2, C, 4, 5)
    book = Codebook(torch.randn(2, D, N), torch.randn(2, D, 1, 1))
    assembled, guide = assembly(fine, book).split(D, 1)
    torch.testing.assert_close(guide, assembly.guide(fine))
    coefficients = assembly.coefficients(guide + book.mean)
    torch.testing.assert_close(assembled, assemble(book.codewords, coefficients))
    assert (coefficients >= 0).all()  # ReLU, not softmax
    assert not torch.allclose(coefficients.sum(1), torch.ones(2, 4, 5))


@pytest.mark.parametrize(
    "sides", [((16, 8), (8, 4), (4, 2)), ((13, 17), (7, 9), (4, 5)), ((1, 3), (1, 2), (1, 1))]
)
def test_fusion_brings_all_maps_to_both_sizes(sides) -> None:
    fusion = MultiScaleFusion((3, 4, 5), 2).eval()
    maps = [torch.randn(1, c, *side) for c, side in zip((3, 4, 5), sides, strict=True)]
    parts = [maps[0], fusion.compress16(maps[1]), fusion.compress32(maps[2])]
    fine, coarse = fusion(*maps)
    assert fusion.out_channels == 7
    for found, side in ((fine, sides[0]), (coarse, sides[2])):
        expected = torch.cat(
            [F.interpolate(x, side, mode="bilinear", align_corners=True) for x in parts], 1
        )
        assert found.shape == (1, 7, *side)
        torch.testing.assert_close(found, expected)


def test_aligned_corners_meet_at_every_size() -> None:
    fusion = MultiScaleFusion((3, 4, 5), 2).eval()
    at8, at16, at32 = (torch.randn(1, c, n, n) for c, n in ((3, 13), (4, 7), (5, 4)))
    fine, coarse = fusion(at8, at16, at32)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(fine[..., *corner], coarse[..., *corner])
