"""Test-time augmentation: what is predicted, and how the answers are joined."""

import numpy as np
import pytest
import torch

from pixelwise.data.transforms import prepare_image
from pixelwise.ops import rle
from pixelwise.ops.resize import resize
from pixelwise.prediction.augmented import (
    Augmentation,
    as_augmentation,
    flip_instances,
    flip_masks,
    join_instances,
    join_semantic,
    versions,
)
from pixelwise.spec import InputSpec, ResizeRule
from pixelwise.types import InstancePrediction, SemanticPrediction
from tests.prediction_stand_ins import PLAIN, islands, scene, threshold


def prediction(masks: np.ndarray, scores: list[float], labels: list[int]) -> InstancePrediction:
    runs = rle.encode(masks)
    return InstancePrediction(
        boxes=torch.as_tensor(rle.tight_boxes(runs)),
        labels=torch.tensor(labels),
        scores=torch.tensor(scores),
        masks=runs,
    )


def box_mask(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((1, 40, 50), bool)
    mask[0, y1:y2, x1:x2] = True
    return mask


# --- versions -----------------------------------------------------------------------------------


def test_what_true_means() -> None:
    assert as_augmentation(None, "semantic") is as_augmentation(False, "semantic") is None
    semantic = as_augmentation(True, "semantic")
    assert semantic == Augmentation(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
    assert len(semantic) == 12
    assert len(as_augmentation(True, "instance")) == 6
    assert as_augmentation([0.5, 2], "semantic").scales == (0.5, 2)
    only = Augmentation(scales=(1.0,), flip=False)
    assert as_augmentation(only, "instance") is only


def test_versions_scale_what_the_rule_gives() -> None:
    spec = InputSpec(resize=ResizeRule(short_side=30, long_side=100, pad_divisor=16))
    made = list(versions(scene(), spec, Augmentation(scales=(0.5, 1.0))))
    assert [v.is_flipped for v in made] == [False, True, False, True]
    assert np.array_equal(made[1].image, scene()[:, ::-1])
    shapes = [prepare_image(v.image, v.input)[1] for v in made]
    assert [s.content for s in shapes] == [(15, 20), (15, 20), (30, 40), (30, 40)]
    assert [s.input for s in shapes] == [(16, 32), (16, 32), (32, 48), (32, 48)]
    assert {s.original for s in shapes} == {(60, 80)}


# --- semantic -----------------------------------------------------------------------------------


def test_semantic_average_equals_a_hand_made_one() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    result = threshold().predict(image, tta=(0.5, 1.0, 2.0), with_probs=True)
    total = torch.zeros(2, 24, 32)
    for scale in (0.5, 1.0, 2.0):
        for is_flipped in (False, True):
            pixels = image[:, ::-1] if is_flipped else image
            size = (round(24 * scale), round(32 * scale))
            spec = InputSpec(mean=PLAIN.mean, std=PLAIN.std, resize=ResizeRule(fixed=size))
            tensor, _ = prepare_image(np.ascontiguousarray(pixels), spec)
            bright = (tensor.mean(0) - 0.5) * 20
            logits = resize(torch.stack([-bright, bright])[None], (24, 32))[0]
            probs = logits.softmax(0)
            total += probs.flip(-1) if is_flipped else probs
    assert torch.allclose(result.semantic.probs, total / 6, atol=1e-5)
    assert torch.equal(result.semantic.labels, total.argmax(0).to(torch.uint8))


def test_one_version_changes_nothing() -> None:
    plain = threshold().predict(scene())
    same = threshold().predict(scene(), tta=Augmentation(scales=(1.0,), flip=False))
    assert torch.equal(plain.semantic.labels, same.semantic.labels)
    assert same.semantic.probs is None


def test_joining_outvotes_a_single_answer() -> None:
    sure = torch.tensor([0.9, 0.1])[:, None, None].expand(2, 1, 2)
    doubt = torch.tensor([[0.4, 0.0], [0.6, 1.0]])[:, None]  # [2, 1, 2]
    parts = [(SemanticPrediction(labels=p.argmax(0), probs=p), f) for p, f in
             ((sure, False), (doubt, True))]  # fmt: skip
    joined = join_semantic(iter(parts), with_probs=True)
    # Mirrored back, the doubtful answer is (0, 1) at the left pixel: 0.9 against 1.1.
    assert joined.labels.tolist() == [[1, 0]]
    assert torch.allclose(joined.probs[:, 0, 0], torch.tensor([0.45, 0.55]))


def test_tiles_with_augmentation_equal_augmented_tiles_of_a_constant() -> None:
    image = np.full((40, 60, 3), 200, np.uint8)
    result = threshold().predict(image, tta=(0.5, 1.0), tile=32)
    assert (result.semantic.labels == 1).all()


# --- instance -----------------------------------------------------------------------------------


def test_mirrored_objects_come_back_in_place() -> None:
    rng = np.random.default_rng(3)
    masks = rng.random((5, 40, 50)) > 0.8
    masks[2] = False  # an empty mask stays empty
    flipped = flip_masks(rle.encode(masks))
    assert np.array_equal(rle.decode(flipped), masks[:, :, ::-1])
    assert len(flip_masks(rle.encode(masks[:0]))) == 0
    found = prediction(box_mask(5, 3, 20, 9), [0.9], [0])
    there = flip_instances(found)
    assert there.boxes.tolist() == [[30, 3, 45, 9]]
    back = flip_instances(there)
    assert torch.equal(back.boxes, found.boxes)
    assert np.array_equal(rle.decode(back.masks), rle.decode(found.masks))


def test_windows_that_are_not_tight_are_mirrored_too() -> None:
    masks = rle.from_coco(rle.to_coco(rle.encode(box_mask(5, 3, 20, 9))))
    loose = type(masks)(
        masks.size, np.array([[0, 0, 50, 40]]),
        np.array([5 * 40 + 3, *([6, 34] * 14), 6, 50 * 40 - (19 * 40 + 9)], np.uint32),
        np.array([0, 31]),
    )  # fmt: skip
    assert np.array_equal(rle.decode(loose), box_mask(5, 3, 20, 9))
    assert np.array_equal(rle.decode(flip_masks(loose)), box_mask(5, 3, 20, 9)[:, :, ::-1])


def test_the_best_of_overlapping_objects_stays() -> None:
    one = prediction(np.concatenate([box_mask(5, 5, 25, 25), box_mask(30, 5, 45, 20)]),
                     [0.7, 0.6], [0, 0])  # fmt: skip
    other = prediction(np.concatenate([box_mask(6, 5, 26, 25), box_mask(31, 5, 46, 20)]),
                       [0.9, 0.5], [0, 1])  # fmt: skip
    joined = join_instances(iter([(one, False), (other, False)]))
    # The first pair is one object (IoU 0.9); the second differs in class, so both stay.
    assert joined.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    assert joined.boxes[0].tolist() == [6, 5, 26, 25]
    assert len(join_instances(iter([(one, False), (other, False)]), limit=1)) == 1


def test_the_same_object_seen_mirrored_is_one() -> None:
    found = prediction(box_mask(5, 5, 25, 25), [0.7], [0])
    mirrored = prediction(box_mask(25, 5, 45, 25), [0.8], [0])
    joined = join_instances(iter([(found, False), (mirrored, True)]))
    assert joined.boxes.tolist() == [[5, 5, 25, 25]]
    assert joined.scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("tile", [None, 48])
def test_objects_with_augmentation(tile: int | None) -> None:
    plain = islands().predict(scene())
    joined = islands().predict(scene(), tta=(1.0, 2.0), tile=tile, overlap=0.5)
    assert joined.instances.names == plain.instances.names
    assert torch.allclose(joined.instances.boxes, plain.instances.boxes, atol=1.0)


def test_augmentation_of_a_picture_without_objects() -> None:
    assert len(islands().predict(np.zeros((30, 30, 3), np.uint8), tta=True)) == 0
