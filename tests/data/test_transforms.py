from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.data.sample import Instances, Sample
from pixelwise.data.transforms import (
    EvalTransform,
    Prepared,
    TrainTransform,
    pad_to,
    prepare_image,
    unprepare,
)
from pixelwise.errors import DataError, UsageError
from pixelwise.ops.rle import dense_crops
from pixelwise.spec import CAFFE_BGR, AugmentSpec, InputSpec, ResizeRule
from pixelwise.types import IGNORE, InstanceTarget, SemanticTarget
from tests.data.pictures import FLAT, PALETTE, Drawn, instances, squares

PLAIN = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0)


def objects(prepared: Prepared) -> InstanceTarget:
    assert isinstance(prepared.target, InstanceTarget)
    return prepared.target


def labels(prepared: Prepared) -> torch.Tensor:
    assert isinstance(prepared.target, SemanticTarget)
    return prepared.target.labels


def test_prepare_image_resizes_normalises_and_pads() -> None:
    spec = InputSpec(resize=ResizeRule(short_side=20, pad_divisor=16))
    image = np.full((30, 45, 3), 128, np.uint8)
    tensor, size = prepare_image(image, spec)
    assert (size.original, size.content, size.input) == ((30, 45), (20, 30), (32, 32))
    assert tensor.shape == (3, 32, 32)
    assert tensor.dtype == torch.float32
    expected = [(128 / 255 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]
    assert tensor[:, 7, 9].tolist() == pytest.approx(expected, abs=1e-5)
    assert (tensor[:, 20:] == 0).all()
    assert (tensor[:, :, 30:] == 0).all()


def test_padding_never_cuts() -> None:
    image = torch.ones(3, 4, 6)
    assert pad_to(image, (4, 6)) is image
    assert pad_to(image, (5, 8), value=7.0)[0].tolist()[4] == [7.0] * 8
    with pytest.raises(UsageError, match="4x6 does not fit into 5x5"):
        pad_to(image, (5, 5))


def test_prepare_image_ends_on_the_device() -> None:
    spec = InputSpec(resize=ResizeRule(short_side=20, pad_divisor=16))
    image = np.full((30, 45, 3), 128, np.uint8)
    tensor, size = prepare_image(image, spec, device="meta")
    assert (tensor.device.type, tensor.dtype) == ("meta", torch.float32)
    assert tensor.shape == (3, *size.input) == (3, 32, 32)


@pytest.mark.parametrize("spec", [InputSpec(), CAFFE_BGR], ids=["rgb", "bgr"])
def test_unprepare_gives_the_picture_back(spec: InputSpec) -> None:
    image = np.random.default_rng(0).integers(0, 256, (21, 33, 3)).astype(np.uint8)
    padded = replace(spec, resize=ResizeRule(pad_divisor=32))
    tensor, size = prepare_image(image, padded)
    assert np.array_equal(unprepare(tensor, padded, size), image)
    assert unprepare(tensor, padded).shape == (32, 64, 3)


def test_channel_order_is_the_weights() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0] = 200  # red
    tensor, _ = prepare_image(image, CAFFE_BGR)
    assert tensor[:, 0, 0].tolist() == pytest.approx([-103.530, -116.280, 200 - 123.675])


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (np.full((4, 5), 7, np.uint8), 3, [7, 7, 7]),
        (np.full((4, 5, 1), 7, np.uint8), 3, [7, 7, 7]),
        (np.full((4, 5, 4), 7, np.uint8), 3, [7, 7, 7]),
        (np.full((4, 5, 3), [255, 0, 0], np.uint8), 1, [76]),
        (np.full((4, 5, 6), 9, np.uint8), 6, [9] * 6),
        (np.full((4, 5), 65535, np.uint16), 1, [255]),
        (np.full((4, 5, 3), 0.5, np.float32), 3, [128] * 3),
    ],
    ids=["grey", "grey channel", "alpha", "to grey", "six", "16 bit", "float"],
)
def test_any_channels_and_type(image: np.ndarray, channels: int, expected: list[int]) -> None:
    spec = InputSpec(mean=(0.0,) * channels, std=(1.0,) * channels, scale=1.0)
    tensor, _ = prepare_image(image, spec)
    assert tensor[:, 0, 0].tolist() == expected


def test_channels_that_cannot_be_brought_together_are_an_error() -> None:
    with pytest.raises(DataError, match="5 channels, the model takes 3"):
        prepare_image(np.zeros((4, 4, 5), np.uint8), InputSpec())


def test_read_only_pictures_are_left_alone() -> None:
    image = np.full((6, 6, 3), 50, np.uint8)
    image.flags.writeable = False
    tensor, _ = prepare_image(image, InputSpec())
    tensor.zero_()
    assert (image == 50).all()


def test_evaluation_moves_targets_with_the_picture() -> None:
    spec = replace(PLAIN, resize=ResizeRule(fixed=(80, 100), pad_divisor=32))
    sample = squares((40, 50), [(5, 10, 15, 20), (0, 0, 4, 4)], crowd=[1], index=3)
    found = EvalTransform(spec, "instance")(sample)
    assert (found.size.content, found.size.input, found.index) == ((80, 100), (96, 128), 3)
    target = objects(found)
    assert target.size == (80, 100)
    assert target.boxes.tolist() == [[10, 20, 30, 40], [0, 0, 8, 8]]
    assert target.crowd.tolist() == [False, True]
    semantic = labels(EvalTransform(spec, "semantic")(sample))
    assert semantic.shape == (96, 128)
    assert semantic.dtype == torch.int64
    assert semantic[30, 20] == 1
    assert (semantic[80:] == IGNORE).all()
    assert (semantic[:, 100:] == IGNORE).all()
    bare = replace(sample, labels=None, instances=None)
    assert EvalTransform(spec, "semantic")(bare).target is None


augments = st.builds(
    AugmentSpec,
    crop=st.sampled_from([None, (24, 32), (37, 29), (64, 64)]),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.3, 0.4)]),
    flip=st.just(0.5),
    vertical_flip=st.just(0.5),
    color=st.just(0.0),
    copy_paste=st.sampled_from([0.0, 1.0]),
    mosaic=st.sampled_from([0.0, 0.5]),
)


@given(augment=augments, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_training_pictures_and_targets_stay_together(augment: AugmentSpec, seed: int) -> None:
    """Every object and label lies on its colour, whatever was done; all sizes agree."""
    view, rng = Drawn(), np.random.default_rng(seed)
    spec = replace(PLAIN, resize=ResizeRule(pad_divisor=8))
    for task in ("semantic", "instance"):
        transform = TrainTransform(spec, augment, task)
        found = transform(view[seed % 10], rng, lambda: view[int(rng.integers(10))])
        height, width = found.size.content
        assert found.image.shape[1:] == found.size.input
        assert found.size.input[0] % 8 == found.size.input[1] % 8 == 0
        assert (found.image[:, height:] == 0).all()
        assert (found.image[:, :, width:] == 0).all()
        class_map = seen_classes(found.image)[:height, :width]
        brightest = found.image.amax(0).numpy()  # 40 on the ground, 230 on objects
        if task == "semantic":
            known = labels(found)
            assert known.shape == found.size.input
            assert (known[height:] == IGNORE).all()
            check_share((class_map == known[:height, :width].numpy()).mean())
        else:
            target = objects(found)
            assert target.size == (height, width)
            check_objects(target)
            for mask, label in zip(dense_crops(target.masks).numpy(), target.labels, strict=True):
                # Squares may lie over each other: what is seen there is no ground at least.
                assert (brightest[:height, :width][without_outline(mask)] > 100).all(), label


def without_outline(mask: np.ndarray) -> np.ndarray:
    """The pixels whose eight neighbours belong to the mask too: their colour is not blended."""
    inner = np.pad(mask, 1).astype(bool)
    for axis in (0, 1):
        inner &= np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
    return inner[1:-1, 1:-1]


def seen_classes(image: torch.Tensor) -> np.ndarray:
    """[h, w] the palette's nearest entry."""
    pixels = image.permute(1, 2, 0).numpy()[:, :, None]
    return ((pixels - PALETTE.astype(float)) ** 2).sum(-1).argmin(-1)


def check_share(agreement: float) -> None:
    assert agreement >= 0.9, agreement  # outlines are blended, so some pixels are between classes


def check_objects(target: InstanceTarget) -> None:
    dense = dense_crops(target.masks).numpy()
    assert len(target.boxes) == len(target.labels) == len(target.crowd) == len(dense)
    for box, mask in zip(target.boxes.tolist(), dense, strict=True):
        y, x = mask.nonzero()
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_the_same_generator_gives_the_same_picture() -> None:
    augment = AugmentSpec(
        crop=(32, 32), color=0.5, blur=0.5, copy_paste=0.5, mosaic=0.5, vertical_flip=0.5
    )
    transform, view = TrainTransform(InputSpec(), augment, "instance"), Drawn()

    def once(seed: int) -> Prepared:
        rng = np.random.default_rng(seed)
        return transform(view[1], rng, lambda: view[int(rng.integers(10))])

    for seed in range(6):
        first, again = once(seed), once(seed)
        assert torch.equal(first.image, again.image)
        assert torch.equal(objects(first).masks.pixels, objects(again).masks.pixels)
    assert not torch.equal(once(0).image, once(1).image)


def test_a_semantic_crop_avoids_a_single_class() -> None:
    sample = squares((100, 100), [(30, 30, 60, 60)])
    augment = AugmentSpec(crop=(30, 30), max_class_frac=0.95, **FLAT)
    transform = TrainTransform(PLAIN, augment, "semantic")
    loose = TrainTransform(PLAIN, replace(augment, max_class_frac=1.0), "semantic")
    rng = np.random.default_rng(0)
    mixed = [len(labels(transform(sample, rng)).unique()) > 1 for _ in range(40)]
    unchecked = [len(labels(loose(sample, rng)).unique()) > 1 for _ in range(40)]
    assert np.mean(mixed) >= 0.95  # ten draws, of which each succeeds by about 0.5
    assert np.mean(unchecked) <= 0.8


@given(seed=st.integers(0, 10_000), where=st.tuples(st.integers(0, 190), st.integers(0, 190)))
@settings(deadline=None, max_examples=40)
def test_an_instance_crop_shows_an_object_if_there_is_one(
    seed: int, where: tuple[int, int]
) -> None:
    x, y = where
    sample = squares((200, 200), [(x, y, x + 8, y + 8), (90, 90, 110, 110)], crowd=[1])
    augment = AugmentSpec(crop=(16, 16), scale=(0.5, 3.0), vertical_flip=0.5)
    found = TrainTransform(PLAIN, augment, "instance")(sample, np.random.default_rng(seed))
    assert (~objects(found).crowd).any()


def test_a_hollow_object_is_found_by_its_pixels() -> None:
    """Its box fills the picture, but a small crop rarely meets the one-pixel outline."""
    ring = np.ones((1, 120, 120), np.uint8)
    ring[0, 1:-1, 1:-1] = 0
    sample = replace(squares((120, 120), []), instances=instances(ring, [0], [False]))
    augment = AugmentSpec(crop=(10, 10), min_visible_frac=0.0, **FLAT)
    transform = TrainTransform(PLAIN, augment, "instance")
    for seed in range(20):
        assert len(objects(transform(sample, np.random.default_rng(seed)))) == 1


def test_objects_cut_too_far_are_left_out_and_crowds_stay() -> None:
    boxes = [(0, 0, 10, 10), (18, 0, 38, 10), (19, 12, 39, 22)]
    sample = squares((30, 20), [])
    wide = squares((30, 60), boxes, crowd=[2])
    augment = AugmentSpec(crop=(30, 20), min_visible_frac=0.15, **FLAT)
    transform = TrainTransform(PLAIN, augment, "instance")
    for seed in range(300):
        found = transform(wide, np.random.default_rng(seed))
        if objects(found).labels.tolist() == [0, 2] and objects(found).boxes[0, 2] == 10:
            # The window begins at the left border: 10 % of the second is inside, 5 % of the crowd.
            assert objects(found).boxes.tolist() == [[0, 0, 10, 10], [19, 12, 20, 22]]
            assert objects(found).crowd.tolist() == [False, True]
            break
    else:
        pytest.fail("the left border was never drawn")
    assert len(objects(transform(sample, np.random.default_rng(0)))) == 0


def test_pictures_without_objects_or_annotation_pass() -> None:
    empty = squares((30, 30), [])
    found = TrainTransform(PLAIN, AugmentSpec(crop=(16, 16)), "instance")(
        empty, np.random.default_rng(0)
    )
    assert len(objects(found)) == 0
    assert objects(found).boxes.shape == (0, 4)
    bare = Sample(image=empty.image, path=empty.path, index=0)
    assert (
        TrainTransform(PLAIN, AugmentSpec(), "instance")(bare, np.random.default_rng(0)).target
        is None
    )
    nothing = replace(bare, instances=Instances.empty((30, 30)))
    augment = AugmentSpec(copy_paste=1.0)
    transform = TrainTransform(PLAIN, augment, "instance")
    assert len(objects(transform(nothing, np.random.default_rng(0), lambda: nothing))) == 0


def test_scale_range_and_flips_are_respected() -> None:
    sample = squares((40, 50), [(0, 0, 10, 10)])
    transform = TrainTransform(PLAIN, AugmentSpec(scale=(0.5, 2.0)), "instance")
    rng = np.random.default_rng(0)
    found = [transform(sample, rng) for _ in range(200)]
    heights = np.array([f.size.content[0] / 40 for f in found])
    assert heights.min() >= 0.5
    assert heights.max() <= 2.0
    assert 0.4 < (heights < 1).mean() < 0.6, "halving is as likely as doubling"
    flipped = [bool(objects(f).boxes[0, 0] > 0) for f in found]
    assert 0.35 < np.mean(flipped) < 0.65
    assert all(objects(f).boxes[0, 1] == 0 for f in found), "never upside down by default"
