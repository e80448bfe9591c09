import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pixelwise.losses.pixel import (
    cross_entropy,
    hardest_by_loss,
    hardest_by_probability,
    mean_over_all,
    pixel_weights,
    weighted_mean,
)
from tests.fixtures import fixture_params, load_fixture


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 6, 7, generator=generator)
    labels = torch.randint(0, 5, (2, 6, 7), generator=generator)
    labels[0, :2] = 255
    return logits, labels


def test_one_value_per_pixel_and_zero_where_ignored() -> None:
    logits, labels = batch()
    losses = cross_entropy(logits, labels)
    assert losses.shape == labels.shape
    assert (losses[labels == 255] == 0).all()
    b, y, x = 1, 3, 4
    expected = -logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
    torch.testing.assert_close(losses[b, y, x], expected)


def test_uniform_logits_cost_log_k() -> None:
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    losses = cross_entropy(torch.zeros(1, 7, 2, 2), labels)
    torch.testing.assert_close(losses, torch.full((1, 2, 2), math.log(7)))


@pytest.mark.parametrize("weighted", [False, True])
def test_mean_is_torchs(weighted: bool) -> None:
    logits, labels = batch()
    classes = torch.tensor([0.5, 1, 2, 3, 0.1]) if weighted else None
    ours = weighted_mean(
        cross_entropy(logits, labels), pixel_weights(labels, class_weights=classes)
    )
    expected = F.cross_entropy(logits, labels, weight=classes, ignore_index=255)
    torch.testing.assert_close(ours, expected)


def test_pixel_weights_multiply() -> None:
    logits, labels = batch()
    own = torch.rand(2, 6, 7)
    weights = pixel_weights(labels, weights=own)
    losses = cross_entropy(logits, labels)
    valid = labels != 255
    expected = (losses[valid] * own[valid]).sum() / own[valid].sum()
    torch.testing.assert_close(weighted_mean(losses, weights), expected)


def test_nothing_valid_gives_zero_with_a_zero_gradient() -> None:
    logits, labels = batch()
    labels = torch.full_like(labels, 255)
    logits.requires_grad_()
    loss = weighted_mean(cross_entropy(logits, labels), pixel_weights(labels))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_half_precision_is_computed_in_float32() -> None:
    logits, labels = batch()
    half = cross_entropy(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, cross_entropy(logits.bfloat16().float(), labels))


def test_gradient() -> None:
    logits, labels = batch()
    small = logits[:1, :, :2, :3].double().requires_grad_()
    marks = labels[1:, :2, :3]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x, marks, ignore_index=255, reduction="none")

    assert torch.autograd.gradcheck(loss, small)
    ours = torch.autograd.grad(cross_entropy(small, marks).sum(), small)[0]
    theirs = torch.autograd.grad(loss(small).sum(), small)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("losses", "kept", "why"),
    [
        ([0.9, 0.1, 0.1, 0.1], [1, 0, 0, 0], "above -ln(.7) = .357"),
        ([0.9, 0.8, 0.7, 0.1], [1, 1, 1, 0], "all that are hard"),
        ([0.1, 0.2, 0.05, 0.15], [0, 1, 0, 1], "none is hard: the largest half"),
    ],
)
def test_hardest_by_loss(losses: list[float], kept: list[int], why: str) -> None:
    values = torch.tensor(losses).view(1, 2, 2)
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    # The least share matters only where too few are hard.
    frac = 0.5 if sum(v > 0.357 for v in losses) == 0 else 0.25
    mask = hardest_by_loss(values, labels, min_frac=frac)
    assert mask.flatten().int().tolist() == kept, why


def test_ohem_of_nothing() -> None:
    logits, labels = batch()
    labels = torch.full_like(labels, 255)
    losses = cross_entropy(logits, labels)
    for kept in (hardest_by_loss(losses, labels), hardest_by_probability(logits, labels)):
        assert not kept.any()
        assert weighted_mean(losses, kept.float()) == 0


@pytest.mark.parametrize("path", fixture_params("semantic", "losses_semantic*"))
def test_upstream_values(path) -> None:
    fixture = load_fixture(path)
    values = fixture.meta["values"]
    arrays = {k: torch.from_numpy(np.asarray(v)) for k, v in fixture.arrays.items()}
    shape = tuple(fixture.meta["shape"])
    logits = next(a for a in arrays.values() if a.numel() == math.prod(shape)).view(shape)
    pixels = shape[0] * shape[2] * shape[3]
    labels = next(a for a in arrays.values() if a.numel() == pixels and a.ndim == 3).long()
    losses, weights = cross_entropy(logits, labels), pixel_weights(labels)
    classes = torch.tensor(fixture.meta["class_weight"])
    weighted = pixel_weights(labels, class_weights=classes)
    ours = {
        "ce_mean_over_valid": weighted_mean(losses, weights),
        "ce_weighted_mean_torch": weighted_mean(losses, weighted),
        "ce_sum": losses.sum(),
        "mmseg_ce_default": mean_over_all(losses, weights),
        "mmseg_ce_avg_non_ignore": weighted_mean(losses, weights),
    }
    for name in values:
        if name.startswith("coincheung_ohem_thresh_"):
            thresh = float(name.rsplit("_", 1)[1])
            kept = hardest_by_loss(losses, labels, thresh=thresh)
            ours[name] = weighted_mean(losses, kept.float())
        elif name.startswith("mmseg_ohem_"):
            *_, thresh, _, min_kept = name.split("_")
            kept = hardest_by_probability(
                logits, labels, thresh=float(thresh), min_kept=int(min_kept)
            )
            counts = "selected" in name
            ours[name] = kept.sum() if counts else mean_over_all(losses, kept.float())
    assert set(ours) == set(values)
    for name, value in values.items():
        assert float(ours[name]) == pytest.approx(value, rel=1e-5), name
