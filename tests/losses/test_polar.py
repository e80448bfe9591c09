"""The polar IoU loss: closed forms, symmetry, and its relation to the IoU of masks."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from pixelwise.losses.polar import RayLossKind, polar_iou_loss
from pixelwise.ops import rle
from pixelwise.ops.polar import ray_ends
from pixelwise.ops.polygon_fill import fill_polygons

KINDS: tuple[RayLossKind, ...] = get_args(RayLossKind)


@pytest.mark.parametrize(
    ("pred", "target", "kind", "expected"),
    [
        ([1, 1], [2, 2], "linear", math.log(2)),
        ([1, 1], [2, 2], "squared", math.log(4)),
        ([1, 1], [2, 2], "per_ray", math.log(2)),
        ([1, 4], [2, 2], "linear", math.log(6 / 3)),
        ([1, 4], [2, 2], "squared", math.log(20 / 5)),
        ([1, 4], [2, 2], "per_ray", math.log(2)),
        ([1, 2], [2, 2], "per_ray", math.log(2) / 2),
    ],
)
def test_closed_forms(
    pred: list[float], target: list[float], kind: RayLossKind, expected: float
) -> None:
    values = polar_iou_loss(torch.tensor(pred).float(), torch.tensor(target).float(), kind=kind)
    assert values.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_properties(kind: RayLossKind) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(40, 36, generator=generator) + 0.1 for _ in range(2))
    loss = polar_iou_loss(a, b, kind=kind)
    assert (loss > 0).all()
    assert (polar_iou_loss(a, a, kind=kind) == 0).all()
    torch.testing.assert_close(polar_iou_loss(b, a, kind=kind), loss)
    torch.testing.assert_close(polar_iou_loss(9 * a, 9 * b, kind=kind), loss)
    assert polar_iou_loss(a[:0], b[:0], kind=kind).shape == (0,)
    pred = a[:2].double().requires_grad_()
    assert gradcheck(lambda p: polar_iou_loss(p, b[:2].double(), kind=kind), pred)


def test_a_ray_that_is_missing_leaves_the_loss_finite() -> None:
    target = torch.full((36,), 20.0)
    target[3] = 1e-6
    for kind in KINDS:
        pred = torch.full((36,), 10.0, requires_grad=True)
        polar_iou_loss(pred, target, kind=kind).backward()
        assert pred.grad is not None
        assert pred.grad.isfinite().all()


def test_the_squared_form_is_the_iou_of_the_masks() -> None:
    angles = torch.arange(72) * 2 * math.pi / 72
    a = 200 * (1 + 0.2 * torch.cos(3 * angles))
    b = 180 * (1 + 0.2 * torch.sin(2 * angles))
    ends = ray_ends(torch.tensor([[256.0, 256.0]]), torch.stack([a, b]))
    first, second = rle.decode(fill_polygons(np.asarray(ends.round().long()), (512, 512))) != 0
    iou = (first & second).sum() / (first | second).sum()
    assert math.exp(-polar_iou_loss(a, b, kind="squared").item()) == pytest.approx(iou, abs=0.01)
