"""What Mask R-CNN, PANet and Mask Scoring R-CNN have in common: a Faster R-CNN that draws masks."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.ops import rle
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from pixelwise.systems.mask_scoring_rcnn import MaskScoringRCNN, MaskScoringRCNNConfig
from pixelwise.systems.panet import PANet, PANetConfig
from pixelwise.types import ImageSize
from tests.two_stage import SMALL, batch, without_objects


@dataclass(frozen=True, eq=False)
class Kin:
    system: type[nn.Module]
    config: type[Any]
    losses: tuple[str, ...]
    variants: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return self.system.__name__

    def build(self, **changes: Any) -> Any:
        torch.manual_seed(0)
        return self.system(self.config(**{**SMALL, **changes}))


LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")
PLAIN: dict[str, Any] = {"path": "linear", "neck_norm": None, "head_norm": None}
MASK_RCNN = Kin(
    MaskRCNN,
    MaskRCNNConfig,
    LOSSES,
    {
        "fpn": {},
        "four_levels": {"anchor_sizes": (8, 16, 32, 64)},
        "gn": {"head_norm": "group", "box_head": "4conv1fc", "backbone_norm": "group"},
        "sync": {"head_norm": "sync", "box_head": "4conv1fc", "backbone_norm": "sync"},
        "bn_two_rpn_convs": {"head_norm": "batch", "box_head": "4conv1fc", "rpn_convs": 2},
        "agnostic": {"class_agnostic_masks": True},
        "frozen_caffe": {
            "backbone": "resnet50",
            "backbone_norm": "frozen",
            "backbone_style": "caffe",
        },
        "c4": {"neck": "c4", "regions_per_image": 8, "proposals": (20, 10)},
        "dc5": {"neck": "dc5"},
        "mmdet": {"conventions": "mmdet"},
        "torchvision": {"conventions": "torchvision"},
        "detectron": {"conventions": "detectron"},
        "roi_pool": {"conventions": "roi_pool"},
        "softmax_masks": {"conventions": "softmax_masks"},
    },
)
PANET = Kin(
    PANet,
    PANetConfig,
    LOSSES,
    {
        "released": {},
        "2fc": {"box_head": "2fc"},
        "plain_2fc": {"box_head": "2fc", **PLAIN},
        "sync_norm": {"neck_norm": "sync", "head_norm": "sync", "backbone_norm": "sync"},
        "batch_norm_2fc": {"neck_norm": "batch", "head_norm": "batch", "box_head": "2fc"},
        "sum": {"fusion": "sum", "mask_branch": "linear"},
        "openmmlab": {"path": "sum", "fusion": None, "mask_branch": None, "head_norm": None},
        "one_level": {"fusion": None, "conventions": "panet"},
        "one_level_2fc": {"fusion": None, "box_head": "2fc", "mask_branch": None},
        "four_levels": {"anchor_sizes": (8, 16, 32, 64)},
        "affine_caffe": {
            "backbone": "resnet50",
            "backbone_norm": "affine",
            "backbone_style": "caffe",
        },
    },
)
MASK_SCORING = Kin(
    MaskScoringRCNN,
    MaskScoringRCNNConfig,
    (*LOSSES, "mask_iou"),
    {
        "published": {},
        "mean": {"iou_pool": "mean"},
        "gn": {"head_norm": "group", "box_head": "4conv1fc", "backbone_norm": "group"},
        "batch_norm": {"head_norm": "batch"},
        "mmdet": {"conventions": "mmdet"},
        "detectron": {"conventions": "detectron"},
        "torchvision": {"conventions": "torchvision"},  # soft mask targets; the IoU's are not
    },
)


KIN = (MASK_RCNN, PANET, MASK_SCORING)
each = pytest.mark.parametrize("kin", KIN, ids=str)


def variants(chosen: dict[Kin, Iterable[str]]) -> pytest.MarkDecorator:
    cases = [
        pytest.param(kin, kin.variants[name], id=f"{kin}-{name}")
        for kin, names in chosen.items()
        for name in names
    ]
    return pytest.mark.parametrize(("kin", "variant"), cases)


every_variant = variants({kin: kin.variants for kin in KIN})


@every_variant
def test_every_parameter_gets_a_gradient_from_finite_losses(kin, variant):
    net = kin.build(**variant)
    losses = net.loss(*batch())
    assert tuple(losses) == kin.losses
    assert all(torch.isfinite(x) and x.ndim == 0 and x > 0 for x in losses.values())
    sum(losses.values()).backward()
    missing = [k for k, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@each
def test_the_first_stage_learns_from_its_own_losses_only(kin):
    net = kin.build()
    losses = net.loss(*batch())
    sum(value for key, value in losses.items() if not key.startswith("rpn")).backward()
    assert all(p.grad is None for p in net.rpn.parameters())
    assert all(p.grad is not None for p in net.box_head.parameters())


@variants(
    {
        MASK_RCNN: ["fpn", "bn_two_rpn_convs"],
        PANET: ["released"],
        MASK_SCORING: ["published", "batch_norm"],
    }
)
@pytest.mark.parametrize("kind", ["empty", "crowd_only", "degenerate"])
def test_images_without_objects_teach_the_background_only(kin, variant, kind):
    net, size = kin.build(**variant), (96, 128)
    losses = net.loss(torch.randn(2, 3, *size), [without_objects(kind, size)] * 2)
    of_objects = [value for key, value in losses.items() if key not in ("rpn_objectness", "class")]
    assert len(of_objects) == len(kin.losses) - 2
    assert all(value == 0 for value in of_objects)
    assert all(torch.isfinite(value) for value in losses.values())
    # A crowd is neither object nor background, and all regions lie in it.
    assert (losses["class"] > 0) == (kind != "crowd_only")
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@every_variant
def test_raw_has_fixed_sizes_and_lies_inside_the_picture(kin, variant):
    net = kin.build(**variant).eval()
    with torch.inference_mode():
        raw = net(torch.randn(2, 3, 75, 101))
    side = 14 if variant.get("neck") == "c4" else 28
    assert raw.boxes.shape == (2, 12, 4)
    assert raw.mask_logits.shape == (2, 12, side, side)
    assert raw.valid.any()
    assert raw.boxes.amin() >= 0
    assert raw.boxes[..., 2].amax() <= 101
    assert raw.boxes[..., 3].amax() <= 75
    assert (raw.scores[:, 1:] <= raw.scores[:, :-1]).all()
    assert not raw.boxes[~raw.valid].any()
    for prediction in net.decode(raw, [ImageSize.same((75, 101))] * 2):
        assert prediction.size == (75, 101)
        assert (prediction.masks.windows >= 0).all()
        assert (prediction.masks.windows[:, 2:] <= [101, 75]).all()


@each
def test_one_picture_gives_the_same_in_any_batch(kin):
    net = kin.build(score_thresh=0.3).eval()
    a, b = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        alone, twice, mixed = net(a[None]), net(torch.stack([a, a])), net(torch.stack([b, a]))
    for one, two, three in zip(alone, twice, mixed, strict=True):
        assert torch.equal(two[0], two[1])
        torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one[0], three[1], rtol=1e-4, atol=1e-4)


@each
@pytest.mark.parametrize("size", [(33, 1), (64, 64)])
def test_a_blank_or_minute_picture_is_no_error(kin, size):
    net = kin.build(score_thresh=0.9).eval()
    with torch.inference_mode():
        raw = net(torch.zeros(1, 3, *size))
    assert all(x.shape[:2] == (1, 12) for x in raw)
    found = net.decode(raw, [ImageSize.same(size)])[0]
    assert len(found) == int(raw.valid.sum()) == 0
    assert found.mask_scores is None or len(found.mask_scores) == 0


@each
def test_decode_returns_to_the_original_frame(kin):
    net = kin.build().eval()
    raw = net(torch.zeros(1, 3, 64, 64))
    raw = type(raw)(*(x[:, :3] for x in raw))._replace(
        boxes=torch.tensor([[[8.0, 4.0, 24.0, 12.0], [20.0, 10.0, 40.0, 30.0], [33, 0, 40, 8]]]),
        scores=torch.tensor([[0.9, 0.8, 0.7]]),
        labels=torch.tensor([[2, 0, 1]]),
        valid=torch.tensor([[True, True, True]]),
        mask_logits=torch.full((1, 3, 28, 28), 9.0),
    )
    # 100 x 64 pixels, halved to 50 x 32, padded to 64 x 64: the third box lies in the padding.
    size = ImageSize(original=(100, 64), content=(50, 32), input=(64, 64))
    found = net.decode(raw, [size])[0]
    assert found.boxes.tolist() == [[16, 8, 48, 24], [40, 20, 64, 60]]
    assert found.labels.tolist() == [2, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    masks = rle.decode(found.masks)
    assert masks.shape == (2, 100, 64)
    assert masks[0].sum() == 32 * 16
    assert masks[0, 8:24, 16:48].all()
    assert rle.areas(found.masks).tolist() == [512, 24 * 40]


@variants({MASK_RCNN: ["fpn", "c4"], PANET: ["released", "openmmlab"], MASK_SCORING: ["published"]})
def test_permuting_regions_permutes_what_the_heads_say(kin, variant):
    net = kin.build(**variant).eval()
    rois = torch.tensor(
        [[0.0, 3, 3, 40, 30], [0, 50, 10, 90, 90], [0, 0, 0, 128, 96], [0, 7.5, 8, 19, 21]]
    )
    order = torch.tensor([2, 0, 3, 1])
    at_box, at_mask = net.box_pool, net.mask_pool
    if kin is MASK_RCNN:  # "c4" has a stage between the pools and the heads
        at_box, at_mask = net.box_features, net.mask_features
    with torch.inference_mode():
        pyramid = net.pyramid(torch.randn(1, 3, 96, 128))
        boxes = net.box_head.predict(at_box(pyramid, rois))
        masks = net.mask_head.predict(at_mask(pyramid, rois))
        again = net.box_head.predict(at_box(pyramid, rois[order]))
        masks_again = net.mask_head.predict(at_mask(pyramid, rois[order]))
    torch.testing.assert_close(again.logits, boxes.logits[order])
    torch.testing.assert_close(again.deltas, boxes.deltas[order])
    torch.testing.assert_close(masks_again, masks[order])


@every_variant
def test_class_rows_name_real_parameters_with_that_many_rows(kin, variant):
    with torch.device("meta"):
        net = kin.build(**variant)
    for prefix, rows in kin.system.CLASS_ROWS.items():
        found = [p for key, p in net.named_parameters() if key.startswith(prefix)]
        if prefix == "mask_head.class_logits" and variant.get("class_agnostic_masks"):
            assert not found
            continue
        with_rest = prefix == "box_head.classify" or (
            prefix == "mask_head.class_logits" and variant.get("conventions") == "softmax_masks"
        )
        extra = 1 if with_rest else 0  # the background, last
        assert len(found) == 2
        assert all(len(p) == rows * 3 + extra for p in found)


@each
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"box_head": "3fc"}, "2fc, 4conv1fc"),
        ({"conventions": "mine"}, "torchvision"),
        ({"anchor_sizes": (32, 64)}, "4 or 5"),
    ],
)
def test_a_wrong_setting_says_what_is_right(kin, changes, word):
    with pytest.raises(UsageError, match=word):
        kin.config(**changes)


@each
def test_lists_from_json_become_tuples(kin):
    config = kin.config(anchor_sizes=[8, 16, 32, 64], pre_nms=[10, 5])
    assert config.anchor_sizes == (8, 16, 32, 64)
    assert config.pre_nms == (10, 5)
    assert hash(config)
    assert len(dataclasses.fields(config)) <= 20


@each
def test_half_precision_trains_and_detects(kin):
    net = kin.build(score_thresh=0.3)
    images, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = net.loss(images, targets)
        raw = net.eval()(images)
    assert all(torch.isfinite(x) and x.dtype == torch.float32 for x in losses.values())
    assert {x.dtype for x in raw} == {torch.float32, torch.int64, torch.bool}


@pytest.mark.slow
@variants(
    {
        MASK_RCNN: ["fpn", "agnostic", "c4", "torchvision"],
        PANET: ["released", "plain_2fc", "openmmlab"],
        MASK_SCORING: ["published", "mean"],
    }
)
def test_exported_graphs_and_the_decode_step_give_eager_detections(kin, variant):
    """Also with fewer candidates than detections, where the fixed size is filled up."""
    net = kin.build(**{**variant, "score_thresh": 0.3, "detections_per_image": 90}).eval()
    with torch.no_grad():
        net.box_head.classify.weight.mul_(20)  # confident enough to pass the threshold
    images = torch.randn(2, 1, 3, 64, 96)
    exported = torch.export.export(net, (images[0],)).module()
    for image in images:
        with torch.no_grad():
            eager, graph = net(image), exported(image)
        assert 0 < int(eager.valid.sum()) < 90
        for a, b in zip(eager, graph, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        size = [ImageSize.same((64, 96))]
        one, two = net.decode(eager, size)[0], net.decode(type(eager)(*graph), size)[0]
        assert torch.equal(one.labels, two.labels)
        assert (one.masks.windows == two.masks.windows).all()
