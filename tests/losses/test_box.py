"""Box and mask losses: closed forms, gradients, empty input, and upstream values."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from pixelwise.losses.box import OverlapKind, ltrb_overlap_loss, smooth_l1
from pixelwise.losses.mask import mask_cross_entropy
from pixelwise.ops.boxes import encode_boxes
from pixelwise.ops.masks import mask_targets
from pixelwise.ops.rle import crops_from_dense
from tests.fixtures import Fixture, fixture_params, load_fixture


@pytest.mark.parametrize(
    ("difference", "beta", "expected"),
    [(0.0, 0.0, 0.0), (0.5, 0.0, 0.5), (0.5, 1.0, 0.125), (-2.0, 1.0, 1.5), (0.05, 1 / 9, 0.01125)],
)
def test_smooth_l1_values(difference: float, beta: float, expected: float) -> None:
    pred = torch.tensor([difference], requires_grad=True)
    loss = smooth_l1(pred, torch.zeros(1), beta=beta)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.sum().backward()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize(
    ("pred", "kind", "smooth", "expected"),
    [
        ([1, 1, 1, 1], "log", 0, math.log(4)),  # 4 of 16
        ([1, 1, 1, 1], "linear", 0, 0.75),
        ([1, 1, 1, 1], "giou", 0, 0.75),  # one inside the other: the smallest box is the union
        ([1, 1, 1, 1], "linear", 1, 1 - 5 / 17),
        ([4, 2, 0, 2], "linear", 0, 1 - 8 / 24),
        ([4, 2, 0, 2], "giou", 0, 1 - 8 / 24),
        ([4, 4, 1, 1], "giou", 0, 1 - 9 / 32 + (36 - 32) / 36),
        ([0, 0, 0, 0], "giou", 0, 1.0),
        ([0, 0, 0, 0], "log", 0, -math.log(1e-6)),
    ],
)
def test_overlap_of_boxes_around_a_point(
    pred: list[float], kind: OverlapKind, smooth: float, expected: float
) -> None:
    """The wanted box reaches 2 to every side."""
    given = torch.tensor(pred, dtype=torch.float32)
    wanted = torch.full((4,), 2.0)
    loss = ltrb_overlap_loss(given, wanted, kind=kind, smooth=smooth)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert ltrb_overlap_loss(wanted, wanted, kind=kind, smooth=smooth).item() == 0
    if not smooth:
        scaled = ltrb_overlap_loss(3 * given, 3 * wanted, kind=kind)
        assert scaled.item() == pytest.approx(expected, rel=1e-5)


def test_mask_cross_entropy_values() -> None:
    logits = torch.tensor([0.0, 0.0, 3.0, 200.0, -200.0])
    target = torch.tensor([1.0, 0.25, 1.0, 0.0, 0.0])
    expected = [math.log(2), math.log(2), math.log1p(math.exp(-3)), 200.0, 0.0]
    torch.testing.assert_close(mask_cross_entropy(logits, target), torch.tensor(expected))
    half = mask_cross_entropy(logits.half(), target.half())
    assert half.dtype == torch.float32


def test_gradients_and_empty_input() -> None:
    pred = (torch.rand(2, 3, dtype=torch.float64) + 0.1).requires_grad_()
    target = torch.zeros_like(pred)
    for beta in (0.0, 0.05, 1.0):
        assert gradcheck(lambda p, b=beta: smooth_l1(p, target, beta=b), pred)
    ltrb = (torch.rand(2, 4, dtype=torch.float64) + 0.1).requires_grad_()
    for kind in get_args(OverlapKind):
        wanted = torch.full_like(ltrb, 0.7)
        assert gradcheck(lambda p, k=kind, w=wanted: ltrb_overlap_loss(p, w, kind=k), ltrb)
    assert gradcheck(lambda p: mask_cross_entropy(p, target + 0.3), pred)
    assert smooth_l1(torch.zeros(0, 4), torch.zeros(0, 4), beta=1.0).shape == (0, 4)
    assert mask_cross_entropy(torch.zeros(0, 2), torch.zeros(0, 2)).shape == (0, 2)


def notched(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The fixture's masks: whole-pixel box interiors without their top-left quarter."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
        mask[int(y1) : int((y1 + y2) / 2), int(x1) : int((x1 + x2) / 2)] = 0
    return masks


def box_losses(fixture: Fixture, positive: Tensor, labels: Tensor) -> dict[str, Tensor]:
    matches = fixture.tensor("roi_match_torchvision")
    matched = fixture.tensor("gt_boxes")[matches.clamp(min=0)]
    targets = encode_boxes(fixture.tensor("proposals"), matched, (10.0, 10.0, 5.0, 5.0))
    fixture.compare("roi_targets", targets, rtol=1e-5)
    deltas = fixture.tensor("box_deltas").unflatten(1, (-1, 4))
    pred, target = deltas[positive, labels[positive]], targets[positive]
    return {
        "box_smooth_l1_beta_1_9": smooth_l1(pred, target, beta=1 / 9).sum() / len(labels),
        "box_l1": smooth_l1(pred, target, beta=0.0).sum() / len(labels),
        "box_l1_mmdet": smooth_l1(pred, target, beta=0.0).sum() / len(labels),
    }


def mask_losses(fixture: Fixture, positive: Tensor, labels: Tensor) -> dict[str, Tensor]:
    cfg = fixture.meta["configuration"]
    shape = fixture.shape("mask_logits_sampled")
    assert shape[0] == len(positive)
    noise = np.random.Generator(np.random.PCG64(cfg["seed"] + 1000)).standard_normal(shape)
    logits = torch.from_numpy(noise.astype(np.float32))
    fixture.compare("mask_logits_sampled", logits, rtol=1e-6)
    own = logits[torch.arange(len(positive)), labels[positive]]
    crops = crops_from_dense(notched(fixture.tensor("gt_boxes"), tuple(cfg["image"])))
    boxes = fixture.tensor("proposals")[positive]
    index = fixture.tensor("roi_match_torchvision")[positive]
    soft, hard = (
        mask_targets(crops, boxes, index, shape[-1], mode=mode)
        for mode in ("torchvision", "bitmap")
    )
    return {
        "mask_bce_soft_targets_torchvision": mask_cross_entropy(own, soft).mean(),
        "mask_bce_binary_targets_mmdet": mask_cross_entropy(own, hard).mean(),
    }


@pytest.mark.parametrize("path", fixture_params("instance", "ops_matching_losses*"))
def test_parity(path: object) -> None:
    fixture = load_fixture(path)
    matches = fixture.tensor("roi_match_torchvision")
    labels = torch.where(matches >= 0, fixture.tensor("gt_labels")[matches.clamp(min=0)], 0)
    assert torch.equal(labels, fixture.tensor("roi_labels"))
    positive = (labels > 0).nonzero()[:, 0]
    ours = box_losses(fixture, positive, labels) | mask_losses(fixture, positive, labels)
    ours["class_loss"] = F.cross_entropy(fixture.tensor("class_logits"), labels)
    theirs = fixture.meta["losses"]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.item() == pytest.approx(theirs[name], rel=1e-5), name
