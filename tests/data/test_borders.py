from dataclasses import replace

import numpy as np
import pytest
import torch

from pixelwise import data
from pixelwise.data.borders import number_objects, weigh_borders
from pixelwise.data.geometry import Geometry
from pixelwise.data.sample import Sample
from pixelwise.data.scene import Scene, place
from pixelwise.data.transforms import TrainTransform
from pixelwise.errors import DataError
from pixelwise.ops.border_weights import border_weights
from pixelwise.spec import AugmentSpec, InputSpec, ResizeRule
from pixelwise.types import IGNORE, SemanticTarget
from tests.data.made_up import write_coco
from tests.data.pictures import FLAT, squares

PLAIN = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0, resize=ResizeRule(pad_divisor=16))


def one_class(*boxes: tuple[int, int, int, int], crowd: tuple[int, ...] = ()) -> Sample:
    """Rectangles of class 1 on background 0, 30 x 40."""
    drawn = squares((30, 40), boxes, crowd=crowd)
    assert drawn.labels is not None
    return replace(drawn, labels=(drawn.labels > 0).astype(np.uint8))


def scene_of(sample: Sample) -> Scene:
    return place(sample, Geometry.resize(sample.size, sample.size), channels=3)


def test_the_smaller_object_is_on_top_and_crowds_are_nobody() -> None:
    sample = one_class((2, 2, 8, 8), (0, 0, 20, 20), (30, 0, 40, 10), crowd=(2,))
    scene = scene_of(sample)
    assert scene.objects is not None
    numbers = number_objects(scene.objects, scene.size)
    assert numbers[4, 4] == 1
    assert numbers[15, 15] == 2
    assert (numbers[:, 30:] == 0).all()


def test_touching_objects_are_parted_and_the_gap_weighs_most() -> None:
    scene = scene_of(one_class((5, 5, 15, 25), (15, 5, 25, 25)))
    labels, weights = weigh_borders(scene, peak=10.0, sigma_px=5.0, background=0)
    assert scene.labels is not None
    changed = (labels != scene.labels).nonzero()
    assert set(changed[1].tolist()) == {14, 15}
    assert (labels[5:25, [14, 15]] == 0).all()
    # One pixel from the nearer object and two from the other.
    assert weights[15, 14] == pytest.approx(1 + 10 * np.exp(-((1 + 2) ** 2) / 50), rel=1e-5)
    assert weights.max() == weights[15, 14]
    assert weights[15, 10] == 1
    assert weights[0, 39] == pytest.approx(1, abs=0.01)


def test_without_a_background_class_labels_stay() -> None:
    scene = scene_of(one_class((5, 5, 15, 25), (15, 5, 25, 25)))
    labels, weights = weigh_borders(scene, peak=10.0, sigma_px=5.0, background=None)
    assert labels is scene.labels
    assert weights.max() > 5


def test_ignored_pixels_stay_ignored() -> None:
    sample = one_class((5, 5, 15, 25), (15, 5, 25, 25))
    assert sample.labels is not None
    sample.labels[5:10] = IGNORE
    labels, _ = weigh_borders(scene_of(sample), peak=10.0, sigma_px=5.0, background=0)
    assert (labels[5:10] == IGNORE).all()
    assert (labels[10:25, 14] == 0).all()


def train(sample: Sample, **options) -> SemanticTarget:
    augment = AugmentSpec(**{**FLAT, **options})
    transform = TrainTransform(PLAIN, augment, "semantic", background=0)
    target = transform(sample, np.random.default_rng(0), lambda: sample).target
    assert isinstance(target, SemanticTarget)
    return target


def test_training_targets_carry_the_weights() -> None:
    sample = one_class((5, 5, 15, 25), (17, 5, 25, 25))
    assert train(sample).weights is None
    target = train(sample, border_weight=10.0, border_sigma_px=3.0)
    objects = np.zeros((30, 40), np.int32)
    objects[5:25, 5:15], objects[5:25, 17:25] = 1, 2
    expected = 1 + border_weights(objects, peak=10.0, sigma_px=3.0)
    assert target.weights is not None
    assert target.weights.shape == target.labels.shape == (32, 48)
    torch.testing.assert_close(target.weights[:30, :40], torch.from_numpy(expected))
    assert not target.weights[30:].any()


def test_weights_follow_the_crop_and_the_mosaic() -> None:
    """Wherever two objects are near, the weight is; it never lies on an object."""
    sample = one_class((5, 5, 15, 25), (17, 5, 25, 25))
    for options in ({"crop": (24, 24), "scale": (0.7, 1.5)}, {"crop": (40, 40), "mosaic": 1.0}):
        target = train(sample, border_weight=10.0, flip=1.0, **options)
        assert target.weights is not None
        assert (target.weights[target.labels == 1] == 1).all()
        assert target.weights.max() > 5


def test_the_semantic_view_gives_objects_where_asked(tmp_path) -> None:
    found = data.open(write_coco(tmp_path))
    assert found.as_semantic()[0].instances is None
    view = found.as_semantic(with_objects=True)
    instances = view[0].instances
    assert instances is not None
    assert len(instances) > 0
    assert view.background_label == view.classes.index("background")
    assert found.as_semantic(background=None).background_label is None


def test_labels_alone_have_no_borders(tmp_path) -> None:
    from tests.training_stand_ins import make_squares

    with pytest.raises(DataError, match="tells no objects apart"):
        data.open(make_squares(tmp_path)).as_semantic(with_objects=True)
