"""Masks on feature maps: equal to resizing whole pictures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelwise.ops import mask_maps
from pixelwise.ops.mask_maps import masks_from_cells, masks_on_cells, mass_centres
from pixelwise.ops.rle import crops_from_dense, decode
from pixelwise.types import ImageSize, MaskCrops


def blobs(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[n, height, width] bool; the second is empty."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, n, 5, 6, generator=g)
    masks = F.interpolate(coarse, (height, width), mode="bilinear")[0] > 0.3
    masks[1] = False
    return masks


def test_centres_are_means_of_pixel_positions() -> None:
    dense = blobs(6, 30, 41)
    areas, centres = mass_centres(crops_from_dense(dense))
    assert areas.tolist() == dense.flatten(1).sum(1).tolist()
    for mask, (x, y) in zip(dense, centres.tolist(), strict=True):
        rows, columns = np.nonzero(mask.numpy())
        assert (x, y) == pytest.approx((columns.mean(), rows.mean()) if len(rows) else (0, 0))
    assert [len(v) for v in mass_centres(MaskCrops.empty((4, 4)))] == [0, 0]


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_cells_are_bilinear_resizing_of_bytes(stride: int) -> None:
    """At exact factors the released code's resize of 0/1 bytes is float resizing, rounded up."""
    dense = blobs(5, 96, 160)
    index = torch.tensor([3, 0, 1, 3])
    ours = masks_on_cells(crops_from_dense(dense), index, (96 // stride, 160 // stride), stride)
    wanted = F.interpolate(
        dense[index][None].float(), scale_factor=1 / stride, mode="bilinear", align_corners=False
    )[0]
    assert torch.equal(ours, (wanted >= 0.5).float())


def test_beyond_the_picture_cells_are_empty() -> None:
    dense = torch.ones(1, 10, 7, dtype=torch.bool)
    ours = masks_on_cells(crops_from_dense(dense), torch.tensor([0]), (4, 4), 4)
    # Around the centre at 10 lie rows 9 and 10: one of two is half. At 6 columns 5 and 6: both.
    assert ours[0].tolist() == [[1, 1, 0, 0]] * 3 + [[0, 0, 0, 0]]


SIZES = {
    "as it is": ImageSize.same((64, 80)),
    "smaller": ImageSize(original=(30, 41), content=(60, 77), input=(64, 80)),
    "larger": ImageSize(original=(150, 200), content=(60, 80), input=(64, 80)),
    "one pixel": ImageSize(original=(1, 1), content=(1, 2), input=(64, 80)),
}


@pytest.mark.parametrize("chunk", [1 << 23, 100])
@pytest.mark.parametrize("name", SIZES)
def test_equals_two_resizes_of_whole_maps(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_maps, "_CHUNK", chunk)
    monkeypatch.setattr(mask_maps, "_BLOCK", 128 if chunk > 100 else 7)
    size = SIZES[name]
    probs = torch.rand(7, 16, 20, generator=torch.Generator().manual_seed(2)) ** 2
    probs[2], probs[4], probs[5] = 0.1, 0.9, 0.0
    probs[5, 7, 3] = 0.51  # reaches the threshold nowhere once resized, or hardly
    height, width = size.content
    whole = F.interpolate(probs[None], (64, 80), mode="bilinear")[..., :height, :width]
    whole = F.interpolate(whole, size.original, mode="bilinear")[0]
    ours = masks_from_cells(probs, size, stride=4, thresh=0.5)
    clear = (whole - 0.5).abs() > 1e-5
    assert ours.size == size.original
    assert clear.float().mean() > 0.99
    assert torch.equal(torch.from_numpy(decode(ours)).bool()[clear], (whole > 0.5)[clear])


def test_no_masks() -> None:
    assert (
        len(masks_from_cells(torch.zeros(0, 4, 4), ImageSize.same((9, 9)), stride=4, thresh=0.5))
        == 0
    )
