"""Suppression by masks: equal to slow loops, and the properties that their papers state."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixelwise.ops import suppress
from pixelwise.ops.suppress import mask_nms, matrix_nms, pairwise_mask_iou, point_nms


def crowd(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rectangles on 12 x 15 pixels, some of them twice; scores with ties; three classes."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(n, 12, 15, dtype=torch.bool)
    for i in range(n):
        y, x = (int(torch.randint(0, side, (), generator=g)) for side in (9, 11))
        h, w = (int(torch.randint(1, side, (), generator=g)) for side in (7, 9))
        masks[i, y : y + h, x : x + w] = True
        if i and torch.rand((), generator=g) < 0.2:
            masks[i] = masks[i - 1]
    scores = (1 + torch.randint(0, max(2, n), (n,), generator=g)) / (n + 1)
    return masks.flatten(1), torch.randint(0, 3, (n,), generator=g), scores


def iou(a: Tensor, b: Tensor) -> float:
    return (a & b).sum().item() / max(1, (a | b).sum().item())


def ranked(scores: Tensor) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))


def slow_matrix_nms(masks: Tensor, labels: Tensor, scores: Tensor, kernel: str) -> list[float]:
    """Equation by equation, in float64; a rival that is an exact copy of a better mask is skipped
    in the linear form, where its own factor would be infinite."""
    order, result = ranked(scores), scores.double().tolist()
    for place, j in enumerate(order):
        factor = 1.0
        for nth, i in enumerate(order[:place]):
            if labels[i] != labels[j]:
                continue
            better = [k for k in order[:nth] if labels[k] == labels[i]]
            covered = max((iou(masks[k], masks[i]) for k in better), default=0.0)
            overlap = iou(masks[i], masks[j])
            if kernel == "gaussian":
                factor = min(factor, math.exp(-2 * overlap**2) / math.exp(-2 * covered**2))
            elif covered < 1:
                factor = min(factor, (1 - overlap) / (1 - covered))
        result[j] *= factor
    return result


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 14), st.integers(0, 10_000), st.sampled_from(["gaussian", "linear"]))
def test_matrix_nms_equals_a_loop(n: int, seed: int, kernel: str) -> None:
    masks, labels, scores = crowd(n, seed)
    ours = matrix_nms(masks, labels, scores, kernel=kernel)
    wanted = torch.tensor(slow_matrix_nms(masks, labels, scores, kernel), dtype=scores.dtype)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 14), st.integers(0, 10_000), st.sampled_from(["gaussian", "linear"]))
def test_matrix_nms_keeps_its_promises(n: int, seed: int, kernel: str) -> None:
    masks, labels, scores = crowd(n, seed)
    ours = matrix_nms(masks, labels, scores, kernel=kernel)
    assert torch.isfinite(ours).all()
    assert (ours <= scores).all()
    for label in labels.unique():
        best = max((i for i in range(n) if labels[i] == label), key=lambda i: (scores[i], -i))
        assert ours[best] == scores[best]
        alone = labels == label  # other labels never interact
        separate = matrix_nms(masks[alone], labels[alone], scores[alone], kernel=kernel)
        torch.testing.assert_close(ours[alone], separate)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matrix_nms_of_disjoint_masks_changes_nothing(kernel: str) -> None:
    masks, scores = torch.eye(5, dtype=torch.bool), torch.tensor([0.9, 0.5, 0.7, 0.1, 0.3])
    same = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(matrix_nms(masks, same, scores, kernel=kernel), scores)


def test_three_equal_masks_are_no_zero_by_zero() -> None:
    """The linear form of the released code is 0 / 0 here."""
    masks, same = torch.ones(3, 6, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    ours = matrix_nms(masks, same, torch.tensor([0.9, 0.8, 0.7]), kernel="linear")
    torch.testing.assert_close(ours, torch.tensor([0.9, 0.0, 0.0]))


def test_sigma_multiplies() -> None:
    masks = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)  # IoU 1/2
    same, scores = torch.zeros(2, dtype=torch.int64), torch.tensor([0.9, 0.8])
    ours = matrix_nms(masks, same, scores, sigma=3.0)
    assert ours[1].item() == pytest.approx(0.8 * math.exp(-3 / 4))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 14), st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8]))
def test_mask_nms_equals_a_loop(n: int, seed: int, thresh: float) -> None:
    masks, labels, scores = crowd(n, seed)
    kept: list[int] = []
    for i in ranked(scores):
        if all(labels[i] != labels[j] or iou(masks[i], masks[j]) <= thresh for j in kept):
            kept.append(i)
    ours = mask_nms(masks, labels, scores, iou_thresh=thresh)
    assert ours.nonzero()[:, 0].tolist() == sorted(kept)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 14), st.integers(0, 10_000))
def test_a_gpu_compares_all_labels_at_once_with_the_same_result(n: int, seed: int) -> None:
    masks, labels, scores = crowd(n, seed)

    def run() -> list[Tensor]:
        soft = [matrix_nms(masks, labels, scores, kernel=k) for k in ("gaussian", "linear")]
        return [*soft, mask_nms(masks, labels, scores, iou_thresh=0.5)]

    wanted = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suppress, "_on_gpu", lambda _: True)
        if n:
            patch.setattr(suppress, "_group_sizes", None)  # the way of the CPU
        assert all(torch.equal(a, b) for a, b in zip(run(), wanted, strict=True))


def test_what_is_removed_removes_nothing() -> None:
    """Greedy: the middle one falls, so the last one, which only the middle one overlaps, stays."""
    masks = torch.zeros(3, 8, dtype=torch.bool)
    for i in range(3):
        masks[i, i : i + 4] = True  # neighbours 3/5, first and last 2/6
    same = torch.zeros(3, dtype=torch.int64)
    keep = mask_nms(masks, same, torch.tensor([0.9, 0.8, 0.7]), iou_thresh=0.5)
    assert keep.tolist() == [True, False, True]


def test_mask_iou_is_the_same_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, _, _ = crowd(9, 4)
    masks[3] = False
    whole = pairwise_mask_iou(masks)
    for i in range(9):
        for j in range(9):
            assert whole[i, j].item() == pytest.approx(iou(masks[i], masks[j]))
    monkeypatch.setattr(suppress, "_PAIR_CHUNK", 20)
    assert torch.equal(pairwise_mask_iou(masks), whole)


@pytest.mark.parametrize(
    ("row", "kept", "why"),
    [
        ([1, 3, 2, 0], [1, 3, 0, 0], "a rise to the right stays, a fall does not"),
        ([2, 2, 1, 1], [2, 2, 0, 1], "equal neighbours both stay"),
        ([0, 0, 5, 4], [0, 0, 5, 0], "the right side of a peak goes"),
    ],
)
def test_points_are_compared_with_left_and_upper_neighbours(
    row: list[float], kept: list[float], why: str
) -> None:
    values = torch.tensor([[[row]]], dtype=torch.float32)
    assert point_nms(values)[0, 0, 0].tolist() == kept, why
    assert point_nms(values.transpose(2, 3))[0, 0, :, 0].tolist() == kept, why


def test_the_upper_left_neighbour_counts_and_the_upper_right_does_not() -> None:
    falling = torch.tensor([[[[3.0, 0.0], [0.0, 2.0]]]])
    assert point_nms(falling)[0, 0].tolist() == [[3, 0], [0, 0]]
    rising = torch.tensor([[[[0.0, 3.0], [2.0, 0.0]]]])
    assert point_nms(rising)[0, 0].tolist() == [[0, 3], [2, 0]]
