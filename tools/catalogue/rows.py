"""How the scripts of this folder write the files of `weights/published`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "src" / "pixelwise" / "weights" / "published"


def write_origin(about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write one origin's file, a model per line, so that a change of one shows as one line.

    Args:
        about: what holds for every row: origin, project, licences, commercial, listed_in.
        rows:  the models, each with a name of its own.
    """
    names = [row["name"] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SystemExit(f"names that stand for several checkpoints: {', '.join(twice)}")
    head = json.dumps(about, indent=1, ensure_ascii=False).rstrip("}\n")
    lines = ",\n".join(
        "  " + json.dumps(r, ensure_ascii=False) for r in sorted(rows, key=lambda r: r["name"])
    )
    path = FOLDER / f"{about['origin']}.json"
    path.write_text(f'{head},\n "models": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(f"{path.name}: {len(rows)} models")


def add_datasets(found: dict[str, list[str]]) -> None:
    """Add class names of data sets; what is known about their licences is written by hand."""
    path = FOLDER / "datasets.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, classes in found.items():
        row = known.setdefault(
            name, {"licence": "not confirmed; ask its publisher", "commercial": "unclear"}
        )
        row["classes"] = classes
    lines = ",\n".join(
        f" {json.dumps(name)}: {json.dumps(known[name], ensure_ascii=False)}"
        for name in sorted(known)
    )
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
