"""Proof for users: a converted network computes here what it must."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pixelwise import catalogue, checkpoint
from pixelwise.convert import origins
from pixelwise.convert.files import read_state
from pixelwise.convert.recognise import base_rows
from pixelwise.convert.reference import Difference, Reference, compare, references
from pixelwise.convert.rules import invert
from pixelwise.errors import ConversionError, ModelError
from pixelwise.importing import import_file
from pixelwise.systems import find as find_system


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found out about a file.

    Args:
        origin:    the project that the weights are from; "" for weights of our own.
        name:      row of `SYSTEMS`.
        tensors:   number of the file's.
        returned:  how many come back bit by bit when the conversion is undone; None for a file of
                   ours, which holds converted ones.
        not_finite: tensors with a NaN or an infinity.
        reference: the stored reference of this origin and system, if there is one.
        differences: between its stored outputs and what this installation computes.
    """

    origin: str
    name: str
    tensors: int
    returned: int | None
    not_finite: tuple[str, ...]
    reference: Reference | None
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Nothing contradicts that the network computes what the original does."""
        return not self.not_finite and all(difference.ok for difference in self.differences)


def verify(path: str | Path) -> Verification:
    """Check a checkpoint, of another project or of ours, and the converter that it needs.

    Args:
        path: a file, a run folder, or the name of a model.

    Raises:
        ModelError: it cannot be read.
        ConversionError: no converter fits.
    """
    file = catalogue.find_checkpoint(path)
    try:
        header = checkpoint.read_header(file)
    except ModelError:
        return _of_foreign(file)
    state = read_state(file)
    origin = str((header.get("source") or {}).get("origin", ""))
    return _verification(origin, header["system"], state, returned=None)


def _of_foreign(file: Path) -> Verification:
    found = import_file(file)
    state = read_state(file)
    first = base_rows()[type(found.system)]
    entry = origins(first)[found.origin]
    config = getattr(found.system, "cfg")  # noqa: B009  (an attribute of every system)
    rules = entry.rules(config) if callable(entry.rules) else entry.rules
    try:
        back = invert(rules, found.system.state_dict(), with_zeros=True)
    except ConversionError:
        back = {}  # rules that cut tensors have no way back
    zeros = {key for key, value in back.items() if key in state and not _equal(value, state[key])}
    returned = sum(1 for key in back if key in state) - len(zeros)
    return _verification(found.origin, first, state, returned=returned)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one.dtype))


def _verification(
    origin: str, name: str, state: Mapping[str, Tensor], *, returned: int | None
) -> Verification:
    first = base_rows()[find_system(name).system]
    reference = references().get((origin, first))
    return Verification(
        origin=origin,
        name=name,
        tensors=len(state),
        returned=returned,
        not_finite=tuple(key for key, value in state.items() if not _is_finite(value)),
        reference=reference,
        differences=tuple(compare(reference)) if reference else (),
    )


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
