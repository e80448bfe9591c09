"""The dense CRF as an option of prediction: on what it works, and what it goes together with."""

import sys
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from pixelwise.errors import UsageError
from pixelwise.ops.crf import PRESETS, DenseCRF, dense_crf
from pixelwise.prediction.refined import as_crf
from tests.prediction_stand_ins import FIXED, islands, scene, threshold

CRF = DenseCRF(w1=3, sigma_alpha=15, sigma_beta=20, w2=2, sigma_gamma=2, iterations=3)


def grainy() -> np.ndarray:
    """The scene with grain, so that the network errs on single pixels."""
    rng = np.random.default_rng(0)
    return (scene() * 0.5 + 64 + rng.normal(0, 30, (60, 80, 3))).clip(0, 255).astype(np.uint8)


def test_what_the_option_means() -> None:
    assert as_crf(None) is as_crf(False) is None
    assert as_crf(True) == PRESETS["deeplabv2_resnet101"] == DenseCRF()
    assert as_crf("deeplabv1") == PRESETS["deeplabv1"]
    assert as_crf(CRF) is CRF
    with pytest.raises(UsageError, match="did you mean 'deeplabv2_vgg16'"):
        as_crf("deeplabv2_vgg")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tta": (0.5, 1.0)},
        {"tile": 32, "seams": "semseg"},
        {"tile": 32, "seams": "mmseg", "tta": (0.5, 1.0)},
        {"batch_size": 2},
    ],
)
@pytest.mark.parametrize("spec", [{}, {"input": FIXED}])
def test_it_refines_what_the_network_says_on_the_picture_itself(options: Any, spec: Any) -> None:
    image = grainy()
    plain = threshold(**spec).predict(image, with_probs=True, **options).semantic
    (result,) = threshold(**spec).predict([image], crf=CRF, with_probs=True, **options)
    expected = dense_crf(plain.probs, torch.from_numpy(image), CRF)
    torch.testing.assert_close(result.semantic.probs, expected)
    assert torch.equal(result.semantic.labels, expected.argmax(0).to(torch.uint8))
    assert (result.semantic.labels != plain.labels).any()


def test_with_blended_tiles_it_sees_the_whole_picture() -> None:
    """`Threshold` is local, so its stitched probabilities are those of the whole picture."""
    whole = threshold().predict(grainy(), crf=CRF).semantic
    tiled = threshold().predict(grainy(), crf=CRF, tile=32, overlap=0.4).semantic
    assert torch.equal(tiled.labels, whole.labels)
    assert tiled.probs is whole.probs is None


def test_a_read_only_picture_is_taken_without_a_warning() -> None:
    image = grainy()
    image.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threshold().predict(image, crf=CRF)


def test_its_time_counts_as_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(prediction: Any, *_: Any, **__: Any) -> Any:
        time.sleep(0.05)
        return prediction

    monkeypatch.setattr(sys.modules["pixelwise.predict"], "refine", slow)
    assert threshold().predict(grainy(), crf=CRF).times["decode"] >= 50
    assert threshold().predict(grainy(), crf=CRF, tta=(1.0,)).times["decode"] >= 50


def test_objects_have_no_crf() -> None:
    with pytest.raises(UsageError, match="crf refines label maps, and this model finds objects"):
        islands().predict(scene(), crf=True)
    assert len(islands().predict(scene(), crf=False)) == 2


def test_an_unknown_preset_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="there are deeplabv1, deeplabv2_resnet101"):
        threshold().predict("none.png", crf="zzz")
