"""Painting crops and coding label maps, against dense stacks."""

import numpy as np
import pytest
import torch

from pixelwise.ops import rle
from pixelwise.ops.label_maps import encode_label_map, paint_crops


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 5), (24, 31)])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_coded_maps_are_the_masks_of_each_number(size: tuple[int, int], count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(-1, count, size, generator=generator)
    stack = labels == torch.arange(count)[:, None, None]
    found, wanted = encode_label_map(labels, count), rle.encode(stack)
    for key in ("windows", "runs", "starts"):
        np.testing.assert_array_equal(getattr(found, key), getattr(wanted, key))
    assert found.size == size


def test_a_map_without_objects() -> None:
    assert len(encode_label_map(torch.full((4, 5), -1), 0)) == 0
    assert rle.areas(encode_label_map(torch.full((4, 5), -1), 2)).tolist() == [0, 0]


def test_columns_do_not_run_into_each_other() -> None:
    found = encode_label_map(torch.zeros(3, 4, dtype=torch.int64), 1)
    assert rle.areas(found).tolist() == [12]
    assert found.windows.tolist() == [[0, 0, 4, 3]]


def test_painting_is_the_last_mask_of_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.rand(6, 11, 14, generator=generator) < 0.4
    order = torch.randperm(6, generator=generator)
    painted = paint_crops(rle.crops_from_dense(stack), order)
    for y in range(11):
        for x in range(14):
            covering = [i for i in order.tolist() if stack[i, y, x]]
            assert painted[y, x] == (covering[-1] if covering else -1)


def test_no_masks_paint_nothing() -> None:
    empty = rle.crops_from_dense(torch.zeros(0, 3, 4))
    assert (paint_crops(empty, torch.zeros(0, dtype=torch.int64)) == -1).all()
