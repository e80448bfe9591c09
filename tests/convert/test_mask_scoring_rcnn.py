"""Variants of the released checkpoints, made from real key lists by what distinguishes them."""

import re

import pytest
import torch

from pixelwise.convert import rules as engine
from pixelwise.convert.mask_scoring_rcnn import ORIGINS
from pixelwise.errors import ConversionError
from pixelwise.systems.mask_scoring_rcnn import MaskScoringRCNN, MaskScoringRCNNConfig
from tests.convert.detector_states import deepen, empty, state_of, widen, with_classes

MMDET_ROWS = {
    "roi_head.bbox_head.fc_cls.": (1, 1),
    "roi_head.bbox_head.fc_reg.": (4, 0),
    "roi_head.mask_head.conv_logits.": (1, 0),
    "roi_head.mask_iou_head.fc_mask_iou.": (1, 0),
}


def rules_of(origin, cfg):
    rules = ORIGINS[origin].rules
    return rules(cfg) if callable(rules) else rules


def convert(state, origin, **changes):
    cfg = MaskScoringRCNNConfig(**{**ORIGINS[origin].infer(state), **changes})
    with torch.device("meta"):
        net = MaskScoringRCNN(cfg)
    return cfg, engine.translate(rules_of(origin, cfg), state, net.state_dict())


def authors(classes=80):
    """The authors' names, by what is written about them: torchvision's, renamed, and their head."""
    result = {}
    names = {
        r"backbone\.body\.(conv1|bn1)": r"backbone.body.stem.\1",
        r"rpn\.head\.conv\.0\.0": "rpn.head.conv",
        r"roi_heads\.box_head\.(fc\d)": r"roi_heads.box.feature_extractor.\1",
        r"roi_heads\.box_predictor": "roi_heads.box.predictor",
        r"roi_heads\.mask_predictor": "roi_heads.mask.predictor",
    }
    for key, value in state_of("torchvision_maskrcnn_r50_fpn").items():
        name = key
        for pattern, to in names.items():
            name = re.sub(rf"^{pattern}\b", to, name)
        if match := re.match(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0\.", name):
            name = name.replace(match[0], f"backbone.fpn.fpn_{match[1]}{int(match[2]) + 1}.")
        if match := re.match(r"roi_heads\.mask_head\.(\d)\.0\.", name):
            to = f"roi_heads.mask.feature_extractor.mask_fcn{int(match[1]) + 1}."
            name = name.replace(match[0], to)
        result[name] = value
    result |= state_of("msrcnn_original_maskiou_head")
    for i in range(5):
        result[f"rpn.anchor_generator.cell_anchors.{i}"] = empty(3, 4)
    rows = {
        "roi_heads.box.predictor.cls_score.": (1, 1),
        "roi_heads.box.predictor.bbox_pred.": (4, 4),
        "roi_heads.mask.predictor.mask_fcn_logits.": (1, 1),
        "roi_heads.maskiou.predictor.maskiou.": (1, 1),
    }
    return with_classes(result, classes, rows)


def test_openmmlabs_fixture_is_recognised_and_leads_back():
    state = state_of("mmdet_msrcnn_r50_caffe_fpn")
    cfg, found = convert(state, "mmdet")
    assert (cfg.backbone, cfg.backbone_style, cfg.num_classes) == ("resnet50", "caffe", 80)
    assert (cfg.iou_pool, cfg.conventions) == ("flatten", "mmdet")
    back = engine.invert(rules_of("mmdet", cfg), found.state)
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert back.keys() == state.keys() - counters


def test_openmmlabs_resnext_and_classes():
    state = deepen(state_of("mmdet_msrcnn_r50_caffe_fpn"), "backbone.layer3.", 23)
    cfg, _ = convert(with_classes(state, 5, MMDET_ROWS), "mmdet")
    assert (cfg.backbone, cfg.num_classes) == ("resnet101", 5)
    cfg, _ = convert(widen(state, 32, 4, first=1), "mmdet")
    assert (cfg.backbone, cfg.backbone_style) == ("resnext101_32x4d", "pytorch")


def test_the_pooled_reading_is_told_by_its_first_layer():
    state = state_of("mmdet_msrcnn_r50_caffe_fpn")
    state["roi_head.mask_iou_head.fcs.0.weight"] = empty(1024, 256)
    assert convert(state, "mmdet")[0].iou_pool == "mean"


@pytest.mark.parametrize("classes", [80, 3])
def test_the_authors_names(classes):
    cfg, found = convert(authors(classes), "maskscoring")
    assert (cfg.backbone, cfg.backbone_norm, cfg.backbone_style) == ("resnet50", "frozen", "caffe")
    assert (cfg.num_classes, cfg.conventions) == (classes, "detectron")
    assert len(found.dropped) == 5  # the anchors
    first = "roi_heads.maskiou.feature_extractor."
    assert found.sources["iou_head.convs.3.conv.weight"] == first + "maskiou_fcn4.weight"
    assert found.sources["neck.output.0.conv.weight"] == "backbone.fpn.fpn_layer1.weight"
    assert found.sources["backbone.stem.0.norm.bias"] == "backbone.body.stem.bn1.bias"


def test_the_background_has_no_iou():
    state = authors(2)
    state["roi_heads.maskiou.predictor.maskiou.bias"] = torch.tensor([9.0, 1.0, 2.0])
    assert convert(state, "maskscoring")[1].state["iou_head.iou.bias"].tolist() == [1, 2]


def test_the_authors_deeper_networks():
    state = deepen(authors(), "backbone.body.layer3.", 23)
    assert convert(state, "maskscoring")[0].backbone == "resnet101"


def test_a_plain_mask_rcnn_says_so():
    with pytest.raises(ConversionError, match="no mask IoU head"):
        convert(state_of("mmdet_maskrcnn_r50_fpn"), "mmdet")
