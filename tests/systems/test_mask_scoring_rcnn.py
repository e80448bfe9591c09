import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.ops import rle
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from pixelwise.systems.mask_scoring_rcnn import (
    MaskScoringRCNN,
    MaskScoringRCNNConfig,
    MaskScoringRCNNRaw,
)
from pixelwise.types import ImageSize
from tests.systems.test_mask_rcnn import batch, make_target
from tests.systems.test_panet import SMALL

TINY = MaskScoringRCNNConfig(**SMALL)
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "mean": {"iou_pool": "mean"},
    "gn": {"head_norm": "group", "box_head": "4conv1fc", "backbone_norm": "group"},
    "batch_norm": {"head_norm": "batch"},
    "mmdet": {"conventions": "mmdet"},
    "detectron": {"conventions": "detectron"},
    "torchvision": {"conventions": "torchvision"},  # soft mask targets; those of the IoU are not
}


def build(**changes: Any) -> MaskScoringRCNN:
    torch.manual_seed(0)
    return MaskScoringRCNN(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient_from_finite_losses(name):
    net = build(**VARIANTS[name])
    losses = net.loss(*batch())
    assert list(losses) == ["rpn_objectness", "rpn_box", "class", "box", "mask", "mask_iou"]
    assert all(torch.isfinite(x) and x.ndim == 0 and x > 0 for x in losses.values())
    sum(losses.values()).backward()
    missing = [k for k, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", ["published", "batch_norm"])
@pytest.mark.parametrize("kind", ["empty", "crowd_only", "degenerate"])
def test_images_without_objects_judge_nothing(name, kind):
    net = build(**VARIANTS[name])
    size = (96, 128)
    target = {
        "empty": make_target([], [], size),
        "crowd_only": make_target([[0, 0, 128, 96]], [1], size, [True]),
        "degenerate": make_target([[20, 20, 20, 40]], [1], size),
    }[kind]
    losses = net.loss(torch.randn(2, 3, *size), [target, target])
    assert losses["mask"] == losses["box"] == losses["mask_iou"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def mask_rcnn_with_the_same_weights(net: MaskScoringRCNN) -> MaskRCNN:
    plain = MaskRCNN(MaskRCNNConfig(**SMALL))
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("iou_head")}
    plain.load_state_dict(state)
    return plain.eval()


def test_boxes_classes_and_masks_are_mask_rcnns():
    net = build().eval()
    images = torch.randn(2, 3, 75, 101)
    with torch.inference_mode():
        raw, plain = net(images), mask_rcnn_with_the_same_weights(net)(images)
    assert raw.valid.any()
    for ours, theirs in zip(raw, plain, strict=False):
        assert torch.equal(ours, theirs)
    assert raw.mask_scores.shape == raw.scores.shape
    assert not torch.equal(raw.mask_scores, raw.scores)
    assert not raw.mask_scores[~raw.valid].any()


def test_with_an_iou_of_one_masks_are_ranked_by_their_class():
    net = build().eval()
    nn.init.zeros_(net.iou_head.iou.weight)
    nn.init.ones_(net.iou_head.iou.bias)
    with torch.inference_mode():
        raw = net(torch.randn(2, 3, 75, 101))
    assert torch.equal(raw.mask_scores, raw.scores)


def test_the_iou_is_that_of_the_detections_class():
    net = build().eval()
    nn.init.zeros_(net.iou_head.iou.weight)
    nn.init.zeros_(net.box_head.classify.weight)  # every region is of every class
    with torch.no_grad():
        net.iou_head.iou.bias.copy_(torch.tensor([0.25, 0.5, 2.0]))
        raw = net(torch.randn(2, 3, 75, 101))
    factors = net.iou_head.iou.bias.detach()[raw.labels] * raw.valid
    assert len(raw.labels[raw.valid].unique()) == 3
    torch.testing.assert_close(raw.mask_scores, raw.scores * factors)


def test_decode_keeps_the_order_of_classes_and_ranks_masks_apart():
    net = build()
    raw = MaskScoringRCNNRaw(
        boxes=torch.tensor([[[8.0, 4.0, 24.0, 12.0], [20.0, 10.0, 40.0, 30.0], [33, 0, 40, 8]]]),
        scores=torch.tensor([[0.9, 0.8, 0.7]]),
        labels=torch.tensor([[2, 0, 1]]),
        valid=torch.ones(1, 3, dtype=torch.bool),
        mask_logits=torch.full((1, 3, 28, 28), 9.0),
        mask_scores=torch.tensor([[-0.01, 0.6, 0.5]]),
    )
    # 100 x 64 pixels, halved to 50 x 32, padded to 64 x 64: the third box lies in the padding.
    found = net.decode(raw, [ImageSize(original=(100, 64), content=(50, 32), input=(64, 64))])[0]
    assert found.boxes.tolist() == [[16, 8, 48, 24], [40, 20, 64, 60]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.mask_scores is not None
    assert found.mask_scores.tolist() == pytest.approx([-0.01, 0.6])
    assert rle.areas(found.masks).tolist() == [512, 24 * 40]


def test_permuting_regions_permutes_what_the_heads_say():
    net = build().eval()
    rois = torch.tensor([[0.0, 3, 3, 40, 30], [0, 50, 10, 90, 90], [0, 0, 0, 128, 96]])
    labels, order = torch.tensor([0, 2, 1]), torch.tensor([2, 0, 1])

    def judge(rois, labels):
        features = net.mask_pool(pyramid, rois)
        masks = net.mask_head.predict_class(features, labels)
        return masks, net.iou_head.predict(features, masks)

    with torch.inference_mode():
        pyramid = net.pyramid(torch.randn(1, 3, 96, 128))
        masks, ious = judge(rois, labels)
        again, ious_again = judge(rois[order], labels[order])
    assert (ious[0] - ious[1]).abs().max() > 1e-6, "regions differ"
    torch.testing.assert_close(again, masks[order])
    torch.testing.assert_close(ious_again, ious[order])


def test_one_picture_gives_the_same_in_any_batch():
    net = build(score_thresh=0.3).eval()
    a, b = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        alone, twice, mixed = net(a[None]), net(torch.stack([a, a])), net(torch.stack([b, a]))
    for one, two, three in zip(alone, twice, mixed, strict=True):
        assert torch.equal(two[0], two[1])
        torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one[0], three[1], rtol=1e-4, atol=1e-4)


def test_a_blank_picture_is_no_error():
    net = build(score_thresh=0.9).eval()
    with torch.inference_mode():
        raw = net(torch.zeros(1, 3, 33, 1))
    assert raw.mask_scores.shape == (1, 12)
    found = net.decode(raw, [ImageSize.same((33, 1))])[0]
    assert len(found) == len(found.mask_scores) == 0


def test_published_parameter_counts():
    with torch.device("meta"):
        net = MaskScoringRCNN(MaskScoringRCNNConfig())
    frozen = [m for m in net.modules() if isinstance(m, FrozenBatchNorm)]
    count = sum(p.numel() for p in net.parameters()) + sum(2 * m.weight.numel() for m in frozen)
    assert count == 60_736_640


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"iou_pool": "max"}, "flatten, mean"),
        ({"box_head": "3fc"}, "2fc, 4conv1fc"),
        ({"conventions": "mine"}, "torchvision"),
        ({"anchor_sizes": (32, 64)}, "4 or 5"),
    ],
)
def test_a_wrong_setting_says_what_is_right(changes, word):
    with pytest.raises(UsageError, match=word):
        dataclasses.replace(TINY, **changes)


def test_class_rows_name_real_parameters_with_that_many_rows():
    state = dict(build().named_parameters())
    for prefix, rows in MaskScoringRCNN.CLASS_ROWS.items():
        found = [p for key, p in state.items() if key.startswith(prefix)]
        extra = 1 if prefix == "box_head.classify" else 0
        assert len(found) == 2
        assert all(len(p) == rows * 3 + extra for p in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["published", "mean"])
def test_exported_graphs_and_the_decode_step_give_eager_detections(name):
    net = build(**{**VARIANTS[name], "score_thresh": 0.3, "detections_per_image": 90}).eval()
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


@pytest.mark.slow
def test_it_learns_how_good_its_masks_are():
    """Where masks cannot get good, the head learns that; where they can, that too."""
    torch.manual_seed(0)
    norms = {"backbone_norm": "group", "head_norm": "group"}
    net = build(**norms, regions_per_image=64)
    size = (96, 128)
    target = make_target([[10, 10, 40, 50], [60, 20, 100, 60]], [0, 2], size)
    image = torch.randn(1, 3, *size) * 0.1
    image[0, 0, 10:50, 10:40] += 2
    image[0, 1, 20:60, 60:100] += 2
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(120):
        losses = net.loss(image, [target])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    with torch.no_grad():
        raw = net.eval()(image)
    sure = raw.valid & (raw.scores > 0.7)
    ious = (raw.mask_scores / raw.scores.clamp(min=1e-6))[sure]
    assert int(sure.sum()) >= 2
    assert (ious - 0.95).abs().max() < 0.15
