import pytest
import torch

from pixelwise.losses.overlap import dice_loss


@pytest.mark.parametrize(
    ("probs", "marks", "weights", "expected", "why"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], 0.0, "perfect"),
        ([0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], 1.0, "disjoint"),
        ([1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], 0.5, "Dice = 2 / (3 + 1)"),
        ([0.5, 0.5], [1, 0], [1, 1], 0.5, "soft: 1 / (1 + 1)"),
        ([1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1], 0.0, "the false ones are ignored"),
        ([0, 0], [0, 0], [1, 1], 0.0, "nothing true, nothing predicted"),
        ([1, 1], [1, 0], [0, 0], 0.0, "nothing counts"),
    ],
)
def test_closed_form(
    probs: list[float], marks: list[float], weights: list[float], expected: float, why: str
) -> None:
    loss = dice_loss(torch.tensor([probs]), torch.tensor([marks]), torch.tensor(weights))
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected), why


def test_smoothing_softens_an_empty_region() -> None:
    probs, marks = torch.full((1, 4), 0.25), torch.zeros(1, 4)
    assert dice_loss(probs, marks, torch.ones(4)).item() == pytest.approx(1)
    assert dice_loss(probs, marks, torch.ones(4), smooth=1.0).item() == pytest.approx(0.5)


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    marks = torch.rand(3, 7, generator=generator) < 0.5
    weights = torch.rand(7, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: dice_loss(p, marks, weights), probs)
