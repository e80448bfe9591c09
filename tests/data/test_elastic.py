import numpy as np
import pytest
import torch

from pixelwise.data.elastic import deform, sources
from pixelwise.data.geometry import Geometry
from pixelwise.data.scene import Scene, place
from pixelwise.data.transforms import TrainTransform
from pixelwise.ops.rle import dense_crops
from pixelwise.spec import AugmentSpec, InputSpec
from tests.data.pictures import FLAT, squares

BOXES = [(20, 30, 60, 70), (0, 0, 25, 20), (70, 60, 100, 90)]


def scene(boxes=BOXES, size=(90, 100)) -> Scene:
    sample = squares(size, boxes)
    return place(sample, Geometry.resize(size, size), channels=3)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_no_deviation_changes_nothing() -> None:
    before = scene()
    after = deform(before, 0.0, rng())
    assert torch.equal(after.image, before.image)
    assert np.array_equal(after.labels, before.labels)
    assert torch.equal(after.objects.masks.pixels, before.objects.masks.pixels)
    assert torch.equal(after.objects.boxes, before.objects.boxes)


@pytest.mark.parametrize("seed", range(4))
def test_picture_labels_and_masks_stay_together(seed: int) -> None:
    before = scene()
    after = deform(before, 8.0, rng(seed))
    assert not torch.equal(after.image, before.image)
    masks = dense_crops(after.objects.masks).numpy()
    for mask, label in zip(masks, after.objects.labels.tolist(), strict=True):
        # The class is the colour's channel: bright under the mask, but for the blended outline.
        inside = after.image[label].numpy()[mask.astype(bool)]
        assert (inside > 130).mean() > 0.95
        assert (after.labels[mask.astype(bool)] == label + 1).all()
    assert masks.any(0).sum() == np.count_nonzero(after.labels)


def test_boxes_are_those_of_the_masks() -> None:
    after = deform(scene(), 8.0, rng(3))
    for box, mask in zip(
        after.objects.boxes.tolist(), dense_crops(after.objects.masks), strict=True
    ):
        y, x = mask.numpy().nonzero()
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_displacements_have_the_stated_deviation_at_the_control_points() -> None:
    """Corners of the picture are control points: bicubic interpolation goes through them."""
    corners = []
    for seed in range(300):
        y, x = sources((41, 61), 10.0, rng(seed))
        corners += [
            float(y[0, 0]),
            float(y[-1, 0]) - 40,
            float(x[0, -1]) - 60,
            float(x[20, 30]) - 30,
        ]
    assert np.std(corners) == pytest.approx(10.0, rel=0.05)
    assert np.mean(corners) == pytest.approx(0.0, abs=1.0)


def test_the_field_is_smooth() -> None:
    y, x = sources((200, 300), 10.0, rng(1))
    for field in (y - torch.arange(200)[:, None], x - torch.arange(300)):
        assert field.diff(dim=0).abs().max() < 1.0
        assert field.diff(dim=1).abs().max() < 1.0


def test_what_comes_from_beyond_the_border_is_mirrored() -> None:
    """Image and labels agree there too: a picture of one class stays of one class."""
    whole = scene([(0, 0, 100, 90)])
    after = deform(whole, 20.0, rng(5))
    assert (after.labels == 1).all()
    assert (after.image[0] == whole.image[0, 0, 0]).all()


def test_training_deforms_only_where_asked() -> None:
    sample = squares((90, 100), BOXES)
    plain = TrainTransform(InputSpec(), AugmentSpec(**FLAT), "semantic")(sample, rng())
    bent = TrainTransform(InputSpec(), AugmentSpec(**FLAT, elastic=10.0), "semantic")(sample, rng())
    assert bent.size == plain.size
    assert not torch.equal(bent.target.labels, plain.target.labels)
    assert set(bent.target.labels.unique().tolist()) <= {0, 1, 2, 3}
