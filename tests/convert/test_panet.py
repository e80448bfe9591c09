"""Variants of the released checkpoints, made from real key lists by what distinguishes them."""

import re

import pytest
import torch

from pixelwise.convert import rules as engine
from pixelwise.convert.panet import ORIGINS
from pixelwise.errors import ConversionError
from pixelwise.systems.panet import PANet, PANetConfig
from tests.convert.detector_states import deepen, empty, state_of, widen, with_classes

ROWS = {"Box_Outs.cls_score.": (1, 1), "Box_Outs.bbox_pred.": (4, 4), "Mask_Outs.classify.": (1, 1)}
MMDET_ROWS = {
    "roi_head.bbox_head.fc_cls.": (1, 1),
    "roi_head.bbox_head.fc_reg.": (4, 0),
    "roi_head.mask_head.conv_logits.": (1, 0),
}


def convert(state, origin, **changes):
    """The inferred config, and that every key of both sides is accounted for."""
    entry = ORIGINS[origin]
    cfg = PANetConfig(**{**entry.infer(state), **changes})
    with torch.device("meta"):
        net = PANet(cfg)
    found = engine.translate(entry.rules(cfg), state, net.state_dict())
    return cfg, found


def released(name="panet_r50_gn_mask"):
    return state_of(name)


def without(state, *prefixes):
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def test_the_two_fixtures_are_recognised():
    cfg, _ = convert(released(), "panet")
    assert (cfg.neck_norm, cfg.head_norm, cfg.path) == ("group", "group", "relu")
    assert (cfg.box_head, cfg.mask_branch, cfg.fusion) == ("4conv1fc", "relu", "max")
    assert (cfg.backbone, cfg.backbone_norm, cfg.backbone_style) == ("resnet50", "affine", "caffe")
    assert (cfg.num_classes, cfg.conventions) == (80, "panet")
    cfg, _ = convert(released("panet_r50_nogn_2fc"), "panet")
    assert (cfg.neck_norm, cfg.head_norm, cfg.path) == (None, "group", "linear")
    assert (cfg.box_head, cfg.num_classes) == ("2fc", 20)


@pytest.mark.parametrize("name", ["panet_r50_gn_mask", "panet_r50_nogn_2fc"])
@pytest.mark.parametrize("count", [1, 7])
def test_depth_and_classes_are_read(name, count):
    state = deepen(released(name), "Conv_Body.conv_body.res4.", 23)
    cfg, _ = convert(with_classes(state, count, ROWS), "panet")
    assert (cfg.backbone, cfg.num_classes) == ("resnet101", count)


def test_resnext_strides_in_the_3x3():
    state = deepen(released(), "Conv_Body.conv_body.res4.", 23)
    cfg, _ = convert(widen(state, 64, 4, first=2), "panet")
    assert (cfg.backbone, cfg.backbone_style) == ("resnext101_64x4d", "pytorch")


def test_group_norm_in_the_backbone():
    """Told by its name alone: a folded batch norm has the same two tensors."""
    state = {re.sub(r"\.bn(\d)\.", r".gn\1.", key): value for key, value in released().items()}
    cfg, found = convert(state, "panet")
    assert (cfg.backbone_norm, cfg.backbone_style) == ("group", "pytorch")
    assert found.sources["backbone.stem.0.norm.bias"] == "Conv_Body.conv_body.res1.gn1.bias"


def test_masks_without_the_branch():
    """There the fourth convolution stands in the sequence with the others."""
    state = released()
    plain = without(state, *(f"Mask_Head.mask_{part}" for part in ("conv4", "conv5", "fc")))
    for part in ("weight", "bias"):
        plain[f"Mask_Head.conv_fcn.7.{part}"] = empty(256)
    plain["Mask_Head.conv_fcn.6.weight"] = empty(256, 256, 3, 3)
    cfg, found = convert(plain, "panet")
    assert cfg.mask_branch is None
    assert found.sources["mask_head.convs.2.conv.weight"] == "Mask_Head.conv_fcn.6.weight"


def test_levels_are_not_confused():
    """The pyramid's modules are numbered from its coarsest level, the path's from the finest."""
    _, found = convert(released(), "panet")
    body = "Conv_Body."
    for ours, theirs in {
        "neck.lateral.3.conv.weight": "conv_top.0.weight",
        "neck.lateral.2.conv.weight": "topdown_lateral_modules.0.conv_lateral.0.weight",
        "neck.lateral.0.norm.bias": "topdown_lateral_modules.2.conv_lateral.1.bias",
        "neck.output.3.conv.weight": "posthoc_modules.0.0.weight",
        "neck.output.0.conv.weight": "posthoc_modules.3.0.weight",
        "path.down.0.conv.bias": "panet_buttomup_conv1_modules.0.0.bias",
        "path.output.2.norm.weight": "panet_buttomup_conv2_modules.2.1.weight",
    }.items():
        assert found.sources[ours] == body + theirs


@pytest.mark.parametrize("name", ["panet_r50_gn_mask", "panet_r50_nogn_2fc"])
def test_names_lead_back(name):
    """All but the rows of the background, which ours does not have."""
    state = released(name)
    cfg, found = convert(state, "panet")
    rules = ORIGINS["panet"].rules(cfg)
    kept = {k: v for k, v in found.state.items() if not re.match(r"box_head\.re|mask_head\.cl", k)}
    back = engine.invert(rules, kept)
    missing = {key.rsplit(".", 1)[0] for key in state.keys() - back.keys()}
    assert missing == {"Box_Outs.bbox_pred", "Mask_Outs.classify"}
    assert back.keys() <= state.keys()


def test_background_moves_to_the_end():
    state = with_classes(released(), 2, ROWS)
    state["Box_Outs.cls_score.bias"] = torch.tensor([9.0, 1.0, 2.0])
    state["Box_Outs.bbox_pred.bias"] = torch.arange(12.0)
    state["Mask_Outs.classify.bias"] = torch.tensor([9.0, 1.0, 2.0])
    _, found = convert(state, "panet")
    assert found.state["box_head.classify.bias"].tolist() == [1, 2, 9]
    assert found.state["box_head.regress.bias"].tolist() == list(range(4, 12))
    assert found.state["mask_head.class_logits.bias"].tolist() == [1, 2]


def test_openmmlabs_neck():
    state = state_of("mmdet_maskrcnn_r50_pafpn")
    cfg, found = convert(state, "mmdet")
    assert (cfg.path, cfg.fusion, cfg.mask_branch, cfg.box_head) == ("sum", None, None, "2fc")
    assert found.sources["path.down.1.conv.bias"] == "neck.downsample_convs.1.conv.bias"
    back = engine.invert(ORIGINS["mmdet"].rules(cfg), found.state)
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert back.keys() == state.keys() - counters


def test_openmmlabs_neck_with_another_depth_classes_and_norm():
    state = deepen(state_of("mmdet_maskrcnn_r50_pafpn"), "backbone.layer3.", 23)
    state = with_classes(state, 3, MMDET_ROWS)
    normed = {}
    for key, value in state.items():
        if re.match(r"neck\..*\.conv\.bias", key):
            for part in ("weight", "bias"):
                normed[key.replace(".conv.bias", f".gn.{part}")] = value
        else:
            normed[key] = value
    cfg, found = convert(normed, "mmdet")
    assert (cfg.backbone, cfg.num_classes) == ("resnet101", 3)
    assert (cfg.neck_norm, cfg.head_norm) == ("group", None)
    assert "path.down.0.conv.bias" not in found.state


def test_a_plain_mask_rcnn_is_no_panet():
    with pytest.raises(ConversionError, match=r"path\.down"):
        convert(state_of("mmdet_maskrcnn_r50_fpn"), "mmdet")
    with pytest.raises(ConversionError, match="no backbone of a Mask R-CNN"):
        convert(state_of("mmdet_maskrcnn_r50_fpn"), "panet")
