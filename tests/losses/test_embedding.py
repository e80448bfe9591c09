"""The discriminative loss: closed forms, margins, invariances, and a loop that spells it out."""

import math

import pytest
import torch
from torch import Tensor

from pixelwise.losses.embedding import discriminative_loss


def drawn(count: int = 4, pixels: int = 60, dims: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count + pixels)
    embeddings = torch.randn(dims, pixels, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(-1, count, (pixels,), generator=generator)


def slow(x: Tensor, owner: Tensor, dv: float, dd: float) -> tuple[float, float, float]:
    """Pixel by pixel, pair by ordered pair."""
    names = sorted({n for n in owner.tolist() if n >= 0})
    mean = {n: x[:, owner == n].mean(dim=1) for n in names}
    pull = push = lengths = 0.0
    for n in names:
        mine = [i for i, m in enumerate(owner.tolist()) if m == n]
        away = [max(0.0, math.dist(x[:, i].tolist(), mean[n].tolist()) - dv) ** 2 for i in mine]
        pull += sum(away) / len(mine)
        lengths += math.hypot(*mean[n].tolist())
        for m in names:
            if m != n:
                push += max(0.0, 2 * dd - math.dist(mean[n].tolist(), mean[m].tolist())) ** 2
    count = len(names)
    return pull / count, push / max(1, count * (count - 1)), lengths / count


@pytest.mark.parametrize("margins", [(0.5, 1.5), (0.1, 0.3), (1.0, 2.5)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_to_the_slow_loop(count: int, margins: tuple[float, float]) -> None:
    x, owner = drawn(count)
    found = discriminative_loss(x, owner, delta_v=margins[0], delta_d=margins[1])
    assert [t.item() for t in found] == pytest.approx(slow(x, owner, *margins), rel=1e-12)


@pytest.mark.parametrize(
    ("points", "owner", "expected", "why"),
    [
        ([0, 0, 5, 5], [0, 0, 1, 1], (0, 0, 2.5), "tight and 5 > 3 apart"),
        ([-0.5, 0.5], [7, 7], (0, 0, 0), "exactly the radius away costs nothing"),
        ([-1, 1], [0, 0], (0.25, 0, 0), "(1 - 0.5)^2 for each of two pixels"),
        ([0, 3], [0, 1], (0, 0, 1.5), "means exactly 2 delta_d apart"),
        ([0, 2], [0, 1], (0, 1, 1), "(3 - 2)^2: the margin is 3, and nothing is halved"),
        ([0, 0], [0, 1], (0, 9, 0), "the same place"),
        ([0, 9, 9], [0, -1, -1], (0, 0, 0), "background takes no part"),
        ([1, 2], [-1, -1], (0, 0, 0), "no instance at all"),
        ([-1, 1, 1, 1, 1, 9], [0, 0, 1, 1, 1, -1], (0.125, 4, 0.5), "instances weigh the same"),
    ],
)
def test_closed_form(
    points: list[float], owner: list[int], expected: tuple[float, float, float], why: str
) -> None:
    x = torch.tensor([points], dtype=torch.float32, requires_grad=True)
    terms = discriminative_loss(x, torch.tensor(owner))
    assert [t.item() for t in terms] == pytest.approx(expected), why
    sum(terms).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_renumbering_changes_nothing() -> None:
    x, owner = drawn(5)
    renamed = torch.tensor([40, 3, 1000, 7, 0, -1])[owner]
    for a, b in zip(discriminative_loss(x, owner), discriminative_loss(x, renamed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_pull_and_push_do_not_know_where_the_space_has_its_origin_and_axes() -> None:
    x, owner = drawn(4)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    moved = rotation @ x + torch.tensor([[5.0], [-2.0], [1.0]], dtype=torch.float64)
    before, after = discriminative_loss(x, owner), discriminative_loss(moved, owner)
    for name in ("variance", "distance"):
        torch.testing.assert_close(getattr(before, name), getattr(after, name))
    assert before.regularisation < after.regularisation - 1


def test_gradient() -> None:
    x, owner = drawn(4, pixels=20)
    weights = (1.0, 1.0, 0.001)

    def total(y: Tensor) -> Tensor:
        terms = discriminative_loss(y, owner)
        return torch.stack([w * t for w, t in zip(weights, terms, strict=True)]).sum()

    assert torch.autograd.gradcheck(total, x.requires_grad_())


def test_half_precision_is_summed_in_float32() -> None:
    x, owner = drawn(3)
    terms = discriminative_loss(x.to(torch.bfloat16), owner)
    exact = discriminative_loss(x.to(torch.bfloat16).double(), owner)
    for term, wanted in zip(terms, exact, strict=True):
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(wanted.item(), rel=1e-5)
