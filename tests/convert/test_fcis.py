"""Variants of the released FCIS: other depths, classes, parts, anchors and box blocks."""

import pytest
import torch

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.fcis import ORIGINS
from pixelwise.convert.rules import invert, translate
from pixelwise.errors import ConversionError, UsageError
from pixelwise.spec import FCIS_BGR
from pixelwise.systems import create
from pixelwise.systems.fcis import FCIS, FCISConfig

SMALL = {"num_classes": 3, "parts": 3, "mask_side": 9, "width": 8, "rpn_width": 4}
VARIANTS = {
    "resnet50": {"backbone": "resnet50"},
    "resnet101": {"backbone": "resnet101"},
    "resnet152": {"backbone": "resnet152"},
    "resnet18": {"backbone": "resnet18"},
    "coco": {"backbone": "resnet50", "anchor_sizes": (64, 128, 256, 512), "num_classes": 80},
    "one_block": {"backbone": "resnet50", "box_blocks": 1},
    "seven_parts": {"backbone": "resnet50", "parts": 7, "mask_side": 21},
    "grey": {"backbone": "resnet50", "in_channels": 1},
}


def rules_of(cfg: FCISConfig):
    rules = ORIGINS["fcis"].rules
    return rules(cfg) if callable(rules) else rules


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_from_its_shapes(name: str) -> None:
    """On the meta device: keys and shapes are all that a converter reads."""
    changes = {"box_blocks": 2, "assembling": "pool", **SMALL, **VARIANTS[name]}
    with torch.device("meta"):
        net = create("fcis", **changes)
    theirs = invert(rules_of(net.cfg), net.state_dict())
    assert len(theirs) == len(net.state_dict())
    found = ORIGINS["fcis"].infer(theirs)
    with_small = len(net.cfg.anchor_sizes) == 4
    assert found.pop("with_ohem") is with_small
    assert found.pop("min_side_px") == (2.0 if with_small else 16.0)
    assert found == {key: getattr(net.cfg, key) for key in found}
    with torch.device("meta"):
        again = FCIS(FCISConfig(**found))
    moved = translate(rules_of(again.cfg), theirs, again.state_dict())
    assert moved.state.keys() == net.state_dict().keys()
    assert not moved.dropped


@pytest.mark.parametrize("numbered", [False, True])
def test_values_come_back_and_the_background_is_last(numbered: bool) -> None:
    torch.manual_seed(0)
    net = create("fcis", **SMALL, backbone="resnet101" if numbered else "resnet50")
    state = net.state_dict()
    theirs = invert(rules_of(net.cfg), state)
    last = "res4b22_branch2c.weight" if numbered else "res4f_branch2c.weight"
    block = 22 if numbered else 5
    assert torch.equal(theirs[last], state[f"backbone.layer3.{block}.conv3.weight"])
    ours, other = state["score_maps.class_maps.weight"], theirs["fcis_cls_seg.weight"]
    pair = 2 * 3 * 3  # both sides of a class: its rows stay together
    assert torch.equal(other[:pair], ours[-pair:])
    assert torch.equal(other[pair:], ours[:-pair])
    imported = import_checkpoint(theirs, origin="fcis", name="fcis")
    assert imported.input == FCIS_BGR
    assert imported.system.cfg.assembling == "pool"
    for key, value in imported.system.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_what_does_not_fit_is_an_error() -> None:
    with torch.device("meta"):
        net = create("fcis", **SMALL, backbone="resnet18")
    theirs = invert(rules_of(net.cfg), net.state_dict())
    with pytest.raises(ConversionError, match="fcis_bbox"):
        ORIGINS["fcis"].infer({k: v for k, v in theirs.items() if not k.startswith("fcis_bbox")})
    odd = theirs | {"fcis_bbox.weight": torch.empty(40, 8, 1, 1, device="meta")}
    with pytest.raises(ConversionError, match="40 box maps"):
        ORIGINS["fcis"].infer(odd)
    odd = theirs | {"fcis_cls_seg.weight": torch.empty(50, 8, 1, 1, device="meta")}
    with pytest.raises(ConversionError, match="50 class maps"):
        ORIGINS["fcis"].infer(odd)
    with pytest.raises(ConversionError, match="surprise"):
        translate(rules_of(net.cfg), theirs | {"surprise": torch.empty(1)}, net.state_dict())
    assert origins("rfcn") == {}
    with pytest.raises(UsageError, match="it has none yet"):
        import_checkpoint(theirs, origin="fcis", name="rfcn")
