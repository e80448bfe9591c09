"""The models that ship inside the package, and the file behind the name of any model."""

from __future__ import annotations

import json
from dataclasses import fields
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from pixelwise.errors import ModelError
from pixelwise.spec import Task, WeightsEntry
from pixelwise.systems import SYSTEMS

_PACKAGE = "package:"


def entries(pattern: str = "*", *, task: Task | None = None) -> list[WeightsEntry]:
    """The embedded models whose name matches a shell pattern, in the order of the catalogue."""
    return [e for e in _read()[0] if fnmatch(e.name, pattern) and task in (None, e.task)]


def aliases() -> dict[str, str]:
    """Full name by short name."""
    return dict(_read()[1])


def find(name: str) -> WeightsEntry | None:
    """The embedded model with this name or short name, or None."""
    full = _read()[1].get(name, name)
    return next((e for e in _read()[0] if e.name == full), None)


def file_of(entry: WeightsEntry) -> Path:
    """Where the weights of an embedded model lie.

    Raises:
        ModelError: the installation lacks the file.
    """
    path = _folder() / entry.source.removeprefix(_PACKAGE)
    if not path.is_file():
        raise ModelError(
            f"{entry.name}: its file {path} is missing from this installation; "
            "install again: pip install --force-reinstall pixelwise"
        )
    return path


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The checkpoint file behind a model's name, a file, or a run folder.

    Raises:
        ModelError: there is none.
    """
    text = str(name_or_path)
    entry = find(text)
    if entry is not None:
        return file_of(entry)
    path = Path(name_or_path)
    if path.is_dir():
        best = path / "weights" / "best.safetensors"
        if not best.is_file():
            raise ModelError(
                f"{path}: a folder without weights/best.safetensors; name a run folder or a file"
            )
        return best
    if path.is_file():
        return path
    if path.suffix in (".safetensors", ".pth", ".pt", ".ckpt") or len(path.parts) > 1:
        raise ModelError(f"{path}: no such checkpoint; check the path")
    raise ModelError(_unknown(text))


def _unknown(name: str) -> str:
    known = [e.name for e in entries()] + list(aliases())
    if name in SYSTEMS:
        return (
            f"{name!r} is a system without weights: train it (`pixelwise train`) and give its run "
            f"folder, or choose a trained model: {', '.join(known) or 'none is installed'}"
        )
    close = get_close_matches(name, known, n=3, cutoff=0.3)
    hint = f"did you mean {', '.join(close)}?" if close else "see `pixelwise models list`"
    return f"no model or file is named {name!r}; {hint}"


def _folder() -> Path:
    return Path(str(resources.files("pixelwise"))) / "weights"


@lru_cache(maxsize=1)
def _read() -> tuple[tuple[WeightsEntry, ...], dict[str, str]]:
    """Rows and aliases of `weights/catalogue.json`."""
    path = _folder() / "catalogue.json"
    if not path.is_file():
        return (), {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return tuple(_entry(row) for row in content["models"]), dict(content["aliases"])


def _entry(row: dict[str, Any]) -> WeightsEntry:
    """One row; what it says beyond `WeightsEntry` (sizes, recipe, notes) is for readers."""
    known = {field.name for field in fields(WeightsEntry)}
    values: dict[str, Any] = {key: value for key, value in row.items() if key in known}
    values["classes"] = tuple(row["classes"])
    values["metrics"] = tuple((k, float(v)) for k, v in row.get("metrics", {}).items())
    return WeightsEntry(**values)
