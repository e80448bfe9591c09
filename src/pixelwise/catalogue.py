"""The catalogue of trained models, and the checkpoint file behind the name of any model.

Its rows are data: `weights/catalogue.json` lists the models that ship inside the package,
`weights/published/ORIGIN.json` the checkpoints that other projects publish, with the licences of
what they were trained on in `weights/published/datasets.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from pixelwise.errors import ModelError
from pixelwise.spec import Commercial, InputSpec, Task, WeightsEntry
from pixelwise.systems import SYSTEMS
from pixelwise.systems import find as find_system
from pixelwise.systems import list_systems as _list_systems

_PACKAGE = "package:"
_USUAL_COUNTS = (19, 21, 59, 60, 80, 90, 150, 171)  # fewer classes may be anybody's own
_STRICTEST: tuple[Commercial, ...] = ("no", "unclear", "yes")


def entries(
    pattern: str = "*", *, task: Task | None = None, commercial: bool = False
) -> list[WeightsEntry]:
    """The models whose name matches a shell pattern: embedded ones first, then by origin.

    Args:
        pattern:    of names, such as "*_coco*".
        task:       "semantic" or "instance"; None for both.
        commercial: only those whose weights and data allow commercial use.
    """
    return [
        entry
        for entry in (*_read(_folder())[0], *_published(_folder()).values())
        if fnmatch(entry.name, pattern)
        and task in (None, entry.task)
        and (entry.commercial == "yes" or not commercial)
    ]


def list_models(
    pattern: str = "*", *, task: Task | None = None, commercial: bool = False
) -> list[str]:
    """Names for `pw.load` of the trained models that match; see `entries`.

    >>> list_models("*mask_rcnn*nuclei*")
    ['mask_rcnn_efficientnet_lite0_fpn.nuclei']
    """
    return [entry.name for entry in entries(pattern, task=task, commercial=commercial)]


def list_systems(
    pattern: str = "*", *, task: Task | None = None, pretrained: bool = False
) -> list[str]:
    """Names that match a shell pattern: of systems for `pw.create`, or of trained models.

    Args:
        pattern:    such as "*nuclei*".
        task:       "semantic" or "instance"; None for both.
        pretrained: the models for `pw.load` instead, as `list_models` gives them.
    """
    return list_models(pattern, task=task) if pretrained else _list_systems(pattern, task=task)


def aliases() -> dict[str, str]:
    """Full name by short name."""
    return dict(_read(_folder())[1])


def find(name: str) -> WeightsEntry | None:
    """The model with this name or short name, or None."""
    full = _read(_folder())[1].get(name, name)
    return next((e for e in _read(_folder())[0] if e.name == full), None) or _published(
        _folder()
    ).get(full)


def find_by_file(sha256: str, file_name: str) -> WeightsEntry | None:
    """The published checkpoint that a file is: of this hash, or else of this very name.

    Args:
        sha256:    of the file.
        file_name: without folders.
    """
    published = [entry for entry in entries() if not is_embedded(entry)]
    for entry in published:
        if entry.sha256 and sha256.startswith(entry.sha256):
            return entry
    return next((e for e in published if e.source.rsplit("/", 1)[-1] == file_name), None)


def usual_classes(count: int) -> tuple[str, tuple[str, ...]] | None:
    """The data set that networks of so many classes were trained on, and its class names.

    None where several data sets or none of those that everybody uses have so many.
    """
    if count not in _USUAL_COUNTS:
        return None
    found = {entry.classes: entry.data for entry in entries() if len(entry.classes) == count}
    if len(found) != 1:
        return None
    (classes, data), *_ = found.items()
    return data, classes


def is_embedded(entry: WeightsEntry) -> bool:
    """Whether the weights ship inside the package."""
    return entry.source.startswith(_PACKAGE)


def file_of(entry: WeightsEntry) -> Path:
    """The checkpoint of a model, in our format; a published one is downloaded and converted once.

    Raises:
        ModelError: the installation lacks the file, or it cannot be downloaded.
    """
    if not is_embedded(entry):
        from pixelwise.published import converted  # reads files of other projects, rarely needed

        return converted(entry)
    path = _folder() / entry.source.removeprefix(_PACKAGE)
    if not path.is_file():
        raise ModelError(
            f"{entry.name}: its file {path} is missing from this installation; "
            "install again: pip install --force-reinstall pixelwise"
        )
    return path


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The checkpoint file behind a model's name, an address of the hub, a file, or a run folder.

    Raises:
        ModelError: there is none.
    """
    text = str(name_or_path)
    entry = find(text)
    if entry is not None:
        return file_of(entry)
    if text.startswith("hf-hub:"):
        from pixelwise.hub import find as find_on_hub  # imports this module

        return find_on_hub(text)
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
    if name in SYSTEMS:
        trained = [e.name for e in entries() if e.system == name or e.name.startswith(f"{name}.")]
        example = f", such as {trained[0]}" if trained else ""
        return (
            f"{name!r} is a system without weights: train it (`pixelwise train`) and give its run "
            f"folder, or choose a trained model of `pixelwise models list '{name}*'`{example}"
        )
    known = [e.name for e in entries()] + list(aliases())
    close = get_close_matches(name, known, n=3, cutoff=0.3)
    hint = f"did you mean {', '.join(close)}?" if close else "see `pixelwise models list`"
    return f"no model or file is named {name!r}; {hint}"


def _folder() -> Path:
    return Path(str(resources.files("pixelwise"))) / "weights"


@lru_cache(maxsize=2)
def _read(folder: Path) -> tuple[tuple[WeightsEntry, ...], dict[str, str]]:
    """Rows and aliases of `weights/catalogue.json`."""
    path = folder / "catalogue.json"
    if not path.is_file():
        return (), {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return tuple(_embedded(row) for row in content["models"]), dict(content["aliases"])


@lru_cache(maxsize=2)
def _published(folder: Path) -> dict[str, WeightsEntry]:
    """Rows of all files of `weights/published/`, by name."""
    folder = folder / "published"
    if not folder.is_dir():
        return {}
    datasets = json.loads((folder / "datasets.json").read_text(encoding="utf-8"))
    found: dict[str, WeightsEntry] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name != "datasets.json":
            origin = json.loads(path.read_text(encoding="utf-8"))
            rows = (_published_entry(row, origin, datasets) for row in origin["models"])
            found.update((entry.name, entry) for entry in rows)
    return found


def _embedded(row: Mapping[str, Any]) -> WeightsEntry:
    """One row; what it says beyond `WeightsEntry` (sizes, recipe, notes) is for readers."""
    known = {field.name for field in fields(WeightsEntry)}
    values: dict[str, Any] = {key: value for key, value in row.items() if key in known}
    values["classes"] = tuple(row["classes"])
    values["metrics"] = _numbers(row)
    return WeightsEntry(**values)


def _published_entry(
    row: Mapping[str, Any], origin: Mapping[str, Any], datasets: Mapping[str, Any]
) -> WeightsEntry:
    """One row, with what its file says for all rows and what is known about its training data."""
    data = datasets[row["data"]]
    allowed: set[Commercial] = {origin["commercial"], data["commercial"]}
    return WeightsEntry(
        name=row["name"],
        system=row["system"],
        task=find_system(row["system"]).task,
        source=row["source"],
        mirrors=tuple(row.get("mirrors", ())),
        by_hand=row.get("by_hand", ""),
        sha256=row.get("sha256", ""),
        md5=row.get("md5", ""),
        classes=tuple(data["classes"]),
        origin=origin["origin"],
        project=origin["project"],
        code_licence=origin["code_licence"],
        licence=origin["licence"],
        data=row["data"],
        data_licence=data["licence"],
        commercial=next(answer for answer in _STRICTEST if answer in allowed),
        metrics=_numbers(row),
        metrics_source=row.get("listed_in", origin["listed_in"]),
        config={key: _tuples(value) for key, value in row.get("config", {}).items()},
        input=InputSpec.from_dict(row["input"]) if "input" in row else None,
    )


def _numbers(row: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    return tuple((key, float(value)) for key, value in row.get("metrics", {}).items())


def _tuples(value: Any) -> Any:
    """JSON knows lists alone; configs hold tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value  # type: ignore[misc]
