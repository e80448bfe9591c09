"""Panoptic quality: hand-made cases of every rule, and real annotations against themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelwise.errors import DataError, UsageError
from pixelwise.metrics.panoptic import PanopticQuality, Segment

COCO = Path(__file__).parents[3] / "shared/data/coco-mini/annotations"
CLASSES = ("cat", "dog", "sky")


def quality() -> PanopticQuality:
    return PanopticQuality(CLASSES, things=("cat", "dog"))


def row(*parts: tuple[int, int]) -> np.ndarray:
    """A one-row map: (id, pixels), one after another."""
    return np.concatenate([np.full(n, i) for i, n in parts])[None]


CAT, DOG, SKY = Segment(label=0), Segment(label=1), Segment(label=2)
CROWD = Segment(label=0, crowd=True)


@pytest.mark.parametrize(
    ("pred", "predicted", "gt", "annotated", "counts", "iou", "why"),
    [
        (row((1, 10)), {1: CAT}, row((5, 10)), {5: CAT}, (1, 0, 0), 1.0, "the same"),
        (row((1, 6), (0, 4)), {1: CAT}, row((5, 10)), {5: CAT}, (1, 0, 0), 0.6, "IoU 0.6"),
        (row((1, 5), (0, 5)), {1: CAT}, row((5, 10)), {5: CAT}, (0, 1, 1), 0, "0.5 is no match"),
        (row((1, 10)), {1: DOG}, row((5, 10)), {5: CAT}, (0, 0, 1), 0, "the wrong class"),
        (row((0, 10)), {}, row((5, 10)), {5: CAT}, (0, 0, 1), 0, "nothing predicted"),
        (row((1, 10)), {1: CAT}, row((5, 6), (0, 4)), {5: CAT}, (1, 0, 0), 1.0, "void left out"),
        (row((1, 10)), {1: CAT}, row((0, 6), (9, 4)), {9: SKY}, (0, 0, 0), 0, "mostly void"),
        (row((1, 10)), {1: CAT}, row((0, 5), (9, 5)), {9: SKY}, (0, 1, 0), 0, "half void is not"),
        (row((1, 10)), {1: CAT}, row((7, 6), (9, 4)), {7: CROWD, 9: SKY}, (0, 0, 0), 0, "crowd"),
        (row((0, 10)), {}, row((7, 10)), {7: CROWD}, (0, 0, 0), 0, "a missed crowd"),
        (row((1, 3), (2, 7)), {1: CAT, 2: CAT}, row((5, 10)), {5: CAT}, (1, 1, 0), 0.7, "split"),
    ],
)
def test_rules(pred, predicted, gt, annotated, counts, iou, why) -> None:
    metric = quality()
    metric.update(pred, predicted, truth=gt, annotated=annotated)
    assert tuple(metric.counts[0]) == counts, why
    assert metric.ious[0] == pytest.approx(iou), why


def test_a_crowd_of_another_class_excuses_nothing() -> None:
    metric = quality()
    gt, kinds = row((7, 10)), {7: CROWD}
    metric.update(row((1, 10)), {1: DOG}, truth=gt, annotated=kinds)
    assert tuple(metric.counts[1]) == (0, 1, 0)


def test_numbers_by_hand() -> None:
    """cat: IoU 0.8 and one missed; sky: IoU 1; dog: never there."""
    metric = quality()
    pred = row((1, 8), (0, 2), (0, 5), (3, 20))
    gt = row((5, 10), (6, 5), (9, 20))
    metric.update(pred, {1: CAT, 3: SKY}, truth=gt, annotated={5: CAT, 6: CAT, 9: SKY})
    result = metric.compute()
    np.testing.assert_allclose(result.pq, [0.8 / 1.5, np.nan, 1.0])
    np.testing.assert_allclose(result.sq, [0.8, np.nan, 1.0])
    np.testing.assert_allclose(result.rq, [1 / 1.5, np.nan, 1.0])
    np.testing.assert_allclose(result.pq, result.sq * result.rq)
    named = result.named()
    assert named["pq"] == pytest.approx((0.8 / 1.5 + 1) / 2)
    assert named["pq_things"] == pytest.approx(0.8 / 1.5)
    assert named["pq_stuff"] == 1.0
    assert result.per_class()[0]["false_negatives"] == 1


def test_shards() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 4, (2, 12, 12)).repeat(4, 1).repeat(4, 2) for _ in range(4)]
    kinds = {1: CAT, 2: DOG, 3: SKY}
    whole, one, other = quality(), quality(), quality()
    for n, (pred, gt) in enumerate(maps):
        for metric in (whole, one if n % 2 else other):
            metric.update(pred, kinds, truth=gt, annotated=kinds)
    np.testing.assert_array_equal(one.merge(other).counts, whole.counts)
    np.testing.assert_allclose(one.compute().pq, whole.compute().pq)


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="things horse"):
        PanopticQuality(CLASSES, things=("horse",))
    with pytest.raises(DataError, match=r"predicted segment ids \[4\]"):
        quality().update(row((4, 3)), {}, truth=row((0, 3)), annotated={})
    with pytest.raises(DataError, match="differ in size"):
        quality().update(row((0, 3)), {}, truth=row((0, 4)), annotated={})


@pytest.mark.skipif(not COCO.exists(), reason="needs ../shared/data/coco-mini")
def test_real_annotations_against_themselves() -> None:
    document = json.loads((COCO / "panoptic_train2017.json").read_text())
    categories = sorted(document["categories"], key=lambda c: c["id"])
    label = {c["id"]: i for i, c in enumerate(categories)}
    metric = PanopticQuality(
        [f"{c['id']} {c['name']}" for c in categories],
        things=[f"{c['id']} {c['name']}" for c in categories if c["isthing"]],
    )
    expected = 0
    for record in document["annotations"][:25]:
        rgb = np.array(Image.open(COCO / "panoptic_train2017" / record["file_name"]), np.int64)
        ids = rgb @ np.array([1, 256, 65536])
        kinds = {
            s["id"]: Segment(label=label[s["category_id"]], crowd=bool(s["iscrowd"]))
            for s in record["segments_info"]
        }
        plain = {i: Segment(label=s.label) for i, s in kinds.items()}
        metric.update(ids, plain, truth=ids, annotated=kinds)
        expected += sum(not s.crowd for s in kinds.values())
    assert metric.counts[:, 0].sum() == expected
    assert not metric.counts[:, 1:].any()
    assert metric.compute().named()["pq"] == 1.0
