"""What upstream implementations compute: the reader of the parity fixtures.

A fixture is `NAME.json` (facts) and `NAME.npz` (arrays). The folder is `PIXELWISE_PARITY`, or
`../shared/parity` next to the checkout; without it the tests that need it are skipped. Its
subfolders (`semantic`, `instance`) are the kinds; a flat folder works too.

    @pytest.mark.parametrize("path", fixture_params("instance", "ops_masks*"))
    def test_masks(path):
        fixture = load_fixture(path)
        fixture.compare("grid_paste", ours, rtol=1e-4)
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

KINDS = ("semantic", "instance")
# In a flat folder: the semantic ones whose json does not say how outputs are stored.
SEMANTIC_NAMES = ("dense_crf_", "losses_semantic", "metrics_semantic", "tables")
_DEFAULT = Path(__file__).parents[2] / "shared" / "parity"
_STORED_LIMIT = 20_000  # where a fixture states no limit per array, fill.sample's default holds


def parity_dir() -> Path:
    """The folder of fixtures (it may not exist)."""
    return Path(os.environ.get("PIXELWISE_PARITY", _DEFAULT))


def fixture_paths(kind: str, pattern: str = "*") -> list[Path]:
    """The json files of a kind whose name without suffix matches, sorted."""
    folders = (parity_dir() / kind, parity_dir())
    paths = [p for folder in folders if folder.is_dir() for p in folder.glob(f"{pattern}.json")]
    return sorted(p for p in paths if p.with_suffix(".npz").exists())


def fixture_params(kind: str, pattern: str = "*") -> list[Any]:
    """One pytest parameter per fixture, or a single skipped one that says what is missing."""
    paths = fixture_paths(kind, pattern)
    if paths:
        return [pytest.param(p, id=p.stem) for p in paths]
    reason = f"no fixture {kind}/{pattern} in {parity_dir()}; set PIXELWISE_PARITY"
    return [pytest.param(None, id=f"no-{kind}-fixture", marks=pytest.mark.skip(reason=reason))]


@cache
def _fill() -> ModuleType:
    for folder in (parity_dir(), parity_dir().parent, _DEFAULT):
        path = folder / "fill.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location("parity_fill", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    pytest.skip(f"no fill.py in {parity_dir()}; set PIXELWISE_PARITY to the fixtures' folder")


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """The deterministic values of the upstream's state-dict entry of this name and shape."""
    return torch.from_numpy(np.array(_fill().fill(name, tuple(shape))))


def fill_state(meta: dict[str, Any]) -> dict[str, Tensor]:
    """The filled state dict that a fixture's json lists, under the upstream's own keys."""
    return {key: fill(key, tuple(shape)) for key, shape, *_ in meta["state_dict"]}


def image(shape: tuple[int, ...] | list[int], seed: int = 0) -> Tensor:
    """The float32 stand-in for a normalised image batch that the fixtures were computed on."""
    return torch.from_numpy(_fill().image(tuple(shape), seed))


def sample(array: np.ndarray | Tensor, limit: int = _STORED_LIMIT) -> np.ndarray:
    """An output in the form the fixtures store it: flat float32, every k-th value."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().numpy()
    return _fill().sample(array, limit)


@dataclass(frozen=True)
class Fixture:
    """One fixture.

    Args:
        name:   its name, without suffix.
        meta:   its json.
        arrays: its npz; whole arrays, or samples of them.
        kind:   "semantic" or "instance".
    """

    name: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    kind: str

    def tensor(self, key: str) -> Tensor:
        """A wholly stored array as a tensor."""
        assert self.limit(key) is None, f"{self.name}: {key} is stored as a sample only"
        return torch.from_numpy(self.arrays[key].copy())

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of the whole output."""
        described = self.meta.get("outputs", {}).get(key)
        return tuple(described["shape"]) if described else self.arrays[key].shape

    def limit(self, key: str) -> int | None:
        """How many values are stored of it at most, or None if all are, in their shape."""
        described = self.meta.get("outputs", {}).get(key, {})
        if self.arrays[key].shape == tuple(described.get("shape", self.arrays[key].shape)):
            return None
        limit = described.get("sample_limit", described.get("limit", _STORED_LIMIT))
        return math.prod(described["shape"]) if limit is None else int(limit)

    def inputs(self) -> dict[str, Tensor]:
        """The input images by tag ("" where there is only one)."""
        listed = self.meta.get("inputs") or [self.meta["input"]]
        return {i.get("tag", ""): image(i["shape"], i.get("seed", 0)) for i in listed}

    def compare(self, key: str, actual: np.ndarray | Tensor, *, rtol: float = 1e-4) -> None:
        """Fail unless `actual` is the stored output.

        Args:
            key:    name of the output.
            actual: ours, whole, in the upstream's shape.
            rtol:   largest difference, as a part of the stored values' standard deviation (or of
                    their largest magnitude, for a constant array).
        """
        ours = actual.detach().cpu().numpy() if isinstance(actual, Tensor) else np.asarray(actual)
        assert ours.shape == self.shape(key), (self.name, key, ours.shape, self.shape(key))
        limit = self.limit(key)
        ours = ours if limit is None else sample(ours, limit)
        stored = self.arrays[key]
        assert ours.shape == stored.shape, (self.name, key, ours.shape, stored.shape)
        if not stored.size:
            return
        assert np.isfinite(ours).all(), (self.name, key, "not finite")
        wanted = stored.astype(np.float64)
        scale = float(wanted.std()) or float(np.abs(wanted).max()) or 1.0
        worst = float(np.abs(ours.astype(np.float64) - wanted).max())
        assert worst <= rtol * scale, (
            f"{self.name}: {key} differs by {worst:.3g}, {worst / scale:.3g} of its spread "
            f"{scale:.3g}; allowed is {rtol:.1g} of it"
        )


def load_fixture(path: Path) -> Fixture:
    """Read one fixture from its json (or npz) path."""
    path = Path(path).with_suffix(".json")
    meta = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = {key: stored[key] for key in stored.files}
    named = "storage" in meta or path.stem.startswith(SEMANTIC_NAMES)
    semantic = path.parent.name == "semantic" or (path.parent.name != "instance" and named)
    return Fixture(path.stem, meta, arrays, "semantic" if semantic else "instance")
