"""Which project and system a checkpoint is from, found by trying the rules of every converter.

A converter's rules are total: they cover every key of their own checkpoints and of no others. So a
file belongs to the origin and system whose rules cover it exactly and lead to a network of its
shapes; no list of signatures has to be kept. Where none fits, the closest ones say what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pixelwise.convert import Origin, origins
from pixelwise.convert.rules import Rule, translate
from pixelwise.errors import ConversionError, PixelwiseError, UsageError
from pixelwise.systems import SYSTEMS, configure
from pixelwise.systems import find as find_system

_SHOWN = 3  # candidates named where none fits
_CLOSE = 0.3  # share of keys below which a converter is not worth naming
# What reading shapes of a stranger's tensors may run into.
_MISFITS = (
    PixelwiseError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    ZeroDivisionError,
    AttributeError,
    StopIteration,
    RuntimeError,
)
# What people often have at hand that is no system of ours, by a key that it has.
_STRANGERS = (
    (r"roi_heads?\.(box_predictor|bbox_head)\.", "Faster R-CNN, boxes without masks"),
    (r"head\.classification_head\.|bbox_head\.retina_cls\.", "RetinaNet, boxes without masks"),
    (r"fc\.weight$|classifier\.\d\.weight$|head\.fc\.", "an image classifier, no segmentation"),
)
# Set aside when the nearest row is looked for: they do not tell one variant from another.
_OF_DATA = ("num_classes", "in_channels", "class_weights", "aux_weight")


@dataclass(frozen=True, kw_only=True)
class Match:
    """How well one converter fits a state dict.

    Args:
        origin:   the project.
        name:     the first row of the system in `SYSTEMS`.
        share:    of the source's keys that exactly one rule covers, 0..1.
        inferred: config fields that the converter read from the state dict.
        problem:  why it does not fit; empty where it does.
    """

    origin: str
    name: str
    share: float = 0.0
    inferred: dict[str, Any]
    problem: str = ""


def recognise(
    state: Mapping[str, Tensor],
    *,
    origin: str | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> Match:
    """The converter that a state dict belongs to.

    Args:
        state:    of the other project.
        origin:   look among this project's converters only.
        name:     look among this system's converters only; a row of `SYSTEMS`.
        settings: config fields that are known from elsewhere.
        partial:  the closest converter will do, if one can read the network's shape at all.

    Raises:
        ConversionError: none fits; the message names the closest and what does not fit it.
        UsageError: an unknown origin or system.
    """
    matches = [
        _try(state, found, entry, settings or {}) for found, entry in _candidates(origin, name)
    ]
    exact = [match for match in matches if not match.problem]
    if exact:
        return exact[0]
    closest = sorted(matches, key=lambda match: -match.share)
    readable = [match for match in closest if match.share > _CLOSE]
    if partial and readable:
        return readable[0]
    asked = origin is not None or name is not None
    raise ConversionError(_no_match(state, closest if asked else readable))


def matches_of(state: Mapping[str, Tensor]) -> list[Match]:
    """How well every converter fits; those that fit exactly have no problem."""
    return [_try(state, found, entry, {}) for found, entry in _candidates(None, None)]


def nearest_row(name: str, config: Any) -> str:
    """The row of `SYSTEMS` that a config is closest to.

    Args:
        name:   any row of the system.
        config: of it. Rows of its backbone come first, then those that differ in the fewest fields.
    """
    system = find_system(name).system
    rows = [row for row, entry in SYSTEMS.items() if entry.system is system]
    return min(rows, key=lambda row: _differences(SYSTEMS[row].config, config))


def _differences(one: Any, other: Any) -> tuple[bool, int]:
    names = [field.name for field in fields(one) if field.name not in _OF_DATA]
    count = sum(getattr(one, name) != getattr(other, name) for name in names)
    return one.backbone != other.backbone, count


def base_rows() -> dict[type, str]:
    """The first row of every system, whose config the converters start from."""
    rows: dict[type, str] = {}
    for row, entry in SYSTEMS.items():
        rows.setdefault(entry.system, row)
    return rows


def _candidates(origin: str | None, name: str | None) -> list[tuple[tuple[str, str], Origin]]:
    rows = list(base_rows().values()) if name is None else [name]
    found = [((o, row), entry) for row in rows for o, entry in origins(row).items()]
    chosen = [item for item in found if origin in (None, item[0][0])]
    if not chosen:
        known = sorted({o for (o, _), _ in found})
        what = f"of {name} " if name else ""
        raise UsageError(
            f"no converter {what}is for origin {origin!r}; there are {', '.join(known) or 'none'}"
        )
    return chosen


def _try(
    state: Mapping[str, Tensor],
    found: tuple[str, str],
    entry: Origin,
    settings: Mapping[str, Any],
) -> Match:
    origin, name = found
    try:
        inferred = entry.infer(state)
        known = {field.name for field in fields(find_system(name).config)}
        given = {key: value for key, value in settings.items() if key in known}
        config = configure(name, {**inferred, **given})
        rules = entry.rules(config) if callable(entry.rules) else entry.rules
    except _MISFITS as error:
        return Match(origin=origin, name=name, inferred={}, problem=_line(error))
    share = covered(rules, state)
    problem = f"{1 - share:.0%} of the keys are of another network" if share < 1 else ""
    if not problem:
        problem = _misfit(name, config, rules, state)
    return Match(origin=origin, name=name, share=share, inferred=inferred, problem=problem)


def covered(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> float:
    """The share of keys that exactly one rule covers."""
    patterns = [re.compile(rule.pattern) for rule in rules]
    hits = sum(sum(1 for p in patterns if p.match(key)) == 1 for key in state)
    return hits / max(1, len(state))


def _misfit(name: str, config: Any, rules: Sequence[Rule], state: Mapping[str, Tensor]) -> str:
    """Why the state dict does not fill the network of this config, from shapes alone."""
    try:
        with torch.device("meta"):
            system = find_system(name).system(config)
        shapes = {key: value.to("meta") for key, value in state.items()}
        translate(rules, shapes, system.state_dict())
    except _MISFITS as error:
        return _line(error)
    return ""


def _line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return f"no {text} in it" if isinstance(error, KeyError) else text


def _no_match(state: Mapping[str, Tensor], closest: Sequence[Match]) -> str:
    first = ", ".join(list(state)[:_SHOWN])
    if not closest:
        found = (what for p, what in _STRANGERS if any(re.match(p, k) for k in state))
        stranger = next((f"; it seems to be {what}" for what in found), "")
        return (
            f"no converter knows these keys (they begin with {first}){stranger}; if it is a "
            "checkpoint of a system of ours, name its origin and system, or see docs/import.md for "
            "what can be read"
        )
    reasons = "\n".join(
        f"  {match.name} of {match.origin} ({match.share:.0%} of the keys): {match.problem}"
        for match in closest[:_SHOWN]
    )
    return (
        f"no converter fits this checkpoint exactly; the closest are\n{reasons}\n"
        "pass the settings that shapes cannot tell, or load what fits with --partial"
    )
