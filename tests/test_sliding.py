"""Sliding windows by the protocols of semseg and mmseg: where they lie, how they are joined."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.ops.resize import resize
from pixelwise.predict import Segmenter
from pixelwise.prediction.augmented import join_semantic
from pixelwise.prediction.sliding import Sliding, slide
from pixelwise.types import ImageSize
from tests.fixtures import parity_dir
from tests.prediction_stand_ins import FIXED, islands, scene, threshold


def rows(origin: str) -> list[dict[str, Any]]:
    path = parity_dir() / "semantic" / "tables.json"
    return json.loads(path.read_text())["sliding_windows"][origin] if path.exists() else []


def crossed(length: int, sliding: Sliding, *, is_flipped: bool = False) -> list[list[float]]:
    """[first, last] value of each window's middle row; columns count from 1, padding is 0."""
    image = torch.arange(1.0, length + 1).expand(1, length, length)
    if is_flipped:
        image = image.flip(-1)
    seen: list[list[float]] = []

    def record(window: Tensor) -> Tensor:
        middle = window[0, window.shape[1] // 2]
        seen.append([int(middle[0]), int(middle[-1]), len(middle)])
        return torch.ones_like(window)

    slide(image, ImageSize.same((length, length)), sliding, record, is_flipped=is_flipped)
    across = round(len(seen) ** 0.5)
    return seen[:across]


@pytest.mark.parametrize("row", rows("semseg"))
def test_semseg_windows_and_padding(row: dict[str, Any]) -> None:
    sliding = Sliding.of("semseg", row["crop"], None)
    assert sliding.stride == row["stride"]
    found = crossed(row["length"], sliding)
    inside = range(row["pad_before"], row["pad_before"] + row["length"])
    expected = [
        [x - inside.start + 1 if x in inside else 0 for x in (start, end - 1)] + [row["crop"]]
        for start, end in row["windows"]
    ]
    assert found == expected
    # Mirroring is done to each window: the same columns, each window read from its right.
    mirrored = crossed(row["length"], sliding, is_flipped=True)
    assert mirrored == [[last, first, width] for first, last, width in expected]


@pytest.mark.parametrize("row", rows("mmseg"))
def test_mmseg_windows_of_a_given_stride(row: dict[str, Any]) -> None:
    sliding = Sliding.of("mmseg", row["crop"], 1 - row["stride"] / row["crop"])
    assert sliding.stride == row["stride"]
    expected = [[start + 1, end, end - start] for start, end in row["windows"]]
    assert crossed(row["length"], sliding) == expected
    # The picture as a whole is mirrored: windows start at its other side.
    length = row["length"]
    mirrored = [[length - start, length + 1 - end, end - start] for start, end in row["windows"]]
    assert crossed(length, sliding, is_flipped=True) == mirrored


def network(classes: int = 3) -> Callable[[Tensor], Tensor]:
    """Logits that depend on the place within the window, as a network with padding has them."""
    weight = torch.randn(classes, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 3
    return lambda window: torch.nn.functional.conv2d(window[None], weight, padding=1)[0]


def noise(*size: int) -> Tensor:
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule", ["semseg", "mmseg"])
@pytest.mark.parametrize("original", [(30, 41), (45, 60)])
def test_joining_equals_a_hand_made_loop(rule: Any, original: tuple[int, int]) -> None:
    image, net = noise(30, 41), network()
    sliding = Sliding(rule=rule, window=16, stride=11)
    total, visits = torch.zeros(3, 30, 41), torch.zeros(30, 41)
    for top in (0, 11, 14):
        for left in (0, 11, 22, 25):
            here = (slice(None), slice(top, top + 16), slice(left, left + 16))
            logits = net(image[here])
            total[here] += logits if rule == "mmseg" else logits.softmax(0)
            visits[here[1:]] += 1
    mean = resize((total / visits)[None], original)[0]
    size = ImageSize(original=original, content=(30, 41), input=(32, 48))
    padded = torch.nn.functional.pad(image, (0, 7, 0, 2), value=9.0)  # beyond the content
    found = slide(padded, size, sliding, lambda w: net(w).softmax(0))
    assert torch.equal(found.labels.long(), mean.argmax(0))
    probs = mean.softmax(0) if rule == "mmseg" else mean
    torch.testing.assert_close(found.probs, probs, rtol=1e-4, atol=1e-5)


def test_the_two_rules_disagree_where_one_window_is_very_sure() -> None:
    """Class 1 leads by 9 in one window and lags by 4 in the other: 5 / 2 ahead in the mean logits.

    The softmax cannot be surer than 1: (1.00 + 0.02) / 2 is still ahead, by little.
    """
    found: dict[str, float] = {}
    for rule in ("mmseg", "semseg"):
        leads = iter([9.0, -4.0])

        def answer(window: Tensor, leads: Any = leads) -> Tensor:
            logits = torch.tensor([0.0, next(leads)])[:, None, None]
            return logits.expand(2, *window.shape[1:]).softmax(0)

        sliding = Sliding(rule=rule, window=4, stride=2)
        joined = slide(torch.zeros(1, 4, 6), ImageSize.same((4, 6)), sliding, answer)
        found[rule] = float(joined.probs[1, 0, 3])
    assert found["mmseg"] == pytest.approx(1 / (1 + np.exp(-2.5)), rel=1e-4)
    both = [1 / (1 + np.exp(-9)), 1 / (1 + np.exp(4))]
    assert found["semseg"] == pytest.approx(np.mean(both), rel=1e-5)


def test_semseg_mirrors_each_window() -> None:
    image, net = noise(20, 27), network()
    sliding = Sliding.of("semseg", 12, None)
    size = ImageSize.same((20, 27))

    def probs(window: Tensor) -> Tensor:
        return net(window).softmax(0)

    def both(window: Tensor) -> Tensor:
        return (probs(window) + probs(window.flip(-1)).flip(-1)) / 2

    straight = slide(image, size, sliding, probs)
    mirrored = slide(image.flip(-1), size, sliding, probs, is_flipped=True)
    joined = join_semantic(iter([(straight, False), (mirrored, True)]), with_probs=True)
    torch.testing.assert_close(joined.probs, slide(image, size, sliding, both).probs)


def test_a_class_that_a_window_excludes_stays_finite() -> None:
    found = slide(
        noise(4, 4),
        ImageSize.same((4, 4)),
        Sliding(rule="mmseg", window=4, stride=4),
        lambda w: torch.stack([torch.zeros_like(w[0]), torch.ones_like(w[0])]),
    )
    assert (found.labels == 1).all()
    assert torch.equal(found.probs[1], torch.ones(4, 4))


# --- through a model ----------------------------------------------------------------------------


def fed(model: Segmenter) -> list[Tensor]:
    """Fills with what the network is given."""
    seen: list[Tensor] = []
    forward = model.system.forward

    def record(images: Tensor) -> Any:
        seen.append(images)
        return forward(images)

    model.system.forward = record
    return seen


@pytest.mark.parametrize("seams", ["semseg", "mmseg"])
@pytest.mark.parametrize("tile", [32, 64, 500])
def test_windows_of_a_local_network_equal_the_whole(seams: Any, tile: int) -> None:
    whole = threshold().predict(scene())
    assert torch.equal(
        threshold().predict(scene(), tile=tile, seams=seams).semantic.labels, whole.semantic.labels
    )
    resized = threshold(input=FIXED).predict(scene())
    same = threshold(input=FIXED).predict(scene(), tile=tile, seams=seams)
    agree = (same.semantic.labels == resized.semantic.labels).float().mean()
    assert agree > 0.99  # probabilities are resized where the plain way resizes logits
    assert same.semantic.probs is None


@pytest.mark.parametrize(
    ("seams", "sides"),
    [
        ("semseg", {(32, 32)}),  # 30x40 is padded to 32 rows
        ("mmseg", {(32, 32), (30, 32)}),
    ],
)
def test_every_scale_is_crossed_by_windows_of_one_size(seams: Any, sides: set[Any]) -> None:
    model = threshold()
    seen = fed(model)
    model.predict(scene(), tile=32, seams=seams, tta=(0.5, 1.0))
    assert {tuple(x.shape[2:]) for x in seen} == sides


def test_a_network_feels_the_grey_of_the_mean_around_small_pictures() -> None:
    model = threshold(input=FIXED)
    seen = fed(model)
    model.predict(np.full((60, 80, 3), 255, np.uint8), tile=68, seams="semseg")
    (window,) = seen  # 48x64 with 10 rows above and below, 2 columns left and right
    assert window.shape[2:] == (68, 68)
    assert torch.equal(window[0, 0, 10:58, 2:66], torch.ones(48, 64))
    assert window.sum() == 3 * 48 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seams": "smooth", "tile": 64}, "blended, semseg, mmseg"),
        ({"seams": "semseg", "tile": 64, "overlap": 0.5}, "fixes the overlap"),
        ({"seams": "mmseg"}, "give their side"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        threshold().predict(scene(), **options)


def test_published_seams_are_for_label_maps() -> None:
    with pytest.raises(UsageError, match="label maps"):
        islands().predict(scene(), tile=64, seams="mmseg")
    assert len(islands().predict(scene(), tile=64, seams="blended")) == 2
