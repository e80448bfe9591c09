"""Masks from prototypes: linear, blind to the order of prototypes, nothing outside the box."""

import torch
from torch.nn import functional as F

from pixelwise.ops import rle
from pixelwise.ops.mask_assembly import assemble_masks, combine, crop_support
from pixelwise.ops.masks import downsampled_targets, resize_masks
from pixelwise.types import ImageSize

G = torch.Generator().manual_seed(0)
PROTOTYPES = torch.randn(4, 12, 20, generator=G)
COEFFICIENTS = torch.randn(3, 4, generator=G)
BOXES = torch.tensor([[3.0, 2.0, 9.5, 7.0], [18.0, 10.0, 5.0, 4.0], [-4.0, -4.0, 30.0, 2.0]])


def test_logits_are_linear_in_the_coefficients() -> None:
    more = torch.randn(3, 4, generator=G)
    both = combine(PROTOTYPES, 2 * COEFFICIENTS + more)
    torch.testing.assert_close(
        both, 2 * combine(PROTOTYPES, COEFFICIENTS) + combine(PROTOTYPES, more)
    )


def test_the_order_of_prototypes_changes_nothing() -> None:
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        assemble_masks(PROTOTYPES[order], COEFFICIENTS[:, order], BOXES),
        assemble_masks(PROTOTYPES, COEFFICIENTS, BOXES),
    )


def test_masks_vanish_beyond_a_cell_around_the_box() -> None:
    masks = assemble_masks(PROTOTYPES, COEFFICIENTS, BOXES)
    plain = assemble_masks(PROTOTYPES, COEFFICIENTS, BOXES, with_crop=False)
    for mask, whole, (x1, y1, x2, y2) in zip(masks, plain, BOXES.tolist(), strict=True):
        for y in range(12):
            for x in range(20):
                left, right = sorted((x1, x2))
                top, bottom = sorted((y1, y2))
                inside = left - 1 <= x < right + 1 and top - 1 <= y < bottom + 1
                assert mask[y, x] == (whole[y, x] if inside else 0)


def test_support_of_a_box_outside_is_empty() -> None:
    boxes = torch.tensor([[25.0, 0.0, 30.0, 5.0]])
    assert not crop_support(boxes, (12, 20)).any()


def test_resized_masks_equal_a_resized_stack() -> None:
    """Enlarged and shrunk, with and without padding, over the edges of the picture."""
    maps = torch.rand(5, 12, 20, generator=G)
    for original in ((50, 90), (7, 9), (12, 20)):
        size = ImageSize(original=original, content=(48, 80), input=(48, 80))
        dense = F.interpolate(maps[None], original, mode="bilinear")[0] > 0.5
        ours = rle.decode(resize_masks(maps, size, thresh=0.5))
        assert (ours != dense.numpy()).sum() <= 2  # rounding at the threshold
    half = ImageSize(original=(24, 40), content=(24, 40), input=(48, 80))
    dense = F.interpolate(maps[None], (48, 80), mode="bilinear")[0, :, :24, :40] > 0.5
    assert (rle.decode(resize_masks(maps, half, thresh=0.5)) != dense.numpy()).sum() <= 2


def test_the_threshold_itself_is_outside() -> None:
    size = ImageSize.same((4, 4))
    maps = torch.full((2, 4, 4), 0.5)
    maps[1] += 1e-6
    assert rle.areas(resize_masks(maps, size, thresh=0.5)).tolist() == [0, 16]


def test_targets_equal_a_resized_stack_where_half_is_not_enough() -> None:
    dense = (torch.rand(4, 40, 56, generator=G) > 0.4).to(torch.uint8)
    dense[3] = 0
    crops = rle.crops_from_dense(dense)
    framed = F.pad(dense, (0, 8, 0, 8)).float()  # a picture in a padded input
    for size in ((12, 16), (17, 11)):  # 4 pixels per cell: means of exactly half occur
        expected = F.interpolate(framed[None], size, mode="bilinear")[0] > 0.5
        ours = downsampled_targets(crops, (48, 64), size, thresh=0.5)
        assert torch.equal(ours > 0, expected)
