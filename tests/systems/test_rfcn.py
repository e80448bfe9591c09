import numpy as np
import pytest
import torch

from pixelwise.data.sample import Instances
from pixelwise.errors import UsageError
from pixelwise.evaluation.meters import InstanceMeter, Truth
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.ops import rle
from pixelwise.systems import create
from pixelwise.systems.rfcn import RFCN, Raw, RFCNConfig
from pixelwise.types import ImageSize
from tests.two_stage import SMALL_MAPS, make_target, without_objects


def tiny(**options) -> RFCN:
    torch.manual_seed(0)
    net = create("rfcn", **{**SMALL_MAPS, **options})
    assert isinstance(net, RFCN)
    return net


def test_parameters_of_the_paper() -> None:
    """ResNet-101, 80 classes and 12 anchors; the affine maps of the frozen norms count."""
    with torch.device("meta"):
        net = create("rfcn", num_classes=80, anchor_sizes=(64, 128, 256, 512))
    affine = sum(2 * len(m.weight) for m in net.modules() if isinstance(m, FrozenBatchNorm))
    assert sum(p.numel() for p in net.parameters()) + affine == 53_623_501
    assert net.score_maps.class_maps.weight.shape == (49 * 81, 1024, 1, 1)
    assert net.score_maps.box_maps.weight.shape == (4 * 49, 1024, 1, 1)


@pytest.mark.parametrize("pooling", ["pool", "align", "rounded"])
def test_raw_and_losses(pooling) -> None:
    net = tiny(pooling=pooling)
    size = (75, 101)
    images = torch.randn(2, 3, *size)
    targets = [make_target([[10, 10, 40, 50]], [2], size), make_target([], [], size)]
    losses = net.loss(images, targets)
    assert list(losses) == ["rpn_objectness", "rpn_box", "class", "box"]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.inference_mode():
        raw = net.eval()(images)
    assert raw.boxes.shape == (2, 30, 4)
    assert raw.probs.shape == (2, 30, 3)
    assert raw.boxes.amin() >= 0
    assert (raw.boxes.amax(dim=(0, 1)) <= torch.tensor([101.0, 75, 101, 75])).all()


@pytest.mark.parametrize("with_ohem", [False, True])
@pytest.mark.parametrize("kind", ["empty", "crowd_only", "degenerate"])
def test_images_without_objects_teach_the_background_only(kind, with_ohem) -> None:
    net, size = tiny(with_ohem=with_ohem), (96, 128)
    losses = net.loss(torch.randn(2, 3, *size), [without_objects(kind, size)] * 2)
    assert losses["box"] == losses["rpn_box"] == 0
    # Background that is drawn overlaps some object; the hardest regions may lie anywhere.
    assert (losses["class"] > 0) == (with_ohem and kind != "crowd_only")
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_regions_in_any_order_and_pictures_twice_give_the_same_detections() -> None:
    net = tiny().eval()
    a, b = torch.randn(2, 3, 96, 128)
    with torch.inference_mode():
        raw = net(torch.stack([a, b, a]))
    assert all(torch.equal(x[0], x[2]) for x in raw)
    assert not torch.equal(raw.boxes[0], raw.boxes[1])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    sizes = [ImageSize.same((96, 128))] * 3
    here = net.decode(raw, sizes)[0]
    there = net.decode(Raw(*(x[:, order] for x in raw)), sizes)[0]
    assert len(here) > 3
    torch.testing.assert_close(here.scores, there.scores)
    torch.testing.assert_close(here.boxes, there.boxes)


def test_masks_are_the_boxes_and_box_ap_is_right() -> None:
    """One box is exact, one has an IoU of 0.8: both of its AP count, whatever the masks are."""
    raw = Raw(
        boxes=torch.tensor([[[8.0, 4, 24, 20], [40, 8, 60, 24]]]),
        probs=torch.tensor([[[0.9, 0.0], [0.0, 0.8]]]),
        valid=torch.ones(1, 2, dtype=torch.bool),
    )
    size = ImageSize(original=(96, 128), content=(48, 64), input=(64, 64))
    (found,) = tiny(num_classes=2).decode(raw, [size])
    assert found.boxes.tolist() == [[16, 8, 48, 40], [80, 16, 120, 48]]
    assert (rle.tight_boxes(found.masks) == found.boxes.numpy()).all()
    assert rle.areas(found.masks).tolist() == [32 * 32, 40 * 32]
    # The first object is a disc in its box, the second box is a fifth shorter than what was found.
    truth_boxes = torch.tensor([[16.0, 8, 48, 40], [80, 16, 112, 48]])
    meter = InstanceMeter(("a", "b"))
    disc = (torch.arange(96)[:, None] - 24) ** 2 + (torch.arange(128) - 32) ** 2 < 16**2
    other = rle.decode(rle.fill_boxes(truth_boxes[1:], (96, 128)))[0]
    objects = Instances(
        boxes=truth_boxes.numpy(),
        labels=np.arange(2),
        masks=rle.encode(np.stack([disc.numpy(), other])),
        crowd=np.zeros(2, bool),
        ids=np.arange(1, 3),
    )
    meter.update(found, Truth(index=0, path="a.png", instances=objects))
    metrics = meter.findings().metrics
    assert metrics["box_ap50"] == pytest.approx(1.0)
    assert metrics["box_ap"] == pytest.approx((1.0 + 0.7) / 2)  # of .5:.05:.95, 0.8 passes seven


def test_same_regions_suppress_within_their_class_only() -> None:
    raw = Raw(
        boxes=torch.tensor([[[8.0, 4, 24, 20], [9, 4, 25, 20], [40, 8, 60, 24]]]),
        probs=torch.tensor([[[0.9, 0.3], [0.8, 0.6], [0.05, 0.0005]]]),
        valid=torch.tensor([[True, True, True]]),
    )
    (found,) = tiny(num_classes=2).decode(raw, [ImageSize.same((64, 64))])
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6, 0.05]))
    assert found.labels.tolist() == [0, 1, 0]


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="pool, align, rounded"):
        RFCNConfig(pooling="max")  # pyright: ignore[reportArgumentType]
