"""BlendMask: counts of the released models, targets and losses by hand, decoding."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.nn.fcos import Positives, match_points, positives_of
from pixelwise.ops import rle
from pixelwise.ops.points import place_points
from pixelwise.systems import SYSTEMS, create
from pixelwise.systems.blendmask import (
    BlendMask,
    BlendMaskConfig,
    Raw,
    mask_loss,
    paint_classes,
    semantic_loss,
)
from pixelwise.types import IGNORE, ImageSize, InstanceTarget, MaskCrops

# Frozen norms are buffers; with the semantic branch that only training uses.
PARAMETERS = {
    "blendmask_resnet50": 35_981_562,
    "blendmask_resnet101": 54_921_466,
    "blendmask_550_resnet50": 32_290_810,
}


def tiny(**settings: Any) -> BlendMask:
    torch.manual_seed(0)
    sizes = {
        "backbone": "test_resnet",
        "channels": 40,
        "head_convs": 1,
        "levels": 3,
        "bottom_convs": 1,
        "bottom_width": 8,
        "num_classes": 3,
        "attention_side": 4,
        "mask_side": 8,
        "detections_per_image": 6,
    }
    return BlendMask(BlendMaskConfig(**{**sizes, **settings}))


def square_target(
    boxes: list[list[int]], labels: list[int], side: int, *, crowds: int = 0
) -> InstanceTarget:
    """Masks that fill their boxes; the first ones may be crowds."""
    windows = torch.tensor(boxes, dtype=torch.int64).view(-1, 4)
    crops = MaskCrops((side, side), windows, torch.zeros(0, dtype=torch.uint8))
    pixels = torch.ones(int(crops.areas_of_windows.sum()), dtype=torch.uint8)
    return InstanceTarget(
        boxes=windows.float(),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=MaskCrops((side, side), windows, pixels),
        crowd=torch.arange(len(boxes)) < crowds,
    )


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_of_the_released_models(name: str, count: int) -> None:
    with torch.device("meta"):
        net = create(name)
    assert sum(p.numel() for p in net.parameters()) == count


def test_bounds_of_the_levels() -> None:
    """550: P3 to P6 with ranges 64, 128, 256; the full model has one level and range more."""
    net = tiny(levels=4)
    dense = net.eval().predict(net.pyramid(torch.zeros(1, 3, 64, 64)))
    upper = [dense.points.ranges[at, 1].item() for at in torch.tensor(dense.cells).cumsum(0) - 1]
    assert upper == [64, 128, 256, math.inf]
    assert dense.points.strides.unique().tolist() == [8, 16, 32, 64]


@torch.no_grad()
def test_attention_is_that_of_the_detections_points() -> None:
    """The whole map, as released, and then the points: the same masks."""
    net = tiny(score_thresh=0.0).eval()
    images = torch.randn(2, 3, 72, 88)
    dense = net.predict(net.pyramid(images))
    whole = torch.cat([net.attention(x).flatten(2) for x in dense.hidden], dim=2)  # [B, E, N]
    image, point = torch.tensor([0, 1, 1]), torch.tensor([0, 5, whole.shape[2] - 1])
    found = net.attend(dense.hidden, image, point)
    torch.testing.assert_close(found.flatten(1), whole[image, :, point])
    assert found.shape == (3, net.cfg.bases, 4, 4)


def test_semantic_branch_is_absent_from_inference() -> None:
    net = tiny().eval()
    net.semantic = None
    assert net(torch.randn(1, 3, 64, 64)).mask_logits.shape == (1, 6, 8, 8)


def test_masks_are_learnt_inside_the_objects_boxes() -> None:
    """Bases that are the answer, and attention that chooses them: the loss is that of the logit."""
    target = square_target([[8, 8, 40, 24], [32, 32, 56, 56]], [0, 1], 64)
    bases = torch.full((1, 2, 16, 16), -2.0)
    bases[:, 1] = 2.0  # object everywhere
    attention = torch.zeros(3, 2, 4, 4)
    attention[:2, 1] = 50.0
    attention[2, 0] = 50.0
    found = Positives(torch.zeros(3).long(), torch.zeros(3).long(), torch.tensor([0, 1, 1]))
    weights = torch.tensor([0.5, 1.0, 0.25])
    loss = mask_loss(
        bases, attention, found, [target], weights=weights, side=8, interpolation="bilinear"
    )
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert loss.item() == pytest.approx((1.5 * right + 0.25 * wrong) / 1.75, rel=1e-5)


def test_objects_of_every_image_meet_their_own_bases() -> None:
    """Position in the image is not position in the batch."""
    one = square_target([[0, 0, 16, 16]], [0], 64)
    two = square_target([[0, 0, 64, 64], [8, 8, 24, 24]], [0, 0], 64)
    bases = torch.stack([torch.full((1, 16, 16), -3.0), torch.full((1, 16, 16), 3.0)])
    found = Positives(torch.tensor([1]), torch.tensor([0]), torch.tensor([1]))
    loss = mask_loss(
        bases,
        torch.zeros(1, 1, 2, 2),
        found,
        [one, two],
        weights=torch.ones(1),
        side=4,
        interpolation="nearest",
    )
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3)), rel=1e-5)


def test_without_objects_masks_cost_nothing() -> None:
    net = tiny()
    losses = net.loss(torch.randn(2, 3, 64, 64), [square_target([], [], 64)] * 2)
    assert losses["mask"] == losses["box"] == losses["centerness"] == 0
    assert losses["semantic"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_masks_and_boxes_have_the_same_positives() -> None:
    target = square_target([[8, 8, 40, 40]], [1], 64)
    points = place_points([(8, 8)], (8,), (), torch.zeros(0))
    found = positives_of(match_points(points, [target]))
    xy = points.xy[found.point]
    # Within 1.5 strides of the middle (24, 24), the border left out: 12 < x < 36.
    assert sorted({int(v) for v in xy[:, 0]}) == [20, 28]
    assert len(xy) == 4


def test_later_objects_are_seen_and_crowds_are_not_learnt() -> None:
    target = square_target(
        [[0, 0, 32, 64], [0, 0, 16, 16], [8, 8, 24, 24]], [0, 1, 2], 64, crowds=1
    )
    classes = paint_classes(target, (72, 64), 3)
    assert classes.shape == (72, 64)
    assert classes[4, 4] == 1
    assert classes[12, 12] == 2  # the later one
    assert classes[40, 8] == IGNORE
    assert classes[40, 60] == 3
    assert (classes[64:] == 3).all()  # padding is no object


def test_semantic_loss_reads_every_eighth_pixel() -> None:
    target = square_target([[8, 0, 16, 8]], [1], 16)  # the cell in row 0, column 1
    logits = torch.full((1, 4, 2, 2), -30.0)
    logits[0, 3] = 30
    logits[0, :, 0, 1] = torch.tensor([-30.0, 30, -30, -30])
    assert semantic_loss(logits, [target], (16, 16)).item() == pytest.approx(0, abs=1e-6)
    wanted = F.cross_entropy(torch.zeros(1, 4), torch.tensor([0]))
    assert semantic_loss(torch.zeros(1, 4, 2, 2), [target], (16, 16)) == pytest.approx(wanted)
    assert semantic_loss(torch.zeros(1, 4, 3, 3), [target], (16, 16)) == pytest.approx(wanted)


def raw_of(boxes: Tensor, logits: Tensor) -> Raw:
    count = len(boxes)
    return Raw(
        boxes[None],
        torch.linspace(0.9, 0.5, count)[None],
        torch.arange(count)[None],
        torch.ones(1, count, dtype=torch.bool),
        logits[None],
    )


def test_masks_are_pasted_into_their_boxes_in_original_pixels() -> None:
    """The content fills a corner of the input, and the picture had twice its size."""
    logits = torch.full((2, 8, 8), 4.0)
    logits[1, :, 4:] = -4  # the left half
    boxes = torch.tensor([[8.0, 8, 24, 16], [40, 40, 60, 60]])
    size = ImageSize(original=(96, 128), content=(48, 64), input=(64, 64))
    (found,) = tiny().decode(raw_of(boxes, logits), [size])
    assert found.boxes.tolist() == [[16, 16, 48, 32], [80, 80, 120, 96]]
    masks = torch.from_numpy(rle.decode(found.masks))
    assert masks.shape == (2, 96, 128)
    corners = masks[0, [16, 16, 31, 31], [16, 47, 16, 47]]  # masks fade at the border of their box
    assert masks[0, 16:32, 16:48].sum() == masks[0].sum() == 32 * 16 - 4
    assert not corners.any()
    assert masks[1, 81:95, 80:100].all()
    assert not masks[1, :, 100:].any()


def test_boxes_in_the_padding_are_left_out() -> None:
    size = ImageSize(original=(32, 32), content=(32, 32), input=(64, 64))
    boxes = torch.tensor([[40.0, 40, 60, 60], [4, 4, 20, 20]])
    (found,) = tiny().decode(raw_of(boxes, torch.ones(2, 8, 8)), [size])
    assert found.labels.tolist() == [1]


@pytest.mark.parametrize("bottom", ["protonet", "decoder"])
@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_any_size(bottom: str, size: tuple[int, int]) -> None:
    net = tiny(bottom=bottom).eval()
    raw = net(torch.randn(1, 3, *size))
    (found,) = net.decode(raw, [ImageSize.same(size)])
    assert found.size == size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 2}, "levels is at least 3"),
        ({"bottom": "aspp"}, "bottom"),
        ({"interpolation": "bicubic"}, "interpolation"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BlendMaskConfig(**settings)


def test_real_time_rows_have_fewer_levels() -> None:
    assert SYSTEMS["blendmask_550_resnet50"].config.levels == 4
    assert SYSTEMS["blendmask_rt_resnet50"].config.levels == 3
