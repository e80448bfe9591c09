"""The named semantic losses: closed forms, ignored pixels, weights, gradients, sums."""

import math

import pytest
import torch

from pixelwise.errors import UsageError
from pixelwise.losses.pixel import cross_entropy, pixel_weights
from pixelwise.losses.semantic import (
    PIXEL_LOSSES,
    check_pixel_loss,
    semantic_loss,
    stack_targets,
)
from pixelwise.types import SemanticTarget

KINDS = [*PIXEL_LOSSES, "cross_entropy+dice", "cross_entropy+lovasz"]


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 6, 5, generator=generator)
    labels = torch.randint(0, 4, (2, 6, 5), generator=generator)
    labels[0, :2] = 255
    return logits, labels


def hard(labels: torch.Tensor, k: int) -> torch.Tensor:
    """Logits that predict exactly these labels."""
    return 60.0 * torch.nn.functional.one_hot(labels, k).movedim(-1, 1).float()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_valid_gives_zero_with_a_zero_gradient(kind: str) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    loss = semantic_loss(logits, torch.full_like(labels, 255), kind=kind)
    loss.backward()
    assert loss.item() == 0
    assert loss.ndim == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("kind", [k for k in KINDS if "mmseg" not in k])
def test_an_image_without_valid_pixels_changes_nothing(kind: str) -> None:
    logits, labels = batch()
    labels[0] = 255
    alone = semantic_loss(logits[1:], labels[1:], kind=kind)
    torch.testing.assert_close(semantic_loss(logits, labels, kind=kind), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_pixels_count_for_nothing(kind: str) -> None:
    logits, labels = batch()
    other = logits.clone()
    other[0, :, :2] = 100 * torch.randn_like(other[0, :, :2])
    torch.testing.assert_close(
        semantic_loss(logits, labels, kind=kind), semantic_loss(other, labels, kind=kind)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_right_is_free_and_wrong_is_not(kind: str) -> None:
    _, labels = batch(1)
    labels[labels == 255] = 0
    right, wrong = hard(labels, 4), hard((labels + 1) % 4, 4)
    assert semantic_loss(right, labels, kind=kind) < 1e-5
    assert semantic_loss(wrong, labels, kind=kind) > 0.9


# The selection of hard pixels counts valid pixels, not weights.
@pytest.mark.parametrize("kind", [k for k in KINDS if "ohem" not in k])
def test_a_pixel_of_weight_zero_is_an_ignored_pixel(kind: str) -> None:
    logits, labels = batch()
    own = torch.ones(labels.shape)
    own[1, 3:] = 0
    ignored = labels.clone()
    ignored[1, 3:] = 255
    torch.testing.assert_close(
        semantic_loss(logits, labels, kind=kind, weights=own),
        semantic_loss(logits, ignored, kind=kind),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_equal_class_weights_change_nothing_but_a_scale(kind: str) -> None:
    logits, labels = batch()
    plain = semantic_loss(logits, labels, kind=kind)
    weighted = semantic_loss(logits, labels, kind=kind, class_weights=torch.full((4,), 3.0))
    factor = 3 if kind == "ohem_mmseg" else 1  # it divides by pixels, not by weights
    torch.testing.assert_close(weighted, factor * plain)


@pytest.mark.parametrize("kind", ["cross_entropy", "ohem", "ohem_mmseg", "focal"])
def test_pixels_of_a_class_of_weight_zero_are_not_learned(kind: str) -> None:
    logits, labels = batch()
    labels[1] = 2
    logits.requires_grad_()
    classes = torch.tensor([1.0, 1, 0, 1])
    semantic_loss(logits, labels, kind=kind, class_weights=classes).backward()
    assert logits.grad is not None
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).any()


@pytest.mark.parametrize("kind", ["dice", "lovasz"])
def test_class_weights_weigh_the_overlap_of_classes(kind: str) -> None:
    logits, labels = batch()
    alone = [
        semantic_loss(logits, labels, kind=kind, class_weights=torch.eye(4)[c]) for c in range(4)
    ]
    mixed = semantic_loss(logits, labels, kind=kind, class_weights=torch.tensor([1.0, 0, 0, 3]))
    torch.testing.assert_close(mixed, (alone[0] + 3 * alone[3]) / 4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_finite(kind: str) -> None:
    logits, labels = batch()
    loss = semantic_loss((1e4 * logits).half(), labels, kind=kind)
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_numerical_one(kind: str) -> None:
    logits, labels = batch(3)
    logits.requires_grad_()
    (slope,) = torch.autograd.grad(semantic_loss(logits, labels, kind=kind), logits)
    step = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    h = 1e-3
    with torch.no_grad():
        up = semantic_loss(logits + h * step, labels, kind=kind)
        down = semantic_loss(logits - h * step, labels, kind=kind)
    assert float((up - down) / (2 * h)) == pytest.approx(float((slope * step).sum()), abs=3e-3)


def test_sum_is_the_sum() -> None:
    logits, labels = batch()
    parts = [semantic_loss(logits, labels, kind=k) for k in ("cross_entropy", "dice", "lovasz")]
    whole = semantic_loss(logits, labels, kind="cross_entropy+dice+lovasz")
    torch.testing.assert_close(whole, sum(parts, start=torch.zeros(())))


def test_ohem_averages_hard_pixels_only() -> None:
    """Half the pixels are sure and right; the mean is that of the others."""
    logits = torch.zeros(1, 2, 2, 8)
    logits[:, 0, 0] = 20.0
    labels = torch.zeros(1, 2, 8, dtype=torch.int64)
    assert semantic_loss(logits, labels, kind="ohem").item() == pytest.approx(math.log(2))
    plain = semantic_loss(logits, labels)
    assert plain.item() == pytest.approx(math.log(2) / 2)


def test_cross_entropy_is_torchs_with_weights() -> None:
    logits, labels = batch()
    classes = torch.tensor([0.5, 1.0, 2.0, 3.0])
    ours = semantic_loss(logits, labels, class_weights=classes)
    weights = pixel_weights(labels, class_weights=classes)
    expected = (cross_entropy(logits, labels) * weights).sum() / weights.sum()
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", ["", "ce", "cross_entropy+", "dice + lovasz", "Lovasz"])
def test_unknown_kinds_are_refused_with_the_choices(kind: str) -> None:
    with pytest.raises(UsageError, match="cross_entropy, ohem"):
        check_pixel_loss(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_known_kinds_pass(kind: str) -> None:
    check_pixel_loss(kind)


def test_stack_targets() -> None:
    labels = torch.zeros(2, 3, dtype=torch.int64)
    stacked, none = stack_targets([SemanticTarget(labels=labels)] * 2)
    assert stacked.shape == (2, 2, 3)
    assert none is None
    own = torch.full((2, 3), 0.5)
    _, weights = stack_targets(
        [SemanticTarget(labels=labels), SemanticTarget(labels=labels, weights=own)]
    )
    assert weights is not None
    assert weights[0].eq(1).all()
    assert weights[1].eq(0.5).all()
