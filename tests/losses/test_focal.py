import math

import pytest
import torch

from pixelwise.losses.focal import sigmoid_focal, softmax_focal
from pixelwise.losses.mask import mask_cross_entropy
from pixelwise.losses.pixel import cross_entropy


def test_softmax_closed_form() -> None:
    """Two classes at logit 0: p = 1/2, so (1 - p)^2 ln 2 = ln 2 / 4."""
    labels = torch.tensor([[[0, 1], [255, 0]]])
    losses = softmax_focal(torch.zeros(1, 2, 2, 2), labels)
    torch.testing.assert_close(losses[labels != 255], torch.full((3,), math.log(2) / 4))
    assert losses[0, 1, 0] == 0


def test_gamma_zero_is_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, generator=generator)
    labels = torch.randint(0, 5, (2, 3, 4), generator=generator)
    torch.testing.assert_close(
        softmax_focal(logits, labels, gamma=0), cross_entropy(logits, labels)
    )
    target = (labels == 1).float()
    plain = sigmoid_focal(logits[:, 0], target, alpha=-1, gamma=0)
    torch.testing.assert_close(plain, mask_cross_entropy(logits[:, 0], target))


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [
        (0.0, 1, 0.25 * 0.25 * math.log(2)),
        (0.0, 0, 0.75 * 0.25 * math.log(2)),
        (math.log(9), 1, 0.25 * 0.01 * -math.log(0.9)),  # p = 0.9
        (math.log(9), 0, 0.75 * 0.81 * -math.log(0.1)),
    ],
)
def test_sigmoid_closed_form(logit: float, target: int, expected: float) -> None:
    loss = sigmoid_focal(torch.tensor([logit]), torch.tensor([target]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_sure_pixels_have_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[[[200.0, -200.0]], [[0.0, 0.0]]]], requires_grad=True)
    labels = torch.tensor([[[0, 255]]])
    softmax_focal(logits, labels, gamma=gamma).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    sure = torch.tensor([200.0, -200.0], requires_grad=True)
    sigmoid_focal(sure, torch.tensor([1.0, 0.0]), gamma=gamma).sum().backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[0, 2], [255, 1]]])
    assert torch.autograd.gradcheck(lambda x: softmax_focal(x, labels), logits)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal(x, (x > 0).double()), logits)
