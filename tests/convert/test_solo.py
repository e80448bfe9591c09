"""SOLO's converters: every variant goes into the origin's names and back."""

import pytest
import torch

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.errors import ConversionError
from pixelwise.spec import DETECTION_RGB, SOLO_LIGHT_RGB
from pixelwise.systems import create

SMALL = {"num_classes": 5, "channels": 16, "head_width": 8, "head_convs": 2, "backbone": "resnet18"}
VARIANTS = {
    "full": {},
    "full_grids": {"grids": (9, 8, 7, 6, 5), "num_classes": 1, "head_convs": 3},
    "full_blind": {"with_coords": False},
    "decoupled": {"form": "decoupled"},
    "decoupled_r50": {"form": "decoupled", "backbone": "resnet50", "grids": (6, 5, 4, 3, 2)},
    "light": {"form": "light", "head_convs": 4},
    "light_grey": {"form": "light", "in_channels": 1},
    "dynamic": {"form": "dynamic", "kernel_width": 24},
    "dynamic_r34": {"form": "dynamic", "backbone": "resnet34", "kernel_width": 8},
}
PUBLISHED = {"full": "solo", "decoupled": "decoupled_solo", "light": "decoupled_solo_light"}


@pytest.mark.parametrize("origin", ["mmdet", "solo"])
@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip(origin: str, name: str) -> None:
    torch.manual_seed(0)
    net = create("solo", **{**SMALL, **VARIANTS[name]})
    state = net.state_dict()
    entry = origins("solo")[origin]
    theirs = invert(entry.rules(net.cfg), state)
    assert len(theirs) == len(state)
    assert not set(theirs) & {key for key in state if key.startswith(("categories", "masks"))}
    imported = import_checkpoint(theirs, origin=origin, name="solo")
    ours = imported.system
    for field in ("form", "backbone", "grids", "num_classes", "head_width", "head_convs"):
        if not (field == "grids" and net.cfg.form == "dynamic"):
            assert getattr(ours.cfg, field) == getattr(net.cfg, field), field
    assert ours.cfg.with_coords == net.cfg.with_coords
    back = ours.state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())
    light = net.cfg.form == "light"
    assert imported.input == (SOLO_LIGHT_RGB if light else DETECTION_RGB)


@pytest.mark.parametrize("form", PUBLISHED)
def test_scale_ranges_are_those_published_with_the_form(form: str) -> None:
    """The name of the row does not matter: what the shapes say does."""
    net = create("solo", **SMALL, form=form)
    theirs = invert(origins("solo")["mmdet"].rules(net.cfg), net.state_dict())
    found = import_checkpoint(theirs, origin="mmdet", name="decoupled_solo_light").system
    assert found.cfg.scale_ranges == create_config(PUBLISHED[form]).scale_ranges


def create_config(name: str):
    with torch.device("meta"):
        return create(name).cfg


def test_a_checkpoint_of_something_else_is_refused() -> None:
    with pytest.raises(ConversionError, match="mask branch of SOLO"):
        import_checkpoint({"backbone.conv1.weight": torch.zeros(1)}, origin="mmdet", name="solo")
