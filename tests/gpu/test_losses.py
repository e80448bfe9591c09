"""Losses and their gradients: on the GPU as on the CPU."""

import pytest
import torch

from pixelwise.losses.box import ltrb_overlap_loss, smooth_l1
from pixelwise.losses.embedding import discriminative_loss
from pixelwise.losses.focal import sigmoid_focal, softmax_focal
from pixelwise.losses.hard_negatives import hard_negatives
from pixelwise.losses.mask import mask_cross_entropy
from pixelwise.losses.overlap import dice_loss, squared_dice_loss
from pixelwise.losses.polar import polar_iou_loss
from pixelwise.losses.semantic import PIXEL_LOSSES, semantic_loss
from pixelwise.types import IGNORE
from tests.gpu.device import DEVICE, GPU, assert_near, both, same_on_both
from tests.gpu.drawn import drawn, with_gradients

pytestmark = GPU


def labels(device, classes=4):
    grid = (torch.arange(2 * 24 * 30) * 7 // 50 % (classes + 1)).view(2, 24, 30)
    return grid.masked_fill(grid == classes, IGNORE).to(device)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [*PIXEL_LOSSES, "cross_entropy+dice"])
def test_pixel_losses(kind, weighted):
    def loss(device):
        weights = drawn(2, 24, 30, seed=1).abs().float().to(device) if weighted else None
        classes = torch.tensor([0.5, 2.0, 1.0, 1.5], device=device) if weighted else None
        return with_gradients(
            lambda x: semantic_loss(
                x, labels(device), kind=kind, class_weights=classes, weights=weights
            ),
            drawn(2, 4, 24, 30).float().to(device),
        )

    assert_near(*both(loss), tol=1e-5, what=kind)


@pytest.mark.parametrize("kind", PIXEL_LOSSES)
def test_no_valid_pixel(kind):
    nothing = torch.full((2, 24, 30), IGNORE, device=DEVICE)
    logits = drawn(2, 4, 24, 30).float().to(DEVICE).requires_grad_()
    loss = semantic_loss(logits, nothing, kind=kind)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_half_precision_logits(name, kind):
    """Taken in float32, as on the CPU."""

    def loss(device):
        logits = drawn(2, 4, 24, 30).to(kind).to(device)
        return semantic_loss(logits, labels(device), kind=name)

    assert_near(*both(loss), tol=1e-5, what=name)


@same_on_both
def test_focal_losses(device):
    logits, marks = drawn(3, 50).to(device), (drawn(3, 50, seed=2) > 0).long().to(device)
    grid = drawn(2, 4, 24, 30).to(device)
    return (
        with_gradients(lambda x: sigmoid_focal(x, marks), logits),
        with_gradients(lambda x: softmax_focal(x, labels(device)), grid),
        with_gradients(lambda x: mask_cross_entropy(x, marks), logits),
    )


@same_on_both
def test_overlaps(device):
    probs, marks = drawn(5, 80).sigmoid().to(device), (drawn(5, 80, seed=3) > 0).to(device)
    weights = drawn(80, seed=4).abs().to(device)
    return (
        with_gradients(lambda x: dice_loss(x, marks, weights, smooth=1.0), probs),
        with_gradients(lambda x: squared_dice_loss(x, marks), probs),
    )


@same_on_both
def test_boxes_and_rays(device):
    one, other = (drawn(40, 4, seed=s).abs().add(0.1).to(device) for s in (0, 1))
    kinds = ("log", "linear", "giou")
    rays = ("linear", "squared", "per_ray")
    return (
        [with_gradients(lambda x, k=k: ltrb_overlap_loss(x, other, kind=k), one) for k in kinds],
        [with_gradients(lambda x, k=k: polar_iou_loss(x, other, kind=k), one) for k in rays],
        [with_gradients(lambda x, b=b: smooth_l1(x, other, beta=b), one) for b in (0.0, 0.5)],
    )


@same_on_both
def test_embeddings(device):
    owner = (torch.arange(300) * 11 % 6 - 1).to(device)
    return (
        with_gradients(lambda x: discriminative_loss(x, owner), drawn(4, 300).to(device)),
        with_gradients(lambda x: discriminative_loss(x, owner.clamp(max=-1)), drawn(4, 300)
                       .to(device)),
    )  # fmt: skip


@same_on_both
def test_hard_negatives(device):
    hardness = (drawn(2, 500) * 8).round().to(device)  # with ties: the first of them
    positive = (torch.arange(1000).view(2, 500) % 37 == 0).to(device)
    return hard_negatives(hardness, positive, ~positive, ratio=3)
