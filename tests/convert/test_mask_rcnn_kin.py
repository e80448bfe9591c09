"""What the converters of Mask R-CNN, PANet and Mask Scoring R-CNN promise alike."""

from typing import Any

import pytest
import torch

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert import rules as engine
from pixelwise.systems import create

SMALL: dict[str, Any] = {
    "num_classes": 2,
    "backbone": "resnet18",
    "channels": 16,
    "proposals": (1000, 1000),
    "score_thresh": 0.0,
    "detections_per_image": 5,
}
OPENMMLAB: dict[str, Any] = {
    "path": "sum",
    "neck_norm": None,
    "fusion": None,
    "box_head": "2fc",
    "mask_branch": None,
    "head_norm": None,
}


@pytest.mark.parametrize(
    ("name", "origin", "changes"),
    [
        ("mask_rcnn", "mmdet", {"backbone_style": "pytorch"}),
        ("mask_rcnn", "detectron2", {"backbone_style": "caffe"}),
        ("panet", "mmdet", {"backbone_style": "pytorch", **OPENMMLAB}),
        ("mask_scoring_rcnn", "mmdet", {"backbone_style": "caffe", "iou_pool": "mean"}),
    ],
)
def test_there_and_back_with_values(name, origin, changes):
    """A small network of ours under another project's names computes what it computed."""
    torch.manual_seed(0)
    net = create(name, **SMALL, **changes, conventions=origin).eval()
    rules = origins(name)[origin].rules
    theirs = engine.invert(rules(net.cfg) if callable(rules) else rules, net.state_dict())
    given = {key: SMALL[key] for key in ("score_thresh", "detections_per_image")}
    again = import_checkpoint(theirs, origin=origin, name=name, **given).system
    assert again.cfg == net.cfg
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = net(image)
        assert found.valid.any()
        for a, b in zip(found, again(image), strict=True):
            assert torch.equal(a, b)
