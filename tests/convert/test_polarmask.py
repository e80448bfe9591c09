"""Variants of the released PolarMasks: other depths, classes, rays, widths, levels."""

from typing import Any

import pytest
import torch

from pixelwise.convert import import_checkpoint
from pixelwise.convert.polarmask import ORIGINS
from pixelwise.convert.rules import Rule, invert, translate
from pixelwise.errors import ConversionError
from pixelwise.systems import SYSTEMS, create
from pixelwise.systems.polarmask import PolarMask, PolarMaskConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "resnet50": {},
    "resnet101": {"backbone": "resnet101", "rays": 24},
    "resnet18": {"backbone": "resnet18", "num_classes": 3},
    "resnext101": {"backbone": "resnext101_64x4d", "backbone_style": "pytorch"},
    "head": {"channels": 64, "head_convs": 2, "in_channels": 1, "rays": 72},
    "four_levels": {"strides": (8, 16, 32, 64), "range_bounds": (64, 128, 256)},
    "three_levels": {"strides": (8, 16, 32), "range_bounds": (64, 128)},
}


def rules() -> list[Rule]:
    found = ORIGINS["polarmask"].rules
    assert not callable(found)
    return list(found)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_from_its_shapes(name: str) -> None:
    with torch.device("meta"):
        net = create("polarmask", **{"channels": 32, **VARIANTS[name]})
        state = net.state_dict()
        theirs = invert(rules(), state)
        assert len(theirs) == len(state)
        assert theirs["bbox_head.scales_mask.0.scale"].shape == ()
        found = ORIGINS["polarmask"].infer(theirs)
        style = found.pop("backbone_style")
        assert style == (net.cfg.backbone_style or "caffe")
        assert found == {key: getattr(net.cfg, key) for key in found}
        again = PolarMask(PolarMaskConfig(**found))
        moved = translate(rules(), theirs, again.state_dict())
    assert moved.state.keys() == state.keys()
    assert not moved.dropped


def test_values_come_back_and_the_row_is_fed_alike() -> None:
    torch.manual_seed(0)
    net: Any = create("polarmask", backbone="resnet18", channels=32, head_convs=1, rays=12)
    with torch.no_grad():
        for i, scale in enumerate(net.head.scales["rays"]):
            scale.fill_(i + 1.0)
    theirs = invert(rules(), net.state_dict())
    assert [theirs[f"bbox_head.scales_mask.{i}.scale"].item() for i in range(5)] == [1, 2, 3, 4, 5]
    done = import_checkpoint(theirs, origin="polarmask", name="polarmask")
    for key, value in done.system.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key
    assert done.input == SYSTEMS["polarmask"].input
    resnext = ORIGINS["polarmask"].input
    assert callable(resnext)
    row = SYSTEMS["polarmask_resnext101_64x4d"]
    assert resnext(row.config) == row.input


def test_what_does_not_belong_is_named() -> None:
    net = create("polarmask", backbone="resnet18", channels=32, head_convs=1)
    theirs = invert(rules(), net.state_dict())
    theirs["bbox_head.polar_extra.weight"] = torch.zeros(1)
    with pytest.raises(ConversionError, match="polar_extra"):
        import_checkpoint(theirs, origin="polarmask", name="polarmask")
