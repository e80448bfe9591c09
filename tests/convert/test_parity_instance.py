"""Our networks, with converted weights, compute what the originals compute.

Any folder of fixtures works (`PIXELWISE_PARITY`): which system it is follows from a fixture's name,
the settings from its json, everything else from the shapes of its state dict.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pixelwise import convert
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.ops import rle
from pixelwise.systems.mask_rcnn import MaskRCNN
from pixelwise.types import ImageSize
from tests.convert import (
    parity_blendmask,
    parity_embedding,
    parity_fcis,
    parity_fcos,
    parity_panet,
    parity_polarmask,
    parity_retinanet,
    parity_solo,
    parity_yolact,
)
from tests.fixtures import Fixture, fill_state, fixture_params, load_fixture, sample

ELSEWHERE = ("ops_",)  # tests/ops
# Fixtures that are checked by one function each; those of whole detectors have several tests below.
RUNNERS = {
    **parity_blendmask.RUNNERS,
    **parity_embedding.RUNNERS,
    **parity_fcis.RUNNERS,
    **parity_fcos.RUNNERS,
    **parity_panet.RUNNERS,
    **parity_polarmask.RUNNERS,
    **parity_retinanet.RUNNERS,
    **parity_solo.RUNNERS,
    **parity_yolact.RUNNERS,
}
# Pattern of the name → origin and system; the first that matches counts.
SYSTEMS = {
    r"mmdet_maskrcnn_.*pafpn": ("mmdet", "panet"),
    r"mmdet_msrcnn_": ("mmdet", "mask_scoring_rcnn"),
    r"torchvision_maskrcnn_": ("torchvision", "mask_rcnn"),
    r"mmdet_maskrcnn_": ("mmdet", "mask_rcnn"),
    r"detectron2_maskrcnn_": ("detectron2", "mask_rcnn"),
}


@dataclass(frozen=True)
class Upstream:
    """How one project lays out what the fixture stores.

    Args:
        background_first: class 0 is the background, with a box and a mask of its own.
        settings: from the fixture's configuration to our config.
        frozen_has_parameters: whether its frozen norms count as parameters.
    """

    background_first: bool
    settings: Callable
    frozen_has_parameters: bool


def _torchvision_settings(given):
    limits = given["inference"]
    assert limits["rpn_nms_thresh"] == 0.7
    eps = re.search(r"(?:eps|BatchNorm2d eps) (\S+?)[\s,)]", given["backbone"] + " ")
    return {
        "conventions": "torchvision_v1" if eps and float(eps[1]) == 0 else "torchvision",
        "pre_nms": (2000, limits["rpn_pre_nms_top_n"]),
        "proposals": (2000, limits["rpn_post_nms_top_n"]),
        "score_thresh": limits["box_score_thresh"],
        "iou_thresh": limits["box_nms_thresh"],
        "detections_per_image": limits["box_detections_per_img"],
    }


def _mmdet_settings(given):
    rpn, rcnn, anchors = given["rpn_test"], given["rcnn_test"], given["anchors"]
    assert rpn["nms"]["iou_threshold"] == 0.7
    strides = [s[0] for s in anchors["strides"]]
    if len(strides) == 1:
        sizes = tuple(scale * strides[0] for scale in anchors["scales"])
    else:
        sizes = tuple(anchors["scales"][0] * stride for stride in strides)
    return {
        "backbone_style": given["backbone"]["style"],
        "anchor_sizes": sizes,
        "anchor_ratios": tuple(anchors["ratios"]),
        "pre_nms": (2000, rpn["nms_pre"]),
        "proposals": (1000, rpn["max_per_img"]),
        "score_thresh": rcnn["score_thr"],
        "iou_thresh": rcnn["nms"]["iou_threshold"],
        "detections_per_image": rcnn["max_per_img"],
    }


def _detectron2_settings(given):
    test, anchors = given["test"], given["anchors"]
    assert test["rpn_nms"] == 0.7
    return {
        "backbone_style": "caffe" if given["stride_in_1x1"] else "pytorch",
        "anchor_sizes": tuple(size for level in anchors["sizes"] for size in level),
        "anchor_ratios": tuple(anchors["ratios"][0]),
        "pre_nms": (2000, test["rpn_pre"]),
        "proposals": (1000, test["rpn_post"]),
        "score_thresh": test["score"],
        "iou_thresh": test["nms"],
        "detections_per_image": test["max_det"],
    }


UPSTREAMS = {
    "torchvision": Upstream(True, _torchvision_settings, False),
    "mmdet": Upstream(False, _mmdet_settings, True),
    "detectron2": Upstream(False, _detectron2_settings, False),
}


def system_of(name):
    return next((found for pattern, found in SYSTEMS.items() if re.match(pattern, name)), None)


@pytest.mark.parametrize("path", fixture_params("instance"))
def test_every_fixture_has_its_place(path):
    fixture = load_fixture(path)
    if fixture.kind == "semantic" or fixture.name.startswith(ELSEWHERE):
        return
    runners = [run for prefix, run in RUNNERS.items() if fixture.name.startswith(prefix)]
    assert len(runners) + bool(system_of(fixture.name)) == 1, (
        f"no rule says which system {fixture.name} belongs to"
    )
    for run in runners:
        run(fixture)


@dataclass
class Case:
    fixture: Fixture
    origin: str
    net: torch.nn.Module
    image: torch.Tensor
    stages: dict

    @property
    def upstream(self):
        return UPSTREAMS[self.origin]


@pytest.fixture(
    scope="module",
    params=[*fixture_params("instance", "*maskrcnn*"), *fixture_params("instance", "*_msrcnn_*")],
)
def case(request):
    """One converted network and its stages; all tests of a fixture run before the next."""
    fixture = load_fixture(request.param)
    origin, name = system_of(fixture.name)
    settings = UPSTREAMS[origin].settings(fixture.meta["configuration"])
    if name != "mask_rcnn":  # the others have the published ratios
        assert settings.pop("anchor_ratios") == (0.5, 1.0, 2.0)
    net = convert.load(fill_state(fixture.meta), origin=origin, name=name, **settings)
    image = fixture.inputs()[""]
    with torch.inference_mode():
        stages = compute(net, image, fixture.tensor("proposals"))
        if name == "mask_scoring_rcnn":
            stages |= judge(net, stages, fixture.tensor("mask_labels"))
    return Case(fixture, origin, net, image, stages)


def compute(net, image, boxes):
    """Every stage by a name of ours; the heads run on fixed proposals."""
    features = net.backbone(image)
    pyramid = net.pyramid(image)
    maps = net.rpn.predict(pyramid)
    size = tuple(image.shape[-2:])
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
    is_mask_rcnn = isinstance(net, MaskRCNN)
    box_features = (net.box_features if is_mask_rcnn else net.box_pool)(pyramid, rois)
    mask_features = (net.mask_features if is_mask_rcnn else net.mask_pool)(pyramid, rois)
    output = net.box_head.predict(box_features)
    return {
        "backbone": features,
        "pyramid": pyramid,
        "rpn_logits": maps.logits,
        "rpn_deltas": maps.deltas,
        "anchors": torch.cat(net.rpn.anchors.place(maps.logits, size)),
        "box_features": box_features,
        "mask_features": mask_features,
        "box_hidden": net.box_head.trunk(box_features),
        "mask_hidden": net.mask_head.convs(mask_features),
        "logits": output.logits,
        "deltas": output.deltas,
        "masks": net.mask_head.predict(mask_features),
        "proposals": net.rpn.decode(maps, size),
        "raw": net(image),
    }


def judge(net, stages, labels):
    """What a Mask Scoring R-CNN says about the masks of these classes."""
    selected = net.mask_head.of_class(stages["masks"], labels)
    return {
        "mask_labels": labels,
        "mask_selected_logits": selected,
        "mask_iou": net.iou_head.predict(stages["mask_features"], selected),
    }


def stage(found, key):
    """Our tensor for one of the fixture's names, in the upstream's layout; None: not a stage."""
    stages, first = found.stages, found.upstream.background_first
    patterns = {
        r"backbone_(\d)": lambda i: stages["backbone"][i],
        r"feature_res4|feature_res5": lambda: stages["backbone"][-1],
        r"fpn_(\d)": lambda i: stages["pyramid"][i],
        r"fpn_pool": lambda: stages["pyramid"][-1],
        r"feature_p(\d)": lambda i: stages["pyramid"][i - 2],
        r"rpn_objectness_(\d)": lambda i: stages["rpn_logits"][i],
        r"rpn_deltas_(\d)": lambda i: stages["rpn_deltas"][i],
        r"anchors": lambda: stages["anchors"],
        r"box_roi_features|res5_features": lambda: stages["box_features"],
        r"mask_roi_features": lambda: stages["mask_features"],
        r"box_head": lambda: stages["box_hidden"],
        r"mask_head": lambda: stages["mask_hidden"],
        r"box_logits": lambda: stages["logits"].roll(1, 1) if first else stages["logits"],
        r"box_deltas": lambda: with_background(stages["deltas"], 4, first),
        r"mask_logits": lambda: with_background(stages["masks"], 1, first),
    }
    if key in JUDGED:
        return stages[key].float()
    for pattern, get in patterns.items():
        if match := re.fullmatch(pattern, key):
            return get(*(int(g) for g in match.groups()))
    return None


JUDGED = ("mask_labels", "mask_selected_logits", "mask_iou")


def with_background(values, channels, first):
    """NaN for what the upstream predicts of its background class, and we do not."""
    if not first:
        return values
    shape = (len(values), channels, *values.shape[2:])
    return torch.cat([values.new_full(shape, torch.nan), values], dim=1)


def compare(fixture, key, actual):
    """As `Fixture.compare`, except that a NaN of ours stands for a value that we do not compute."""
    assert tuple(actual.shape) == fixture.shape(key), (key, actual.shape, fixture.shape(key))
    limit, stored = fixture.limit(key), fixture.arrays[key]
    ours = actual.numpy() if limit is None else sample(actual, limit)
    assert ours.shape == stored.shape
    known = ~np.isnan(ours)
    assert known.mean() > 0.4, (key, "mostly NaN")
    worst, scale = np.abs(ours - stored)[known].max(), np.abs(stored).max()
    assert worst <= 1e-4 * scale, (key, worst / scale)


RESULTS = re.compile(r"det_.*|rpn_(proposals|scores|logits)_top50|proposals")


def test_stages(case):
    compared = []
    for key in case.fixture.arrays:
        if RESULTS.fullmatch(key):
            continue
        ours = stage(case, key)
        assert ours is not None, f"{case.fixture.name} stores {key!r}: no stage that we know"
        compare(case.fixture, key, ours)
        compared.append(key)
    assert len(compared) >= 7


def test_parameter_count(case):
    cfg = case.net.cfg
    ours = sum(p.numel() for p in case.net.parameters())
    if case.upstream.frozen_has_parameters:
        frozen = [m for m in case.net.modules() if isinstance(m, FrozenBatchNorm)]
        ours += sum(m.weight.numel() + m.bias.numel() for m in frozen)
    if case.upstream.background_first:  # its background has a box and a mask
        ours += 4 * (case.net.box_head.regress.in_features + 1)
        ours += 0 if getattr(cfg, "class_agnostic_masks", False) else cfg.channels + 1
    assert ours == case.fixture.meta["parameters"]


def test_proposals(case):
    fixture = case.fixture
    if not fixture.meta["rpn_proposals_stable"]:
        pytest.skip("rounding decides which proposals survive, says the fixture")
    boxes, logits, _ = case.stages["proposals"]
    wanted = fixture.tensor("rpn_proposals_top50")
    assert (boxes[0, : len(wanted)] - wanted).abs().max() <= 0.05
    if "rpn_logits_top50" in fixture.arrays:
        stored = fixture.tensor("rpn_logits_top50")
        assert (logits[0, : len(wanted)] - stored).abs().max() <= 1e-4 * stored.abs().max()
    if "rpn_scores_top50" in fixture.arrays:
        stored = fixture.tensor("rpn_scores_top50")
        assert (logits[0, : len(wanted)].sigmoid() - stored).abs().max() <= 1e-4


def test_detections(case):
    fixture = case.fixture
    if not fixture.meta["detections_stable"]:
        pytest.skip("rounding decides which detections survive, says the fixture")
    raw = case.stages["raw"]
    valid = raw.valid[0]
    boxes, labels = raw.boxes[0, valid], raw.labels[0, valid]
    # A Mask Scoring R-CNN's detections stay in the order of their class scores.
    scores = getattr(raw, "mask_scores", raw.scores)[0, valid]
    with_area = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    (prediction,) = case.net.decode(raw, [ImageSize.same(tuple(case.image.shape[-2:]))])
    assert torch.equal(prediction.boxes, boxes[with_area])
    areas = boxes.new_zeros(len(boxes))
    areas[with_area] = torch.as_tensor(rle.areas(prediction.masks)).float()
    wanted = fixture.tensor("det_boxes")
    # Boxes that clipping left without an area are still detections to some of the projects.
    kept = torch.ones_like(with_area) if len(wanted) == len(boxes) else with_area
    assert int(kept.sum()) == len(wanted)
    first = int(case.upstream.background_first)
    assert torch.equal(labels[kept] + first, fixture.tensor("det_labels").long())
    assert (boxes[kept] - wanted).abs().max() <= 0.05
    assert (scores[kept] - fixture.tensor("det_scores")).abs().max() <= 1e-4
    probs = raw.mask_logits[0, valid][kept].sigmoid()
    for key in ("det_masks", "det_mask_28"):
        if key in fixture.arrays:
            compare(fixture, key, probs.reshape(fixture.shape(key)))
    for key in ("det_mask_areas", "det_mask_areas_float64"):
        if key in fixture.arrays:
            stored = fixture.tensor(key)
            assert ((areas[kept] - stored).abs() <= (0.01 * stored).clamp(min=3)).all()
