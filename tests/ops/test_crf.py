from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.ops.crf import PRESETS, DenseCRF, dense_crf, dense_crf_exact

BOTH = pytest.mark.parametrize("infer", [dense_crf, dense_crf_exact])
CRF = DenseCRF(w1=4, sigma_alpha=20, sigma_beta=10, w2=3, sigma_gamma=2, iterations=5)


def scene(classes: int = 3, height: int = 20, width: int = 26) -> tuple[Tensor, Tensor]:
    """A picture of two halves with some noise, and probabilities that roughly follow it."""
    g = torch.Generator().manual_seed(0)
    image = torch.full((height, width, 3), 60.0)
    image[:, width // 2 :] = torch.tensor([180.0, 90, 40])
    image += 6 * torch.randn(image.shape, generator=g)
    logits = torch.randn(classes, height, width, generator=g)
    logits[0, :, : width // 2] += 1
    logits[1, :, width // 2 :] += 1
    return logits.softmax(0), image.clamp(0, 255).to(torch.uint8)


def reference(probs: Tensor, image: Tensor, crf: DenseCRF) -> Tensor:
    """The formulas of the paper with whole matrices."""
    k, height, width = probs.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    p = torch.stack([y, x], -1).view(-1, 2).double()
    colours = image.reshape(-1, 3).double()
    near, alike = torch.cdist(p, p).square(), torch.cdist(colours, colours).square()
    total = torch.zeros(len(p), len(p), dtype=torch.float64)
    for weight, exponent in (
        (crf.w1, near / (2 * crf.sigma_alpha**2) + alike / (2 * crf.sigma_beta**2)),
        (crf.w2, near / (2 * crf.sigma_gamma**2)),
    ):
        kernel = (-exponent).exp()
        d = kernel.sum(1).rsqrt()
        total += weight * d[:, None] * kernel * d
    unary = probs.double().clamp(min=1e-5).log().view(k, -1)
    q = unary.softmax(0)
    for _ in range(crf.iterations):
        q = (unary + q @ total).softmax(0)
    return q.view(probs.shape).float()


def test_exact_is_the_paper() -> None:
    probs, image = scene()
    torch.testing.assert_close(
        dense_crf_exact(probs, image, CRF), reference(probs, image, CRF), rtol=1e-5, atol=1e-6
    )


def test_exact_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    probs, image = scene()
    whole = dense_crf_exact(probs, image, CRF)
    monkeypatch.setattr("pixelwise.ops.crf._CHUNK_ELEMENTS", 7 * 20 * 26)
    torch.testing.assert_close(dense_crf_exact(probs, image, CRF), whole)


def test_fast_is_near_exact() -> None:
    """Bounds between exact and the lattice of the authors' library, on fixtures of this size."""
    probs, image = scene(4, 36, 44)
    one = replace(CRF, iterations=1)
    fast, exact = dense_crf(probs, image, one), dense_crf_exact(probs, image, one)
    assert (fast - exact).abs().max() < 0.16
    fast, exact = dense_crf(probs, image, CRF), dense_crf_exact(probs, image, CRF)
    assert (fast.argmax(0) == exact.argmax(0)).float().mean() > 0.95


@BOTH
def test_marginals_sum_to_one(infer) -> None:
    found = infer(*scene(), CRF)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(0), torch.ones(20, 26))


@BOTH
def test_without_weights_it_is_the_softmax(infer) -> None:
    probs, image = scene()
    torch.testing.assert_close(infer(probs, image, replace(CRF, w1=0, w2=0)), probs)
    torch.testing.assert_close(infer(probs, image, replace(CRF, iterations=0)), probs)


@BOTH
def test_a_class_that_was_excluded_is_clipped_not_lost(infer) -> None:
    probs = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    image = torch.zeros(1, 1, 3, dtype=torch.uint8)
    found = infer(probs, image, replace(CRF, w1=0, w2=0))
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([1.0, 1e-5]) / 1.00001)


@BOTH
def test_uniform_stays_uniform(infer) -> None:
    """Nothing to prefer: no class gains, whatever the picture shows."""
    _, image = scene()
    for picture in (image, torch.full_like(image, 128)):
        found = infer(torch.full((4, 20, 26), 0.25), picture, CRF)
        torch.testing.assert_close(found, torch.full((4, 20, 26), 0.25))


@BOTH
def test_permuting_classes_commutes(infer) -> None:
    probs, image = scene()
    order = [2, 0, 1]
    torch.testing.assert_close(
        infer(probs[order], image, CRF), infer(probs, image, CRF)[order], rtol=1e-4, atol=1e-5
    )


@BOTH
def test_a_lone_wrong_pixel_is_smoothed_away(infer) -> None:
    probs = torch.tensor([0.7, 0.3]).view(2, 1, 1).repeat(1, 15, 15)
    probs[:, 7, 7] = torch.tensor([0.3, 0.7])
    image = torch.full((15, 15, 3), 90, dtype=torch.uint8)
    assert infer(probs, image, CRF)[0].min() > 0.5
    weak = replace(CRF, w1=0.01, w2=0.01)
    assert infer(probs, image, weak)[0, 7, 7] < 0.5  # the network wins where the ties are weak


@BOTH
def test_labels_move_to_the_edge_of_the_picture(infer) -> None:
    """The network's border is 3 pixels off the edge of the colours; the bilateral kernel moves it.

    The lone spatial kernel knows no colours and leaves it.
    """
    image = torch.full((16, 30, 3), 40, dtype=torch.uint8)
    image[:, 15:] = 200
    probs = torch.full((2, 16, 30), 0.4)
    probs[0, :, :12] = 0.6
    probs[1, :, 12:] = 0.6
    labels = infer(probs, image, CRF).argmax(0)
    assert (labels[:, :15] == 0).all()
    assert (labels[:, 15:] == 1).all()
    labels = infer(probs, image, replace(CRF, w1=0)).argmax(0)
    assert (labels[:, 12:] == 1).all()


@BOTH
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(infer, channels: int) -> None:
    probs, _ = scene()
    image = torch.randint(0, 256, (20, 26, channels), dtype=torch.uint8)
    assert infer(probs, image, CRF).shape == probs.shape


@BOTH
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(20, 26, 3), "uint8"),
        (torch.zeros(26, 20, 3, dtype=torch.uint8), "20x26"),
        (torch.zeros(20, 26, dtype=torch.uint8), "20x26"),
    ],
)
def test_wrong_pictures_are_refused(infer, image: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        infer(scene()[0], image, CRF)


@pytest.mark.parametrize(
    ("field", "value"), [("w1", -1), ("sigma_beta", 0), ("sigma_gamma", -2), ("iterations", -1)]
)
def test_wrong_parameters_are_named(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field):
        DenseCRF(**{field: value})


def test_presets_are_those_of_the_projects() -> None:
    kernels = {
        n: (c.w1, c.sigma_alpha, c.sigma_beta, c.w2, c.sigma_gamma) for n, c in PRESETS.items()
    }
    assert kernels == {
        "deeplabv1": (4, 49, 5, 3, 3),
        "deeplabv2_resnet101": (4, 67, 3, 3, 1),
        "deeplabv2_vgg16": (4, 65, 3, 2, 2),
    }
    assert {c.iterations for c in PRESETS.values()} == {10}
