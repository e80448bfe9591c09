"""The device that is tried, and how its numbers are compared with the CPU's."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelwise.ops import rle
from pixelwise.types import InstancePrediction, RunLengths

DEVICE = torch.device(os.environ.get("PIXELWISE_TEST_DEVICE", "cuda"))
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(),
        reason="torch finds no CUDA device (torch.cuda.is_available() is False)",
    ),
]

_HEADER = Path(sysconfig.get_paths()["include"]) / "Python.h"
needs_compiler = pytest.mark.skipif(
    not _HEADER.exists() or not (shutil.which("gcc") or shutil.which("cc")),
    reason="torch.compile needs a C compiler and Python's headers",
)


def leaves(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors, arrays and numbers of a nested value, by path."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, np.ndarray | int | float):
        return {name: torch.as_tensor(value)}
    if value is None or isinstance(value, str):
        return {}
    if isinstance(value, dict):
        items = list(value.items())
    elif is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in fields(value)]
    else:
        items = list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    return {p: t for key, part in items for p, t in leaves(part, f"{name}.{key}").items()}


def assert_near(found: Any, expected: Any, *, tol: float, what: str = "") -> None:
    """Every leaf equals the expected one up to `tol` of the largest value; integers exactly.

    Infinite and undefined numbers must stand in the same places.
    """
    one, other = leaves(found), leaves(expected)
    assert one.keys() == other.keys(), f"{what}: {one.keys()} instead of {other.keys()}"
    problems: list[str] = []
    for key in other:
        got, want = (side[key].detach().cpu() for side in (one, other))
        if got.shape != want.shape or got.dtype != want.dtype:
            problems.append(f"{key}: {got.dtype} {tuple(got.shape)}, not {want.dtype} {want.shape}")
        elif not want.is_floating_point():
            count = int((got != want).sum())
            if count:
                problems.append(f"{key}: {count} of {want.numel()} differ")
        elif want.numel():
            problems += _float_problem(key, got.double(), want.double(), tol)
    assert not problems, f"{what}: " + "; ".join(problems)


def both(function: Callable[[torch.device], Any]) -> tuple[Any, Any]:
    """What a function of a device returns on the one that is tried, and on the CPU."""
    return function(DEVICE), function(torch.device("cpu"))


def same_on_both(function: Callable[[torch.device], Any]) -> Callable[[], None]:
    """A test: what a function of a device returns is the same on both."""

    def test() -> None:
        found, expected = both(function)
        assert_near(found, expected, tol=1e-6, what=function.__name__)

    return test


def _float_problem(key: str, got: Tensor, want: Tensor, tol: float) -> list[str]:
    finite = want.isfinite()
    if not torch.equal(finite, got.isfinite()):
        count = int((finite != got.isfinite()).sum())
        return [f"{key}: {count} of {want.numel()} values are finite on one device only"]
    if not bool(finite.any()):
        return []
    largest = float(want[finite].abs().max())
    difference = float((got[finite] - want[finite]).abs().max())
    if difference <= tol * max(largest, 1e-12):
        return []
    return [f"{key}: max difference {difference:.3g} of largest {largest:.3g}, more than {tol:g}"]


def assert_same_predictions(found: Any, expected: Any, *, tol: float, pixels: int = 0) -> None:
    """Scores and boxes up to `tol`, labels exactly, each mask or label map up to some pixels."""
    assert len(found) == len(expected)
    for i, (got, want) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(want, InstancePrediction):
            count = int((got.labels != want.labels).sum())
            assert count <= pixels, f"picture {i}: {count} of {want.labels.numel()} labels differ"
            continue
        assert len(got) == len(want), f"picture {i}: {len(got)} objects instead of {len(want)}"
        for part in ("scores", "boxes", "labels"):
            assert_near(getattr(got, part), getattr(want, part), tol=tol, what=f"{part} of {i}")
        counts = differing_pixels(got.masks, want.masks)
        assert max(counts, default=0) <= pixels, f"picture {i}: pixels that differ {counts}"


def differing_pixels(a: RunLengths, b: RunLengths) -> list[int]:
    """Of every mask."""
    return [int(n) for n in (rle.decode(a) != rle.decode(b)).sum(axis=(1, 2))]
