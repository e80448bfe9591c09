"""Checkpoints that other projects publish, by the name they have in the catalogue.

The published file is kept in the cache beside its conversion into our format, which is what
everything else reads; a newer pixelwise converts again without asking the network.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pixelwise import __version__, checkpoint
from pixelwise.convert import import_checkpoint
from pixelwise.download import cached, fetch, file_hash, home
from pixelwise.errors import ModelError
from pixelwise.progress import note
from pixelwise.spec import WeightsEntry

_SUFFIXES = (".pth", ".pt", ".pkl", ".bin", ".ckpt", ".safetensors", ".npz", ".params")


def converted(entry: WeightsEntry, *, quiet: bool = False) -> Path:
    """A published checkpoint in our format, downloaded and converted if it was not yet.

    Args:
        entry: row of the catalogue with another origin than ours.
        quiet: say nothing about it.

    Raises:
        ModelError: it cannot be downloaded, is not the published file, or cannot be read.
    """
    path = home() / "models" / f"{entry.name}.safetensors"
    if _is_current(path, entry):
        return path
    source = download(entry, quiet=quiet)
    imported = import_checkpoint(
        source, origin=entry.origin, name=entry.system, **dict(entry.config)
    )
    count = getattr(imported.system, "cfg").num_classes  # noqa: B009  (nn.Module hides the type)
    if count != len(entry.classes):
        raise ModelError(
            f"{entry.name}: the file has {count} classes, the catalogue {len(entry.classes)}; "
            "please report it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(
        path,
        imported.system,
        name=entry.system,
        classes=entry.classes,
        input=entry.input or imported.input,
        metrics=dict(entry.metrics),
        licence=entry.licence,
        source=_provenance(entry, source),
    )
    note(f"{entry.name}: licence {entry.licence}; {commercial_use(entry)}", quiet=quiet)
    return path


def download(entry: WeightsEntry, *, quiet: bool = False) -> Path:
    """The published file itself.

    Raises:
        ModelError: it cannot be had; for a file that only the user can get, the message says where
            to save it.
    """
    path = download_of(entry)
    if entry.by_hand and not path.is_file():
        raise ModelError(
            f"{entry.name}: {entry.by_hand} ( {entry.source} ); save the file as {path} and run "
            "this again"
        )
    published = entry.sha256 or (f"md5:{entry.md5}" if entry.md5 else "")
    return fetch(path.name, [entry.source, *entry.mirrors], published=published, quiet=quiet)


def download_of(entry: WeightsEntry) -> Path:
    """Where the published file lies in the cache: the model's name with the file's suffix."""
    suffix = PurePosixPath(urlsplit(entry.source).path).suffix.lower()
    return cached(entry.name + (suffix if suffix in _SUFFIXES else ".pth"))


def commercial_use(entry: WeightsEntry) -> str:
    """What the licences of weights and data say about it, as a sentence's part."""
    return {
        "yes": "commercial use is allowed",
        "no": "no commercial use",
        "unclear": "commercial use is unclear",
    }[entry.commercial] + f" (data: {entry.data_licence})"


def _provenance(entry: WeightsEntry, file: Path) -> dict[str, Any]:
    return {
        "name": entry.name,
        "origin": entry.origin,
        "project": entry.project,
        "url": entry.source,
        "sha256": file_hash(file),
        "config": dict(entry.config),
        "code_licence": entry.code_licence,
        "data_licence": entry.data_licence,
        "commercial": entry.commercial,
        "metrics_source": entry.metrics_source,
    }


def _is_current(path: Path, entry: WeightsEntry) -> bool:
    """Whether a conversion is there, made by this version from what the catalogue says today."""
    if not path.is_file():
        return False
    with suppress(ModelError):
        header = checkpoint.read_header(path)
        source = header.get("source") or {}
        same_file = str(source.get("sha256", "")).startswith(entry.sha256)
        same_facts = source.get("url") == entry.source and header["licence"] == entry.licence
        return header["pixelwise"] == __version__ and same_file and same_facts
    return False
