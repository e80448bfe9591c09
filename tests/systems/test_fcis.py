import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from pixelwise import checkpoint
from pixelwise.class_rows import load_by_class
from pixelwise.errors import UsageError
from pixelwise.export import export_program
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.ops import rle
from pixelwise.spec import FCIS_BGR
from pixelwise.systems import create
from pixelwise.systems.fcis import FCIS, FCISConfig, Raw
from pixelwise.types import ImageSize
from tests.two_stage import SMALL_MAPS, without_objects


def tiny(**options) -> FCIS:
    torch.manual_seed(0)
    net = create("fcis", **{**SMALL_MAPS, "mask_side": 9, **options})
    assert isinstance(net, FCIS)
    return net


def count(module: nn.Module) -> int:
    frozen = [m for m in module.modules() if isinstance(m, FrozenBatchNorm)]
    return sum(p.numel() for p in module.parameters()) + sum(2 * len(m.weight) for m in frozen)


@pytest.mark.parametrize(
    ("name", "blocks", "parameters"),
    [
        ("fcis", 1, 51_655_492),
        ("fcis", 2, 51_856_392),
        ("fcis_coco", 1, 57_691_726),
        ("fcis_coco", 2, 57_892_626),
    ],
)
def test_published_parameter_counts(name: str, blocks: int, parameters: int) -> None:
    """With the affine maps of the frozen norms, which the released files hold too."""
    with torch.device("meta"):
        assert count(create(name, box_blocks=blocks)) == parameters


@pytest.mark.parametrize("options", [{}, {"assembling": "pool"}, {"box_blocks": 2}])
def test_raw_holds_every_proposal_twice(options: dict) -> None:
    net = tiny(**options).eval()
    with torch.inference_mode():
        raw = net(torch.randn(2, 3, 75, 101))
    assert raw.boxes.shape == (2, 60, 4)
    assert raw.probs.shape == (2, 60, 3)
    assert raw.masks.shape == (2, 60, 9, 9)
    assert raw.valid[:, :30].any()
    assert raw.valid[:, 30:].any()
    assert raw.boxes.amin() >= 0
    assert (raw.boxes.amax(dim=(0, 1)) <= torch.tensor([101.0, 75, 101, 75])).all()
    assert not raw.boxes[:, :30][~raw.valid[:, :30]].any()
    assert (raw.probs.sum(dim=2) <= 1 + 1e-5).all()
    sides = (raw.boxes[..., 2:] - raw.boxes[..., :2]).amin(dim=-1)
    assert (sides[raw.valid] >= 2).all()


def test_the_second_half_is_the_first_after_regression() -> None:
    """Moved by the deltas that the first look gives, then read from the same maps."""
    net = tiny().eval()
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        raw = net(images)
        maps = net.score_maps(net.backbone(images)[1])
        rois = torch.cat([torch.zeros(30, 1), raw.boxes[0, :30]], dim=1)
        first = net.score_maps.predict(maps, rois)
        moved = net.score_maps.refine(raw.boxes[0, :30], first.deltas, (96, 96))
        found = raw.valid[0, :30]
        torch.testing.assert_close(raw.boxes[0, 30:][found], moved[found])
        rois = torch.cat([torch.zeros(30, 1), moved], dim=1)
        second = net.score_maps.predict(maps, rois).logits.softmax(dim=1)[:, :3]
        torch.testing.assert_close(raw.probs[0, 30:][found], second[found])


def test_proposals_read_conv4_and_scores_conv5() -> None:
    net = tiny().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        shared, deep = net.backbone(images)
        assert shared.shape[-2:] == deep.shape[-2:] == (4, 4)
        assert net.rpn.convs[0].conv.in_channels == shared.shape[1]
        assert net.score_maps.reduce.conv.in_channels == deep.shape[1]
        before = net.rpn.predict([shared]).logits[0]
        maps = net.score_maps(deep).classes
        deepest = net.backbone.body.layer4 if hasattr(net.backbone, "body") else None
        assert deepest is not None
        for parameter in deepest.parameters():
            parameter.mul_(0.5)
        shared, deep = net.backbone(images)
        assert torch.equal(net.rpn.predict([shared]).logits[0], before)
        assert not torch.equal(net.score_maps(deep).classes, maps)


@pytest.mark.parametrize("options", [{}, {"with_ohem": True, "assembling": "pool"}])
@pytest.mark.parametrize("kind", ["empty", "crowd_only", "degenerate"])
def test_images_without_objects_teach_the_background_only(options: dict, kind: str) -> None:
    net, size = tiny(**options), (96, 128)
    losses = net.loss(torch.randn(2, 3, *size), [without_objects(kind, size)] * 2)
    assert list(losses) == ["rpn_objectness", "rpn_box", "class", "box", "mask"]
    assert losses["mask"] == losses["box"] == losses["rpn_box"] == 0
    assert all(torch.isfinite(x) for x in losses.values())
    if kind == "crowd_only":
        assert losses["class"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def raw_of(boxes, probs, masks) -> Raw:
    frames = torch.tensor([boxes], dtype=torch.float32)
    return Raw(
        frames,
        torch.tensor([probs]),
        torch.ones(frames.shape[:2], dtype=torch.bool),
        torch.stack(masks)[None],
    )


def test_decode_by_hand() -> None:
    """Two overlapping regions make one detection; the suppressed one has its vote in the mask."""
    net = tiny()
    full, upper = torch.ones(9, 9), torch.zeros(9, 9)
    upper[:5] = 1
    boxes = [[8, 4, 24, 12], [8, 4, 24, 12], [30, 20, 50, 30], [33, 0, 64, 8]]
    probs = [[0.5, 0.1, 0.2], [0.4, 0.05, 0.0], [0.0, 0.0, 0.9], [0.9, 0.9, 0.9]]
    raw = raw_of(boxes, probs, [upper, full, full, full])
    # 100 x 64 pixels, halved to 50 x 32, padded to 64 x 64: the last box lies in the padding.
    size = ImageSize(original=(100, 64), content=(50, 32), input=(64, 64))
    (found,) = net.decode(raw, [size])
    # Boxes are clipped to the picture, and scores are those of the kept regions.
    assert found.labels.tolist() == [2, 0, 2, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.5, 0.2, 0.1]))
    # 0.4 / 0.9 of the votes are for the whole box; for class 2 all of them are for the upper part.
    assert found.boxes[0].tolist() == [60, 40, 64, 60]
    assert found.boxes[1].tolist() == [16, 8, 48, 24]
    assert found.boxes[2].tolist()[:3] == [16, 8, 48]
    assert found.boxes[2, 3] < 20
    masks = rle.decode(found.masks)
    assert masks[1].sum() == 32 * 16
    assert masks.shape == (4, 100, 64)


def test_a_detection_without_a_pixel_is_none() -> None:
    raw = raw_of([[8, 8, 40, 40]], [[0.9, 0.0, 0.0]], [torch.zeros(9, 9)])
    assert len(tiny().decode(raw, [ImageSize.same((64, 64))])[0]) == 0
    nothing = raw._replace(valid=torch.zeros(1, 1, dtype=torch.bool))
    assert len(tiny().decode(nothing, [ImageSize.same((64, 64))])[0]) == 0


def test_permuting_regions_leaves_the_detections() -> None:
    net = tiny().eval()
    with torch.inference_mode():
        raw = net(torch.randn(1, 3, 96, 128))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    size = ImageSize.same((96, 128))
    (here,) = net.decode(raw, [size])
    (there,) = net.decode(Raw(*(x[:, order] for x in raw)), [size])
    assert len(here) > 3
    torch.testing.assert_close(here.scores, there.scores)
    torch.testing.assert_close(here.boxes, there.boxes)
    assert torch.equal(here.labels, there.labels)


def test_a_picture_twice_in_a_batch_gives_the_same_twice() -> None:
    net = tiny().eval()
    a, b = torch.randn(2, 3, 96, 128)
    size = ImageSize.same((96, 128))
    with torch.inference_mode():
        raw = net(torch.stack([a, b, a]))
    assert all(torch.equal(x[0], x[2]) for x in raw)
    assert not torch.equal(raw.boxes[0], raw.boxes[1])
    first, _, last = net.decode(raw, [size] * 3)
    assert len(first) > 3
    assert torch.equal(first.scores, last.scores)
    assert rle.to_coco(first.masks) == rle.to_coco(last.masks)


def test_a_blank_or_minute_picture_is_no_error() -> None:
    net = tiny(min_side_px=16.0).eval()
    with torch.inference_mode():
        for size in ((33, 1), (1, 1), (64, 64)):
            raw = net(torch.zeros(1, 3, *size))
            assert net.decode(raw, [ImageSize.same(size)])[0].size == size


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (37, 50)])
def test_the_authors_backbone_rounds_up(size: tuple[int, int]) -> None:
    """Caffe's pooling has no padding and rounds up: 65 pixels are 16 at stride 4, not 17."""
    net = tiny(backbone="resnet18", backbone_norm="frozen").eval()
    with torch.inference_mode():
        shared, deep = net.backbone(torch.randn(1, 3, *size))
    pooled = [math.ceil((math.ceil(side / 2) - 3) / 2) + 1 for side in size]
    assert shared.shape[-2:] == deep.shape[-2:] == tuple(math.ceil(side / 4) for side in pooled)
    dilated = [m.dilation for m in net.backbone.layer4.modules() if isinstance(m, nn.Conv2d)]
    assert dilated.count((2, 2)) == 4


def test_known_classes_keep_their_maps(tmp_path) -> None:
    old = tiny()
    path = tmp_path / "fcis.safetensors"
    checkpoint.save(path, old, name="fcis", classes=("a", "b", "c"), input=FCIS_BGR)
    fresh = tiny(num_classes=2)
    load_by_class(fresh, path, classes=("c", "a"))

    def of_class(net: FCIS, label: int) -> Tensor:
        return net.score_maps.class_maps.weight[18 * label : 18 * (label + 1)].detach()

    for mine, stored in ((0, 2), (1, 0), (-1, -1)):  # the last rows are the background's
        ours = of_class(fresh, mine) if mine >= 0 else fresh.score_maps.class_maps.weight[-18:]
        theirs = of_class(old, stored) if stored >= 0 else old.score_maps.class_maps.weight[-18:]
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_exported_graph_and_decode_give_the_same_detections() -> None:
    net = tiny().eval()
    images = torch.randn(2, 3, 96, 64)
    program = export_program(net, images, dynamic="none")
    sizes = [ImageSize.same((96, 64))] * 2
    with torch.no_grad():
        ours, theirs = net.decode(net(images), sizes), net.decode(program.module()(images), sizes)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) > 3
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.boxes, b.boxes)
        torch.testing.assert_close(a.scores, b.scores)
        assert (rle.decode(a.masks) == rle.decode(b.masks)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assembling": "align"}, "copy, pool"),
        ({"box_blocks": 3}, "choose one of 1, 2"),
        ({"num_classes": 0}, "num_classes"),
        ({"mask_side": 6}, "7 at least"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FCISConfig(**options)
    assert len(dataclasses.fields(FCISConfig)) <= 20
