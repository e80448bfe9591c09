"""What all parity tests of semantic systems share: settings from a fixture's words, comparison."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from pixelwise.convert import Imported, import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.nn.backbones.xception import XCEPTIONS
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.types import InstanceTarget
from tests.fixtures import Fixture, fill_state

TOLERANCE = 1e-4  # of the stored maximum
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of a batch norm


def convert(fixture: Fixture, origin: str, name: str, **settings: Any) -> Imported:
    """The converted system; nothing may be lost on the way, nor on the way back."""
    state = fill_state(fixture.meta)
    imported = import_checkpoint(state, origin=origin, name=name, **settings)
    system, dropped = imported.system, imported.translation.dropped
    lost = sum(state[key].numel() for key in dropped if not key.endswith(_BUFFERS))
    ours = sum(p.numel() for p in system.parameters()) + _affine_of_frozen_norms(system)
    assert ours + lost == fixture.meta["parameters"]
    entry = origins(name)[origin]
    rules = entry.rules(system.cfg) if callable(entry.rules) else entry.rules
    back = invert(rules, system.state_dict())
    assert set(back) == set(state) - set(dropped)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in back.items())
    return imported


def _affine_of_frozen_norms(system: nn.Module) -> int:
    """What others count as parameters and we hold as buffers."""
    frozen = [m for m in system.modules() if isinstance(m, FrozenBatchNorm)]
    return sum(m.weight.numel() + m.bias.numel() for m in frozen)


def check_all(fixture: Fixture, stages: dict[str, Tensor], tag: str) -> None:
    """Every stored output of this input (their names may begin or end with its tag) is compared."""
    wanted = [key for key in fixture.meta["outputs"] if tag in key]
    assert wanted, f"{fixture.name} stores nothing for the input {tag!r}"
    for key in wanted:
        stage = key.replace(tag, "").strip("_.") if tag else key
        assert stage in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
        compare(fixture, key, stages[stage])


def compare(fixture: Fixture, key: str, ours: Tensor) -> None:
    """max|difference| <= 1e-4 max|stored|; `Fixture.compare` is relative to the spread."""
    about = fixture.meta["outputs"][key]
    fixture.compare(key, ours, rtol=TOLERANCE * about["max_abs"] / about["std"])


def words(fixture: Fixture) -> str:
    """What the json says about the configuration."""
    return " ".join(fixture.meta["configuration"])


def output_stride(fixture: Fixture, default: int) -> int:
    """As the json states it in words, or an "os8" or "d8" in the name."""
    found = re.search(r"output[_ ]stride[ =:]*(\d+)", words(fixture)) or re.search(
        r"_(?:os|d)(8|16|32)(?:_|$)", fixture.name
    )
    return int(found[1]) if found else default


def rates(fixture: Fixture, default: tuple[int, ...]) -> tuple[int, ...]:
    """ASPP's dilations as the json states them; the leading 1 of mmseg is the 1x1 branch."""
    found = re.search(r"ASPP[^;()]*\(((?:\d+, ?)+\d+)\)", words(fixture))
    if not found:
        return default
    return tuple(n for n in (int(part) for part in found[1].split(",")) if n > 1)


def multi_grid(fixture: Fixture, default: tuple[int, ...]) -> tuple[int, ...]:
    """Factors on the last stage's dilations, as the json states them."""
    between = r"(?:[^;,()\[\]]*[(\[]|\D{0,4})"
    found = re.search(rf"multi[-_ ]?grids?{between}((?:\d+, ?)+\d+)", words(fixture))
    return tuple(int(part) for part in found[1].split(",")) if found else default


def labels_of(target: InstanceTarget, matches: Tensor, other: int) -> Tensor:
    """Classes of matched objects, `other` where there is none; an image may have no object."""
    labels = torch.cat([target.labels, target.labels.new_tensor([other])])
    return labels[torch.where(matches >= 0, matches, len(target))]


def encoder_name(fixture: Fixture) -> str | None:
    """smp's "tu-NAME" encoders of timm do not say in their keys what they are: here is NAME."""
    found = re.search(r"encoder_name='tu-([\w.]+)'", words(fixture)) or re.search(
        r"_tu-([\w.]+?)(?:_os\d+)?_cls", fixture.name
    )
    return found[1] if found else None


def backbone_name(fixture: Fixture) -> dict[str, str]:
    """The encoder as ours where we have one of that name."""
    name = encoder_name(fixture)
    if name is None:
        return {}
    return {"backbone": name if name in XCEPTIONS else f"timm/{name}"}
