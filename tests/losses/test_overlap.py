import pytest
import torch

from pixelwise.losses.overlap import dice_loss, squared_dice_loss


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


@pytest.mark.parametrize(
    ("probs", "marks", "expected", "why"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 0.0, "perfect"),
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0, "disjoint"),
        ([0.5, 0.5], [1, 0], 1 - 2 * 0.5 / (0.5 + 1), "squares: 0.25 + 0.25 and 1"),
        ([0, 0], [0, 0], 1.0, "nothing to find: only the smoothing is left"),
    ],
)
def test_squared_dice_closed_form(
    probs: list[float], marks: list[float], expected: float, why: str
) -> None:
    p, t = torch.tensor([probs]).float(), torch.tensor([marks]).float()
    assert squared_dice_loss(p, t).item() == pytest.approx(expected, abs=2e-3), why
    assert squared_dice_loss(p, t).item() == pytest.approx(squared_dice_loss(t, p).item()), why


def test_squared_dice_smooths_each_sum() -> None:
    p, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    loss = squared_dice_loss(p, t, smooth=0.5)
    assert loss.item() == pytest.approx(1 - 2 * 1 / ((1 + 0.5) + (2 + 0.5)))


def test_squared_dice_gradient() -> None:
    p = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    marks = (torch.rand(3, 5) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: squared_dice_loss(x, marks), p)
