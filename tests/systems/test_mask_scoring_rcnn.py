from typing import Any

import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.ops import rle
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from pixelwise.systems.mask_scoring_rcnn import MaskScoringRCNN, MaskScoringRCNNConfig, Raw
from pixelwise.types import ImageSize
from tests.two_stage import SMALL, learn, two_bright_boxes


def build(**changes: Any) -> MaskScoringRCNN:
    torch.manual_seed(0)
    return MaskScoringRCNN(MaskScoringRCNNConfig(**{**SMALL, **changes}))


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
    raw = Raw(
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


def test_published_parameter_counts():
    with torch.device("meta"):
        net = MaskScoringRCNN(MaskScoringRCNNConfig())
    frozen = [m for m in net.modules() if isinstance(m, FrozenBatchNorm)]
    count = sum(p.numel() for p in net.parameters()) + sum(2 * m.weight.numel() for m in frozen)
    assert count == 60_736_640


def test_a_wrong_setting_says_what_is_right():
    with pytest.raises(UsageError, match="flatten, mean"):
        MaskScoringRCNNConfig(iou_pool="max")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_it_learns_how_good_its_masks_are():
    """Where masks cannot get good, the head learns that; where they can, that too."""
    net = build(backbone_norm="group", head_norm="group", regions_per_image=64)
    image, target = two_bright_boxes()
    learn(net, image, target, steps=120)
    with torch.no_grad():
        raw = net(image)
    sure = raw.valid & (raw.scores > 0.7)
    ious = (raw.mask_scores / raw.scores.clamp(min=1e-6))[sure]
    assert int(sure.sum()) >= 2
    assert (ious - 0.95).abs().max() < 0.15
