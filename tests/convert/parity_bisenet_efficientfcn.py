"""Runners of the fixtures of BiSeNet and EfficientFCN, for `test_parity_semantic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.ops.resize import resize
from tests.fixtures import Fixture, fill_state

TOLERANCE = 1e-4  # of the stored maximum


def _convert(fixture: Fixture, origin: str, name: str) -> Any:
    """The converted system; nothing may be lost on the way, nor on the way back."""
    state = fill_state(fixture.meta)
    imported = import_checkpoint(state, origin=origin, name=name)
    system, dropped = imported.system, imported.translation.dropped
    unused = sum(state[key].numel() for key in dropped)
    ours = sum(p.numel() for p in system.parameters())
    assert ours + unused == fixture.meta["parameters"]
    entry = origins(name)[origin]
    rules = entry.rules(system.cfg) if callable(entry.rules) else entry.rules
    back = invert(rules, system.state_dict())
    assert set(back) == set(state) - set(dropped)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in back.items())
    return system


def _check(fixture: Fixture, stages: dict[str, Tensor], tag: str) -> None:
    """Every stored output of this input; their names may begin or end with its tag."""
    wanted = [key for key in fixture.meta["outputs"] if tag in key]
    assert wanted, f"{fixture.name} stores nothing for the input {tag!r}"
    for key in wanted:
        stage = key.replace(tag, "").strip("_") if tag else key
        assert stage in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
        about = fixture.meta["outputs"][key]
        # `Fixture.compare` is relative to the spread, the promise to the maximum.
        fixture.compare(key, stages[stage], rtol=TOLERANCE * about["max_abs"] / about["std"])


def _bisenet_maps(system: Any, images: Tensor) -> list[Tensor]:
    """Logits of the head and of the auxiliary heads, each at its own stride."""
    detail = system.spatial_path(images)
    context = system.context_path(*system.backbone(images), detail.shape[-2:])
    # Checkpoints without auxiliary heads make a system without.
    auxiliary = [head(x) for head, x in zip(system.auxiliary, context, strict=False)]
    return [system(images).logits, *auxiliary]


@torch.no_grad()
def run_coincheung_bisenet(fixture: Fixture) -> None:
    system = _convert(fixture, "coincheung", "bisenet")
    for tag, images in fixture.inputs().items():
        maps = [resize(m, images.shape[-2:]) for m in _bisenet_maps(system, images)]
        _check(fixture, dict(zip(("logits", "aux16", "aux32"), maps, strict=False)), tag)


@torch.no_grad()
def run_mmseg_bisenet(fixture: Fixture) -> None:
    system = _convert(fixture, "mmseg", "bisenet")
    for tag, images in fixture.inputs().items():
        maps = _bisenet_maps(system, images)
        stages = dict(zip(("decode", "aux0", "aux1"), maps, strict=False))
        stages["logits"] = resize(maps[0], images.shape[-2:])
        _check(fixture, stages, tag)


@torch.no_grad()
def run_efficientfcn(fixture: Fixture) -> None:
    system = _convert(fixture, "efficientfcn", "efficientfcn")
    for tag, images in fixture.inputs().items():
        head = system(images).logits
        _check(fixture, {"head": head, "logits": resize(head, images.shape[-2:])}, tag)


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "coincheung_bisenet": run_coincheung_bisenet,
    "mmseg_bisenetv1_": run_mmseg_bisenet,
    "efficientfcn_": run_efficientfcn,
}
