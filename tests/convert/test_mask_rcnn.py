"""Variants of the released checkpoints, made from real key lists by what distinguishes them."""

import re

import pytest
import torch

from pixelwise.convert import rules as engine
from pixelwise.convert.mask_rcnn import ORIGINS
from pixelwise.errors import ConversionError
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from tests.convert.detector_states import deepen, empty, state_of, widen, with_classes


def convert(state, origin, **changes):
    entry = ORIGINS[origin]
    cfg = MaskRCNNConfig(**{**entry.infer(state), **changes})
    with torch.device("meta"):
        net = MaskRCNN(cfg)
    rules = entry.rules(cfg) if callable(entry.rules) else entry.rules
    return cfg, net, engine.translate(rules, state, net.state_dict()), rules


def mmdet_with_group_norm(state):
    result = {}
    for key, value in state.items():
        if key.startswith("backbone.") and key.split(".")[-1].startswith(("running", "num_")):
            continue
        renamed = re.sub(r"\.bn(\d)\.", r".gn\1.", key)
        if re.match(r"(neck|roi_head\.mask_head\.convs).*\.conv\.bias", key):
            renamed = renamed.replace(".conv.bias", ".gn.bias")
            result[renamed.replace("bias", "weight")] = value
        if key.startswith("roi_head.bbox_head.shared_fcs.1."):
            continue
        result[renamed] = value
    for i in range(4):
        prefix = f"roi_head.bbox_head.shared_convs.{i}."
        result[prefix + "conv.weight"] = empty(256, 256, 3, 3)
        result[prefix + "gn.weight"] = result[prefix + "gn.bias"] = empty(256)
    return result


def detectron2_with_group_norm(state):
    result = {}
    for key, value in state.items():
        if key.split(".")[-1].startswith("running"):
            continue
        if re.match(r"(backbone\.fpn|roi_heads\.mask_head\.mask_fcn).*bias", key):
            result[key.replace("bias", "norm.bias")] = value
            result[key.replace("bias", "norm.weight")] = value
        elif not key.startswith("roi_heads.box_head.fc2"):
            result[key] = value
    for i in range(4):
        prefix = f"roi_heads.box_head.conv{i + 1}."
        result[prefix + "weight"] = empty(256, 256, 3, 3)
        result[prefix + "norm.weight"] = result[prefix + "norm.bias"] = empty(256)
    return result


DETECTRON2_ROWS = {
    "roi_heads.box_predictor.cls_score.": (1, 1),
    "roi_heads.box_predictor.bbox_pred.": (4, 0),
    "roi_heads.mask_head.predictor.": (1, 0),
}
TORCHVISION_ROWS = {
    "roi_heads.box_predictor.cls_score.": (1, 1),
    "roi_heads.box_predictor.bbox_pred.": (4, 4),
    "roi_heads.mask_predictor.mask_fcn_logits.": (1, 1),
}


def parameters(net, *, with_frozen):
    count = sum(p.numel() for p in net.parameters())
    if with_frozen:
        frozen = [m for m in net.modules() if isinstance(m, FrozenBatchNorm)]
        count += sum(m.weight.numel() + m.bias.numel() for m in frozen)
    return count


def test_torchvision_resnet101():
    state = deepen(state_of("torchvision_maskrcnn_r50_fpn"), "backbone.body.layer3.", 23)
    cfg, net, _, _ = convert(state, "torchvision")
    assert (cfg.backbone, cfg.backbone_norm, cfg.num_classes) == ("resnet101", "frozen", 90)
    assert parameters(net, with_frozen=False) + 4 * 1025 + 257 == 63_341_297


def test_torchvision_key_names_before_0_13():
    state = state_of("torchvision_maskrcnn_r50_fpn")
    old = {}
    for key, value in state.items():
        name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if match := re.search(r"mask_head\.(\d)\.0\.", name):
            name = name.replace(match[0], f"mask_head.mask_fcn{int(match[1]) + 1}.")
        old[name] = value
    assert len(set(old) - set(state)) == 16 + 2 + 8
    new, before = convert(state, "torchvision")[2], convert(old, "torchvision")[2]
    assert new.state.keys() == before.state.keys()


def test_torchvision_background_moves_to_the_end():
    """Row 0 of the classes becomes the last; boxes and masks of the background go."""
    state = with_classes(state_of("torchvision_maskrcnn_r50_fpn"), 2, TORCHVISION_ROWS)
    prefix = "roi_heads.box_predictor."
    state[prefix + "cls_score.bias"] = torch.tensor([9.0, 1.0, 2.0])
    state[prefix + "bbox_pred.bias"] = torch.arange(12.0)
    state["roi_heads.mask_predictor.mask_fcn_logits.bias"] = torch.tensor([9.0, 1.0, 2.0])
    cfg, _, found, _ = convert(state, "torchvision")
    assert cfg.num_classes == 2
    assert found.state["box_head.classify.bias"].tolist() == [1, 2, 9]
    assert found.state["box_head.regress.bias"].tolist() == list(range(4, 12))
    assert found.state["mask_head.class_logits.bias"].tolist() == [1, 2]


def test_torchvision_v2_is_recognised():
    cfg = convert(state_of("torchvision_maskrcnn_r50_fpn_v2"), "torchvision")[0]
    assert (cfg.box_head, cfg.head_norm, cfg.backbone_norm) == ("4conv1fc", "batch", "batch")
    assert cfg.rpn_convs == 2


def test_mmdet_resnext101():
    state = deepen(state_of("mmdet_maskrcnn_r50_fpn"), "backbone.layer3.", 23)
    cfg, net, _, _ = convert(widen(state, 32, 4, first=1), "mmdet")
    assert (cfg.backbone, cfg.backbone_style) == ("resnext101_32x4d", "pytorch")
    assert parameters(net, with_frozen=True) == 63_017_008


def test_mmdet_with_group_norm_everywhere():
    cfg, net, _, _ = convert(mmdet_with_group_norm(state_of("mmdet_maskrcnn_r50_fpn")), "mmdet")
    assert (cfg.backbone_norm, cfg.head_norm, cfg.box_head) == ("group", "group", "4conv1fc")
    assert parameters(net, with_frozen=True) == 45_711_152


def test_mmdet_c4():
    cfg, net, _, _ = convert(state_of("mmdet_maskrcnn_r50_caffe_c4"), "mmdet")
    assert (cfg.neck, cfg.backbone, cfg.backbone_style) == ("c4", "resnet50", "caffe")
    assert (cfg.pre_nms, cfg.anchor_sizes) == ((12000, 6000), (32, 64, 128, 256, 512))
    assert parameters(net, with_frozen=True) == 35_962_732


def test_detectron2_resnext_and_group_norm_stride_in_the_3x3():
    state = state_of("detectron2_maskrcnn_r50_fpn")
    deep = deepen(state, "backbone.bottom_up.res4.", 23)
    assert convert(deep, "detectron2")[0].backbone == "resnet101"
    assert convert(deep, "detectron2")[0].backbone_style == "caffe"
    cfg = convert(widen(deep, 32, 8, first=2), "detectron2")[0]
    assert (cfg.backbone, cfg.backbone_style) == ("resnext101_32x8d", "pytorch")
    cfg = convert(detectron2_with_group_norm(state), "detectron2")[0]
    assert (cfg.backbone_norm, cfg.head_norm, cfg.backbone_style) == ("group", "group", "pytorch")


def test_detectron2_class_counts_and_class_agnostic_masks():
    state = state_of("detectron2_maskrcnn_r50_fpn")
    few = with_classes(state, 5, DETECTRON2_ROWS)
    assert convert(few, "detectron2")[0].num_classes == 5
    shared = with_classes(few, 1, {"roi_heads.mask_head.predictor.": (1, 0)})
    cfg, _, found, _ = convert(shared, "detectron2")
    assert cfg.class_agnostic_masks
    assert found.state["mask_head.shared_logits.weight"].shape == (1, 256, 1, 1)
    # With one class there is no difference, and the rows belong to the class.
    one = convert(with_classes(state, 1, DETECTRON2_ROWS), "detectron2")[0]
    assert not one.class_agnostic_masks


def test_detectron2_dc5():
    state = {}
    for key, value in state_of("detectron2_maskrcnn_r50_fpn").items():
        if not key.startswith("backbone.fpn"):
            state[key.replace("backbone.bottom_up.", "backbone.")] = value
    rpn = "proposal_generator.rpn_head."
    state[rpn + "conv.weight"] = empty(2048, 2048, 3, 3)
    state[rpn + "conv.bias"] = empty(2048)
    for name, rows in (("objectness_logits", 15), ("anchor_deltas", 60)):
        state[f"{rpn}{name}.weight"] = empty(rows, 2048, 1, 1)
        state[f"{rpn}{name}.bias"] = empty(rows)
    state["roi_heads.box_head.fc1.weight"] = empty(1024, 2048 * 49)
    state["roi_heads.mask_head.mask_fcn1.weight"] = empty(256, 2048, 3, 3)
    cfg, net, _, _ = convert(state, "detectron2")
    assert cfg.neck == "dc5"
    assert net.backbone.strides == (16,)


def test_detectron2_zoo_files_carry_more_than_weights():
    state = state_of("detectron2_maskrcnn_r50_c4")
    state["pixel_mean"] = state["pixel_std"] = empty(3, 1, 1)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = empty(15, 4)
    cfg, _, found, _ = convert(state, "detectron2")
    assert cfg.neck == "c4"
    assert len(found.dropped) == 3


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("mmdet_maskrcnn_r50_fpn", "mmdet"),
        ("mmdet_maskrcnn_r50_caffe_c4", "mmdet"),
        ("detectron2_maskrcnn_r50_fpn", "detectron2"),
        ("detectron2_maskrcnn_r50_c4", "detectron2"),
    ],
)
def test_there_and_back(name, origin):
    state = state_of(name)
    _, _, found, rules = convert(state, origin)
    back = engine.invert(rules, found.state)
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert back.keys() == state.keys() - counters


def test_a_checkpoint_of_something_else_says_so():
    with pytest.raises(ConversionError, match="no backbone of a Mask R-CNN"):
        ORIGINS["mmdet"].infer({"encoder.layer1.0.conv1.weight": torch.zeros(1)})
    state = state_of("detectron2_maskrcnn_r50_fpn")
    state["roi_heads.keypoint_head.conv.weight"] = empty(1)
    with pytest.raises(ConversionError, match=r"keypoint_head\.conv\.weight"):
        convert(state, "detectron2")


@pytest.mark.parametrize(
    ("origin", "config", "order", "std"),
    [
        ("torchvision", {}, "rgb", (0.229, 0.224, 0.225)),
        ("mmdet", {"backbone_style": "pytorch"}, "rgb", (0.229, 0.224, 0.225)),
        ("mmdet", {"backbone_style": "caffe"}, "bgr", (1.0, 1.0, 1.0)),
        ("detectron2", {"backbone_style": "caffe"}, "bgr", (1.0, 1.0, 1.0)),
        ("detectron2", {"backbone": "resnext101_32x8d"}, "bgr", (57.375, 57.120, 58.395)),
    ],
)
def test_networks_are_fed_as_their_origin_feeds_them(origin, config, order, std):
    given = ORIGINS[origin].input
    spec = given(MaskRCNNConfig(**config)) if callable(given) else given
    assert (spec.channel_order, spec.std) == (order, std)
