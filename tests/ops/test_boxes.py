"""Box arithmetic: tables, slow references, round trips and what upstream coders compute."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from pixelwise.ops.boxes import (
    box_areas,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    pairwise_ioa,
    pairwise_iou,
)
from tests.fixtures import fixture_params, load_fixture


def random_boxes(n: int, seed: int, extent: float = 200.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * extent - 20
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator) * 90], 1)


@pytest.mark.parametrize(
    ("a", "b", "plus_one", "iou", "ioa", "why"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], False, 1, 1, "itself"),
        ([0, 0, 2, 2], [2, 0, 4, 2], False, 0, 0, "touching edges share nothing"),
        ([0, 0, 1, 1], [1, 0, 2, 1], True, 2 / 6, 2 / 4, "plus one: they share a pixel column"),
        ([0, 0, 4, 2], [2, 0, 6, 2], False, 4 / 12, 4 / 8, "half over half"),
        ([1, 1, 2, 2], [0, 0, 4, 4], False, 1 / 16, 1, "inside"),
        ([1, 1, 1, 1], [1, 1, 1, 1], False, 0, 0, "no area, no NaN"),
        ([3, 0, 1, 2], [0, 0, 4, 4], False, 0, 0, "turned round"),
    ],
)
def test_overlap_table(a: list, b: list, plus_one: bool, iou: float, ioa: float, why: str) -> None:
    x, y = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    assert pairwise_iou(x, y, plus_one=plus_one).item() == pytest.approx(iou), why
    assert pairwise_ioa(x, y, plus_one=plus_one).item() == pytest.approx(ioa), why


@pytest.mark.parametrize("one", [0, 1])
def test_overlap_equals_a_loop(one: int) -> None:
    a, b = random_boxes(13, 0), random_boxes(7, 1)
    iou, ioa = pairwise_iou(a, b, plus_one=bool(one)), pairwise_ioa(a, b, plus_one=bool(one))
    for (i, p), (j, q) in itertools.product(enumerate(a.tolist()), enumerate(b.tolist())):
        w = max(0, min(p[2], q[2]) - max(p[0], q[0]) + one)
        h = max(0, min(p[3], q[3]) - max(p[1], q[1]) + one)
        own, other = ((r[2] - r[0] + one) * (r[3] - r[1] + one) for r in (p, q))
        assert iou[i, j].item() == pytest.approx(w * h / (own + other - w * h), abs=1e-6)
        assert ioa[i, j].item() == pytest.approx(w * h / own, abs=1e-6)
    assert pairwise_iou(a, b[:0]).shape == (13, 0)
    assert box_areas(a[:0]).shape == (0,)


@pytest.mark.parametrize("plus_one", [False, True])
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(0, 10_000))
def test_decoding_inverts_encoding(plus_one: bool, n: int, seed: int) -> None:
    references, targets = random_boxes(n, seed), random_boxes(n, seed + 1)
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = encode_boxes(references, targets, weights, plus_one=plus_one)
    back = decode_boxes(deltas, references, weights, max_log_scale=math.inf, plus_one=plus_one)
    torch.testing.assert_close(back, targets, rtol=1e-4, atol=1e-3)
    zero = decode_boxes(torch.zeros(n, 12), references, weights, plus_one=plus_one)
    torch.testing.assert_close(zero, references.repeat(1, 3), rtol=1e-5, atol=1e-4)


def test_scale_is_bounded() -> None:
    reference = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    wild = torch.tensor([[0.0, 0.0, 100.0, -100.0]])
    grown = decode_boxes(wild, reference)
    assert (grown[0, 2] - grown[0, 0]).item() == pytest.approx(625, rel=1e-5)
    assert (grown[0, 3] - grown[0, 1]).item() == 0
    both = decode_boxes(wild, reference, clamp_both=True)
    assert (both[0, 3] - both[0, 1]).item() == pytest.approx(0.16, rel=1e-3)
    half = decode_boxes(wild.half(), reference)
    assert half.dtype == torch.float32
    assert half.isfinite().all()


def test_clipping() -> None:
    boxes = torch.tensor([[-3.0, -4.0, 50.0, 60.0, 2.0, 3.0, 4.0, 5.0]])
    assert clip_boxes(boxes, (20, 30)).tolist() == [[0, 0, 30, 20, 2, 3, 4, 5]]
    assert clip_boxes(boxes, (20, 30), plus_one=True).tolist() == [[0, 0, 29, 19, 2, 3, 4, 5]]


def test_gradients() -> None:
    a, b = random_boxes(3, 5).double().requires_grad_(), random_boxes(3, 6).double()
    assert gradcheck(lambda x: pairwise_iou(x, b), a)
    deltas = (encode_boxes(a.detach(), b) / 10).requires_grad_()
    assert gradcheck(lambda d: decode_boxes(d, a.detach()), deltas)


@pytest.mark.parametrize("path", fixture_params("instance", "ops_box_coding*"))
def test_parity(path: object) -> None:
    fixture = load_fixture(path)
    reference, target = fixture.tensor("reference"), fixture.tensor("target")
    deltas = fixture.tensor("deltas")
    for name, weights in (("w10", (10.0, 10.0, 5.0, 5.0)), ("w1", (1.0, 1.0, 1.0, 1.0))):
        fixture.compare(f"encode_{name}", encode_boxes(reference, target, weights), rtol=1e-5)
        fixture.compare(f"decode_{name}", decode_boxes(deltas, reference, weights), rtol=1e-5)
    mm = decode_boxes(deltas, reference, (10.0, 10.0, 5.0, 5.0), clamp_both=True)
    words = fixture.meta["configuration"]["mmdet_decode_clipped"].split()
    size = int(words[words.index("height") + 1]), int(words[words.index("width") + 1])
    fixture.compare("mmdet_decode_clipped", clip_boxes(mm, size), rtol=1e-5)
    # Upstream computes this one in float64; differences of centres cancel in float32.
    exact = encode_boxes(reference.double(), target.double(), plus_one=True)
    fixture.compare("plus_one_encode", exact, rtol=1e-6)
    fixture.compare("plus_one_encode", encode_boxes(reference, target, plus_one=True), rtol=1e-4)
    small = decode_boxes(deltas[:, :4] * 0.1, reference, max_log_scale=math.inf, plus_one=True)
    fixture.compare("plus_one_decode_small", small, rtol=1e-5)
