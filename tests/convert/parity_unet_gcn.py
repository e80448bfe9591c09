"""How the fixtures of U-Net and GCN are reproduced; `test_parity_semantic` runs these."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from pixelwise.convert import Imported, import_checkpoint, origins
from pixelwise.convert.rules import invert
from tests.fixtures import Fixture, fill_state

TOLERANCE = 1e-4  # of the stored maximum


def run_unet(fixture: Fixture) -> None:
    found = re.search(r"_tu-(\w+?)_cls", fixture.name)
    settings: dict[str, Any] = {"backbone": found[1]} if found else {}
    imported = _import(fixture, "unet", **settings)
    system: Any = imported.system
    for tag, images in fixture.inputs().items():
        with torch.no_grad():
            logits = system(images).logits
            stages = {"decode": logits, "logits": logits}
            if system.auxiliary is not None:
                stages["aux"] = system.auxiliary(system.expand(images)[-2])
        _check_all(fixture, stages, tag)


def run_gcn(fixture: Fixture) -> None:
    system = _import(fixture, "gcn").system
    for tag, images in fixture.inputs().items():
        with torch.no_grad():
            _check_all(fixture, {"logits": system(images).logits}, tag)


def _import(fixture: Fixture, name: str, **settings: Any) -> Imported:
    """The converted system; nothing may be lost on the way, nor on the way back."""
    origin = fixture.name.split("_")[0]
    state = fill_state(fixture.meta)
    imported = import_checkpoint(state, origin=origin, name=name, **settings)
    dropped = imported.translation.dropped
    lost = sum(state[key].numel() for key in dropped if not key.endswith("num_batches_tracked"))
    assert _count(imported.system) + lost == fixture.meta["parameters"]
    entry = origins(name)[origin]
    rules = entry.rules(imported.system.cfg) if callable(entry.rules) else entry.rules
    back = invert(rules, imported.system.state_dict())
    assert set(back) == set(state) - set(dropped)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in back.items())
    return imported


def _count(system: nn.Module) -> int:
    return sum(p.numel() for p in system.parameters())


def _check_all(fixture: Fixture, stages: dict[str, Tensor], tag: str) -> None:
    """Every stored output of this input (their names may begin or end with its tag) is compared."""
    wanted = [key for key in fixture.meta["outputs"] if tag in key]
    assert wanted, f"{fixture.name} stores nothing for the input {tag!r}"
    for key in wanted:
        stage = key.replace(tag, "").strip("_") if tag else key
        assert stage in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
        described = fixture.meta["outputs"][key]
        fixture.compare(
            key, stages[stage], rtol=TOLERANCE * described["max_abs"] / described["std"]
        )
