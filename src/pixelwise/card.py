"""Model cards: what a model is, what it may be used for and how good it was found to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pixelwise import catalogue
from pixelwise.checkpoint import read_header
from pixelwise.spec import InputSpec, WeightsEntry

_LICENCES = {  # the hub's names of licences; it takes any other as "other" with a name
    "Apache-2.0": "apache-2.0",
    "CC0-1.0": "cc0-1.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-SA-3.0": "cc-by-sa-3.0",
    "MIT": "mit",
}
_COMMERCIAL = {
    "yes": "allowed, as far as the licences of weights and training data go",
    "no": "not allowed",
    "unclear": "unclear: a licence of the weights or of the training data is not stated",
}


@dataclass(frozen=True, kw_only=True)
class _About:
    """What a card says, wherever it was found."""

    title: str
    system: str
    task: str
    classes: Sequence[str]
    input: InputSpec
    metrics: Mapping[str, float]
    rows: Sequence[tuple[str, str]]  # of the table: licences, data, origin
    licence: str
    load: str


def card(name_or_path: str | Path) -> str:
    """A model card in Markdown, with the header that model hubs read.

    Args:
        name_or_path: a model of the catalogue, of which nothing is downloaded, a checkpoint file,
            or a run folder.

    Raises:
        ModelError: there is none.
    """
    entry = catalogue.find(str(name_or_path))
    if entry is not None:
        return _write(_of_entry(entry))
    return card_of(read_header(catalogue.find_checkpoint(name_or_path)), load=str(name_or_path))


def card_of(header: Mapping[str, Any], *, load: str) -> str:
    """The card of a checkpoint of ours.

    Args:
        header: what `checkpoint.read_header` gives.
        load:   what one passes to `pw.load`.
    """
    source: Mapping[str, Any] = header.get("source") or {}
    rows = [("licence of the weights", header["licence"] or "not stated")]
    for key, label in {
        "project": "converted from",
        "url": "published file",
        "sha256": "its sha256",
        "code_licence": "licence of the code it came from",
        "data_licence": "licence of the training data",
        "metrics_source": "numbers from",
    }.items():
        if source.get(key):
            rows.append((label, str(source[key])))
    if source.get("commercial"):
        rows.append(("commercial use", _COMMERCIAL[source["commercial"]]))
    about = _About(
        title=str(source.get("name") or Path(load).stem),
        system=header["system"],
        task=header["task"],
        classes=header["classes"],
        input=InputSpec.from_dict(header["input"]),
        metrics=header["metrics"],
        rows=rows,
        licence=header["licence"],
        load=load,
    )
    return _write(about)


def _of_entry(entry: WeightsEntry) -> _About:
    rows = [
        ("licence of the weights", entry.licence),
        ("training data", entry.data or "see its documentation"),
        ("licence of the training data", entry.data_licence),
        ("commercial use", _COMMERCIAL[entry.commercial]),
        ("numbers from", entry.metrics_source),
    ]
    if not catalogue.is_embedded(entry):
        digest = f"sha256 {entry.sha256}" if entry.sha256 else f"md5 {entry.md5}"
        rows += [
            ("converted from", f"{entry.project} (code: {entry.code_licence})"),
            ("published file", entry.source),
            ("its published hash", digest if entry.sha256 or entry.md5 else "none"),
        ]
    return _About(
        title=entry.name,
        system=entry.system,
        task=entry.task,
        classes=entry.classes,
        input=entry.input or _stored_input(entry),
        metrics=dict(entry.metrics),
        rows=rows,
        licence=entry.licence,
        load=entry.name,
    )


def _stored_input(entry: WeightsEntry) -> InputSpec:
    """Of a model whose row leaves it to its file, as those inside the package do."""
    return InputSpec.from_dict(read_header(catalogue.file_of(entry))["input"])


def _write(about: _About) -> str:
    parts = [
        f"---\n{yaml.safe_dump(_hub_header(about), sort_keys=False, allow_unicode=True)}---",
        f"# {about.title}",
        f"{about.task.capitalize()} segmentation with {about.system}, {_classes(about.classes)}.",
        _table(("", ""), about.rows),
        "## Use",
        f'```python\nimport pixelwise as pw\n\nseg = pw.load("{about.load}")\n'
        'seg.predict("picture.jpg").save("out/")\n```',
    ]
    if about.metrics:
        numbers = [(name, f"{value:.4g}") for name, value in about.metrics.items()]
        parts += ["## Reported", _table(("metric", "value"), numbers)]
    parts += ["## Input", _feeding(about.input)]
    parts += ["## Classes", ", ".join(about.classes)]
    return "\n\n".join(parts) + "\n"


def _classes(names: Sequence[str]) -> str:
    return "1 class" if len(names) == 1 else f"{len(names)} classes"


def _hub_header(about: _About) -> dict[str, Any]:
    known = _LICENCES.get(about.licence)
    licence = {"license": known} if known else {"license": "other"}
    if not known and about.licence:
        licence["license_name"] = about.licence
    return {
        "library_name": "pixelwise",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", f"{about.task}-segmentation", about.system],
        **licence,
    }


def _feeding(spec: InputSpec) -> str:
    rule = spec.resize
    if rule.fixed is not None:
        size = f"{rule.fixed[0]}x{rule.fixed[1]} px, whatever the aspect"
    elif rule.short_side is not None:
        size = f"shorter side {rule.short_side} px"
        size += f", at most {rule.long_side} px long" if rule.long_side is not None else ""
    elif rule.long_side is not None:
        size = f"longer side {rule.long_side} px"
    else:
        size = "the picture's own size"
    order = spec.channel_order.upper() if spec.channels == 3 else f"{spec.channels} channels"
    mean, std = (", ".join(f"{v:.6g}" for v in values) for values in (spec.mean, spec.std))
    return f"{order}; {size}; (pixel * {spec.scale:.6g} - [{mean}]) / [{std}]."


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join(lines + [f"| {name} | {value.replace('|', '/')} |" for name, value in rows])
