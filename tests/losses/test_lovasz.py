import pytest
import torch

from pixelwise.losses.lovasz import jaccard_slopes, lovasz_softmax
from pixelwise.metrics.miou import Confusion


def one_minus_iou(marks: torch.Tensor, wrong: set[int], weights: torch.Tensor) -> float:
    """1 - IoU of a class if exactly the pixels of `wrong` are predicted wrongly."""
    true = {i for i in range(len(marks)) if marks[i]}
    kept = sum(float(weights[i]) for i in true - wrong)
    either = sum(float(weights[i]) for i in true | wrong)
    return 1 - kept / either


def lovasz_extension(errors: torch.Tensor, marks: torch.Tensor, weights: torch.Tensor) -> float:
    """The definition: errors in falling order times the growth of the set function."""
    if not float((weights * marks).sum()):
        return 0.0
    wrong: set[int] = set()
    total, before = 0.0, 0.0
    for i in sorted(range(len(errors)), key=lambda i: -float(errors[i])):
        wrong.add(i)
        after = one_minus_iou(marks, wrong, weights)
        total += float(errors[i]) * (after - before)
        before = after
    return total


def scene(seed: int, k: int = 3, pixels: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(k, pixels, generator=generator).mul(2).softmax(0)
    labels = torch.randint(0, k, (pixels,), generator=generator)
    return probs, labels == torch.arange(k)[:, None]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["ones", "ignored", "fractions"])
def test_is_the_slow_reference(seed: int, form: str) -> None:
    probs, marks = scene(seed)
    weights = torch.ones(probs.shape[1])
    if form == "ignored":
        weights[::3] = 0
    elif form == "fractions":
        weights = torch.rand(weights.shape, generator=torch.Generator().manual_seed(9))
    errors = (marks.float() - probs).abs()
    expected = [lovasz_extension(e, m, weights) for e, m in zip(errors, marks, strict=True)]
    torch.testing.assert_close(lovasz_softmax(probs, marks, weights), torch.tensor(expected))


def test_hard_predictions_cost_one_minus_iou() -> None:
    probs, marks = scene(1, k=4, pixels=200)
    guess, labels = probs.argmax(0), marks.float().argmax(0)
    hard = (guess == torch.arange(4)[:, None]).float()
    confusion = Confusion(4)
    confusion.update(guess, labels)
    ours = lovasz_softmax(hard, marks, torch.ones(200))
    expected = 1 - torch.as_tensor(confusion.iou(), dtype=torch.float32)
    torch.testing.assert_close(ours, expected)


def test_an_absent_class_costs_nothing() -> None:
    probs, marks = scene(2)
    marks[0] = False
    probs.requires_grad_()
    losses = lovasz_softmax(probs, marks, torch.ones(40))
    losses.sum().backward()
    assert losses[0] == 0
    assert probs.grad is not None
    assert (probs.grad[0] == 0).all()
    assert (probs.grad[1] != 0).any()


def test_slopes_sum_to_one_and_are_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(200_000, generator=generator)
    marks = torch.rand(200_000, generator=generator) < 0.1
    slopes = jaccard_slopes(errors, marks, torch.ones(200_000))
    assert (slopes >= 0).all()
    assert slopes.double().sum().item() == pytest.approx(1.0, rel=1e-5)


def test_slopes_keep_their_digits_among_many_pixels() -> None:
    """The difference of two IoUs in float32 has an error of percents here."""
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(200_000, generator=generator)
    marks = torch.rand(200_000, generator=generator) < 0.5
    ours = jaccard_slopes(errors, marks, torch.ones(200_000))
    exact = jaccard_slopes(errors.double(), marks, torch.ones(200_000, dtype=torch.float64))
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)


def test_gradient() -> None:
    probs, marks = scene(3)
    weights = torch.ones(40, dtype=torch.float64)
    weights[4] = 0
    double = probs.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: lovasz_softmax(p, marks, weights), double)
