"""Greedy NMS: equal to torchvision, to a loop, and to itself after export."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelwise.ops import suppress
from pixelwise.ops.boxes import pairwise_iou
from pixelwise.ops.suppress import (
    _fast_nms,
    classwise_nms,
    fast_nms,
    fast_nms_across_classes,
    greedy_nms,
    top_k_nms,
)
from tests.fixtures import fixture_params, load_fixture


def crowd(n: int, seed: int, extent: float = 60.0) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that overlap a lot, scores with ties, five groups."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * extent
    boxes = torch.cat([corner, corner + 5 + torch.rand(n, 2, generator=g) * extent / 2], 1)
    scores = torch.randint(0, max(2, n // 2), (n,), generator=g) / max(1, n)
    return boxes, scores, torch.randint(0, 5, (n,), generator=g)


def slow_nms(boxes: Tensor, scores: Tensor, groups: Tensor, thresh: float) -> list[bool]:
    iou = pairwise_iou(boxes, boxes)
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i))
    keep: list[int] = []
    for i in order:
        if all(groups[i] != groups[j] or iou[i, j] <= thresh for j in keep):
            keep.append(i)
    return [i in keep for i in range(len(boxes))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_equals_a_loop_and_torchvision(n: int, seed: int, thresh: float) -> None:
    boxes, scores, groups = crowd(n, seed)
    keep = greedy_nms(boxes, scores, groups, iou_thresh=thresh)
    assert keep.tolist() == slow_nms(boxes, scores, groups, thresh)
    alone = greedy_nms(boxes, scores, None, iou_thresh=thresh)
    theirs = torchvision.ops.nms(boxes, scores, thresh)
    assert alone.nonzero()[:, 0].tolist() == theirs.sort().values.tolist()


def tiles(n: int, seed: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes on a grid of 6 x 6: overlaps are fractions that meet thresholds, some boxes are equal,
    some empty, scores are of three values, most classes have few boxes and the first has many."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 4, (n, 2), generator=g)
    boxes = torch.cat([corner, corner + torch.randint(0, 4, (n, 2), generator=g)], 1).float()
    labels = torch.randint(0, classes, (n,), generator=g)
    labels[torch.rand(n, generator=g) < 0.3] = 0
    return boxes, torch.randint(0, 3, (n,), generator=g) / 2, labels


EXACT = st.sampled_from([0.0, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 1.0])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 60), st.integers(0, 10_000), EXACT, st.sampled_from([1, 2, 9, 50]))
def test_groups_of_any_size_equal_torchvision_group_by_group(
    n: int, seed: int, thresh: float, classes: int
) -> None:
    """To the bit where an overlap meets the threshold: 3/10 in float32 is above 0.3."""
    boxes, scores, groups = tiles(n, seed, classes)
    wanted = torch.zeros(n, dtype=torch.bool)
    for group in groups.unique():
        own = (groups == group).nonzero()[:, 0]
        wanted[own[torchvision.ops.nms(boxes[own], scores[own], thresh)]] = True
    with pytest.MonkeyPatch.context() as patch:
        for pairs in (0, 1 << 30):  # a call for every group; all groups at once
            patch.setattr(suppress, "_CALL_PAIRS", pairs)
            for chunk in (3, 1 << 14):
                patch.setattr(suppress, "_PAIR_CHUNK", chunk)
                assert torch.equal(greedy_nms(boxes, scores, groups, iou_thresh=thresh), wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 10_000), st.sampled_from([0.0, 0.31, 0.5, 0.7]))
def test_a_gpu_keeps_the_same_in_one_call(n: int, seed: int, thresh: float) -> None:
    """Far from the origin too, where moving groups apart in float32 would round."""
    boxes, scores, groups = crowd(n, seed)
    boxes = boxes + 30_000
    wanted = greedy_nms(boxes, scores, groups, iou_thresh=thresh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suppress, "_on_gpu", lambda _: True)
        patch.setattr(suppress, "_group_sizes", None)  # the way of the CPU
        if n:
            kept = greedy_nms(boxes, scores, groups * 1_000, iou_thresh=thresh)
            assert torch.equal(kept, wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([0.0, 0.31, 0.5]))
def test_fast_nms_of_a_gpu_is_that_of_the_cpu(n: int, seed: int, thresh: float) -> None:
    """Equal scores and places that remain empty included."""
    boxes, _, _ = crowd(n, seed)
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 6, (n, 4), generator=g) / 5
    for top_k, count in ((5, 12), (100, 1000)):
        options = {"iou_thresh": thresh, "top_k": top_k, "count": count}
        wanted = fast_nms(boxes, scores, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(suppress, "_on_gpu", lambda _: True)
            patch.setattr(suppress, "_candidates", None)  # the way of the CPU
            found = fast_nms(boxes, scores, **options)
        full = wanted[2] >= 0
        assert torch.equal(found[2], wanted[2])
        assert torch.equal(found[0][full], wanted[0][full])
        assert torch.equal(found[1][full], wanted[1][full])


def test_at_the_threshold_many_groups_do_as_one() -> None:
    """torchvision compares in float64, where the float32 overlap 3/10 is above 0.3."""
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert torchvision.ops.nms(boxes, scores, 0.3).tolist() == [0]
    groups = torch.tensor([4, 4])
    assert greedy_nms(boxes, scores, groups, iou_thresh=0.3).tolist() == [True, False]
    assert greedy_nms(boxes, scores, groups, iou_thresh=0.31).tolist() == [True, True]


def test_threshold_is_strict_and_ties_rank_by_position() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1], [0, 0, 2, 1]])  # IoU 1/3 and 1
    scores = torch.tensor([0.5, 0.5, 0.5])
    third = pairwise_iou(boxes[:1], boxes[1:2]).item()
    assert greedy_nms(boxes, scores, None, iou_thresh=third).tolist() == [True, True, False]
    assert greedy_nms(boxes, scores, None, iou_thresh=0.33).tolist() == [True, False, False]


def test_groups_never_mix_however_far_out() -> None:
    """Moving groups apart in float32 would round these boxes; here nothing moves."""
    boxes, scores, _ = crowd(60, 3)
    groups = torch.arange(60) % 3 * 1_000_000
    far = boxes + 30_000
    keep = greedy_nms(far, scores, groups, iou_thresh=0.5)
    assert keep.tolist() == slow_nms(far, scores, groups, 0.5)


@pytest.mark.parametrize("path", fixture_params("instance", "ops_nms*"))
def test_parity(path: object) -> None:
    fixture = load_fixture(path)
    boxes, scores = fixture.tensor("boxes"), fixture.tensor("scores")
    keys = [k for k in fixture.arrays if k.startswith(("nms_", "batched_"))]
    assert keys
    for key in keys:
        kind, digits = key.rsplit("_", 1)  # nms_3 is a threshold of 0.3, nms_35 of 0.35
        groups = fixture.tensor("labels") if kind == "batched" else None
        keep = greedy_nms(boxes, scores, groups, iou_thresh=float(f"0.{digits}"))
        assert keep.nonzero()[:, 0].tolist() == sorted(fixture.arrays[key].tolist()), key


class Suppress(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        keep = greedy_nms(boxes, scores, groups, iou_thresh=0.5)
        alone = greedy_nms(boxes, scores, None, iou_thresh=0.5)
        return torch.where(keep, scores, -1.0).topk(4).values, alone


def expected(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    return Suppress()(*inputs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_export(dynamic: bool) -> None:
    n = torch.export.Dim("n", min=4, max=500)
    shapes = ({0: n}, {0: n}, {0: n}) if dynamic else None
    program = torch.export.export(Suppress(), crowd(40, 0, 900.0), dynamic_shapes=shapes).module()
    for seed, count in enumerate((40, 73) if dynamic else (40, 40)):
        inputs = crowd(count, seed, 900.0)
        for ours, theirs in zip(program(*inputs), expected(inputs), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_onnx_export(dynamic: bool, tmp_path: object) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    n = torch.export.Dim("n", min=4, max=500)
    shapes = ({0: n}, {0: n}, {0: n}) if dynamic else None
    program = torch.onnx.export(
        Suppress().eval(), crowd(40, 0, 900.0), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    program.save(tmp_path / "nms.onnx")
    session = runtime.InferenceSession(tmp_path / "nms.onnx")
    for seed, count in enumerate((40, 73) if dynamic else (40, 40)):
        inputs = crowd(count, seed, 900.0)
        feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
        for ours, theirs in zip(session.run(None, feeds), expected(inputs), strict=True):
            assert torch.equal(torch.from_numpy(ours), theirs)


def test_classwise_suppression_by_hand():
    """Three boxes, two classes: overlap counts within a class only, and a threshold is reached."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]])
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.6], [0.5, 0.1]])
    limits = {"score_thresh": 0.3, "iou_thresh": 0.5}
    region, label, best = classwise_nms(boxes, scores, count=9, **limits)
    assert list(zip(region.tolist(), label.tolist(), strict=True)) == [(0, 0), (1, 1), (2, 0)]
    torch.testing.assert_close(best, torch.tensor([0.9, 0.6, 0.5]))
    assert classwise_nms(boxes, scores, count=2, **limits)[0].tolist() == [0, 1]
    nothing = classwise_nms(boxes[:0], scores[:0], count=2, **limits)
    assert [len(x) for x in nothing] == [0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.7]))
def test_fast_keeps_part_of_what_greedy_does(n: int, seed: int, thresh: float) -> None:
    """And it is its definition: nothing better of the class overlaps more than the threshold."""
    boxes, _, _ = crowd(n, seed)
    scores = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    how = {"iou_thresh": thresh, "top_k": n, "count": 3 * n}
    kept = {}
    for name, run in (("fast", fast_nms), ("greedy", top_k_nms)):
        where, labels, values = run(boxes, scores, **how)
        assert (values.diff() <= 0).all()
        stays = values >= 0
        kept[name] = set(zip(where[stays].tolist(), labels[stays].tolist(), strict=True))
    assert kept["fast"] <= kept["greedy"]
    iou = pairwise_iou(boxes, boxes)
    for k in range(3):
        for i in range(n):
            better = scores[:, k] > scores[i, k]
            assert ((i, k) in kept["fast"]) == (not (iou[i][better] > thresh).any())


def slow_table_nms(
    boxes: Tensor, scores: Tensor, *, iou_thresh: float, top_k: int, count: int, greedy: bool
) -> list[tuple[int, int, float]]:
    """(position, label, score) as the definitions of `fast_nms` and `top_k_nms` say, best first.

    As torchvision, greedy suppression compares in float64; the matrix form compares in float32.
    """
    iou, found = pairwise_iou(boxes, boxes), []
    rivals = (iou.double() if greedy else iou) > iou_thresh
    for k in range(scores.shape[1]):
        values = scores[:, k].tolist()
        ranked = sorted((i for i in range(len(boxes)) if values[i] >= 0), key=lambda i: -values[i])
        better: list[int] = []
        for i in ranked[:top_k]:
            stays = not any(rivals[j, i] for j in better)
            if stays:
                found.append((i, k, values[i]))
            if stays or not greedy:
                better.append(i)
    return sorted(found, key=lambda d: -d[2])[:count]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 10_000),
    EXACT,
    st.sampled_from([1, 4, 30]),
    st.sampled_from([1, 5, 200]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_tables_of_scores_equal_a_loop(
    n: int, seed: int, thresh: float, classes: int, top_k: int, share: float
) -> None:
    """Ties rank by position, then by class; candidates in one class, in some classes, in all."""
    boxes, _, labels = tiles(n, seed, classes)
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (n, classes), generator=g) / 4
    candidate = torch.rand(n, classes, generator=g) < share
    candidate[torch.arange(n), labels] = torch.rand(n, generator=g) < 0.9
    scores[~candidate] = -1.0
    how = {"iou_thresh": thresh, "top_k": top_k, "count": 25}
    places = min(25, classes * min(top_k, n))
    ways = [{}, {"_ALL_PAIRS": -1}, {"_FEW_CANDIDATES": 0}, {"_PAIR_CHUNK": 3, "_ALL_PAIRS": -1}]
    for run in (fast_nms, top_k_nms):
        wanted = slow_table_nms(boxes, scores, **how, greedy=run is top_k_nms)
        for way in ways:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in way.items():
                    patch.setattr(suppress, name, value)
                where, labels, values = run(boxes, scores, **how)
            ours = list(zip(where.tolist(), labels.tolist(), values.tolist(), strict=True))
            assert len(ours) == places
            assert ours[: len(wanted)] == wanted, (run, way)
            assert all(value == -1 for _, _, value in ours[len(wanted) :])


@pytest.mark.parametrize("run", [fast_nms, top_k_nms])
def test_half_precision_is_taken_and_kept(run) -> None:
    boxes, _, _ = crowd(12, 5)
    scores = torch.rand(12, 3, generator=torch.Generator().manual_seed(5)).bfloat16()
    how = {"iou_thresh": 0.5, "top_k": 9, "count": 20}
    half, whole = run(boxes, scores, **how), run(boxes, scores.float(), **how)
    assert half[2].dtype == torch.bfloat16
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(half, whole, strict=True))


@pytest.mark.parametrize("run", [fast_nms, top_k_nms])
def test_boxes_shared_by_all_classes_are_as_those_of_one_class_each(run) -> None:
    """Three hundred boxes in eighty classes, as a trained network scores them."""
    boxes, _, _ = crowd(300, 5, 400.0)
    scores = torch.rand(300, 80, generator=torch.Generator().manual_seed(5))
    how = {"iou_thresh": 0.5, "top_k": 50, "count": 10_000}
    where, labels, values = run(boxes, scores, **how)
    for k in (0, 41, 79):
        own = torch.full_like(scores, -1.0)
        own[:, k] = scores[:, k]
        alone, _, best = run(boxes, own, **how)
        assert where[(labels == k) & (values >= 0)].tolist() == alone[best >= 0].tolist()


def test_fast_ignores_negative_scores_and_fills_up() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    scores = torch.tensor([[-1.0, 0.2], [0.9, 0.3], [0.5, -1.0]])
    where, labels, values = fast_nms(boxes, scores, iou_thresh=0.5, top_k=3, count=6)
    assert values.tolist() == pytest.approx([0.9, 0.5, 0.3, -1, -1, -1])
    assert where[:3].tolist() == [1, 2, 1]
    assert labels[:3].tolist() == [0, 0, 1]


def test_across_classes_the_best_class_drops_the_others() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    scores = torch.tensor([[0.1, 0.8], [0.7, 0.2]])
    _, labels, values = fast_nms_across_classes(boxes, scores, iou_thresh=0.5, top_k=2, count=2)
    assert labels[0] == 1
    assert values.tolist() == pytest.approx([0.8, -1])


@pytest.mark.parametrize(("boxes", "places"), [(0, 0), (5, 4)])
def test_fast_nms_without_candidates_keeps_its_form(boxes: int, places: int) -> None:
    index, labels, scores = fast_nms(
        torch.rand(boxes, 4), torch.full((boxes, 3), -1.0), iou_thresh=0.5, top_k=5, count=4
    )
    assert [x.shape for x in (index, labels, scores)] == [(places,)] * 3
    assert index.dtype == labels.dtype == torch.int64
    assert (scores == -1).all()


@pytest.mark.parametrize("top_k", [40, 6])
def test_fast_nms_as_a_graph_compares_the_best_pairs_only(
    monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    """With many classes it leaves most pairs of box and class out, and finds the same."""
    boxes, _, _ = crowd(120, 5, 60.0)
    scores = torch.rand(120, 30, generator=torch.Generator().manual_seed(5))
    scores[scores < 0.5] = -1.0
    scores[:, 3] = 1 + torch.rand(120, generator=torch.Generator().manual_seed(6))
    sizes: list[int] = []

    def measured(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(a[..., 0].numel() * b.shape[-2])
        return pairwise_iou(a, b)

    monkeypatch.setattr(suppress, "pairwise_iou", measured)
    how = {"iou_thresh": 0.3, "top_k": top_k, "count": 15}
    graph = _fast_nms(boxes, scores, **how)
    assert sizes == [min(150**2, 30 * top_k**2)]
    wanted = slow_table_nms(boxes, scores, **how, greedy=False)
    assert len(wanted) == 15
    assert list(zip(*(x.tolist() for x in graph), strict=True)) == wanted


def test_fast_nms_of_few_classes_is_that_of_the_whole_table() -> None:
    """Classes without candidates take no part, however the compiler must treat them."""
    torch.manual_seed(0)
    corner = 20 * torch.rand(40, 2)
    boxes = torch.cat([corner, corner + 4 + 8 * torch.rand(40, 2)], dim=1)
    scores = torch.full((40, 9), -1.0)
    scores[:, 2], scores[:25, 7] = torch.rand(40), torch.rand(25)
    ours = fast_nms(boxes, scores, iou_thresh=0.4, top_k=30, count=60)
    whole = _fast_nms(boxes, scores, iou_thresh=0.4, top_k=30, count=60)
    valid = whole[2] >= 0
    assert torch.equal(ours[2], whole[2])
    for one, other in zip(ours, whole, strict=True):
        assert torch.equal(one[valid], other[valid])
