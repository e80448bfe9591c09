"""BlendMask's converter: every variant goes into AdelaiDet's names and back."""

from typing import Any

import pytest
import torch

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.errors import ConversionError
from pixelwise.systems import create

SMALL = {
    "num_classes": 5,
    "channels": 32,
    "backbone": "resnet50",
    "bottom_width": 8,
    "attention_side": 3,
    "backbone_style": "caffe",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_base": {"bases": 1, "attention_side": 7, "num_classes": 1},
    "550": {"levels": 4, "head_convs": 0, "shared_convs": 3, "bottom_convs": 2},
    "real_time": {"levels": 3, "backbone_norm": "sync", "head_convs": 0, "shared_convs": 3},
    "resnet101": {"backbone": "resnet101", "bottom_convs": 1, "head_convs": 2},
    "grey": {"in_channels": 1, "bases": 9, "bottom_convs": 4},
}
FIELDS = (
    "num_classes",
    "in_channels",
    "backbone",
    "backbone_norm",
    "channels",
    "levels",
    "head_convs",
    "shared_convs",
    "bottom_convs",
    "bottom_width",
    "bases",
    "attention_side",
)


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip(name: str) -> None:
    torch.manual_seed(0)
    net = create("blendmask", **{**SMALL, **VARIANTS[name]})
    state = net.state_dict()
    theirs = invert(origins("blendmask")["adelaidet"].rules(net.cfg), state)
    assert len(theirs) == len(state)
    imported = import_checkpoint(theirs, origin="adelaidet", name="blendmask")
    ours: Any = imported.system
    for field in FIELDS:
        assert getattr(ours.cfg, field) == getattr(net.cfg, field), field
    back = ours.state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())
    assert imported.input.channel_order == "bgr"
    sides = {5: 800, 4: 550, 3: 512}
    assert imported.input.resize.short_side == sides[net.cfg.levels]


def test_the_background_moves_from_the_front_to_the_end() -> None:
    net = create("blendmask", **SMALL)
    theirs = invert(origins("blendmask")["adelaidet"].rules(net.cfg), net.state_dict())
    ours, stored = net.semantic[2].bias, theirs["basis_module.seg_head.6.bias"]
    torch.nn.init.normal_(ours)
    theirs = invert(origins("blendmask")["adelaidet"].rules(net.cfg), net.state_dict())
    stored = theirs["basis_module.seg_head.6.bias"]
    assert stored[0] == ours[-1]
    assert torch.equal(stored[1:], ours[:-1])


def test_a_checkpoint_of_something_else_is_refused() -> None:
    with pytest.raises((ConversionError, KeyError)):
        import_checkpoint(
            {"backbone.conv1.weight": torch.zeros(1)}, origin="adelaidet", name="blendmask"
        )
