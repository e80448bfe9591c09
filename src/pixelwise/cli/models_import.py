"""`pixelwise models import`: another project's checkpoint, recognised, converted and explained."""

from __future__ import annotations

import json as json_text
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pixelwise.importing import ImportedFile

_SHOWN = 12  # keys of a list before it ends with a count


def import_model(
    file: Annotated[Path, typer.Argument(help=".pth, .pt, .pkl, .ckpt, .npz or .safetensors.")],
    *,
    name: Annotated[
        str | None, typer.Option("--as", help="The system, instead of finding out.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="The project, such as mmseg, instead of finding out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; beside the file by default.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="What the file cannot tell, such as output_stride=16."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names in label order: a text file, a line each, or a,b,c."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what fits; the rest starts afresh.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List every tensor.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Read another project's checkpoint safely, say what it is, and write it as one of ours.

    Nothing in the file is executed. Origin, system, depth and classes are found out; what weights
    cannot tell (output stride, rates, anchors) comes from the file's own configuration, its name,
    --set, or the project's published values, and the report says which.
    """
    from pixelwise.importing import import_file, out_path
    from pixelwise.training.recipe import parse_overrides

    found = import_file(
        file,
        name=name,
        origin=origin,
        settings=parse_overrides(settings or []),
        classes=read_classes(classes),
        partial=partial,
    )
    target = None if dry_run else out_path(file, out)
    if target is not None:
        found.save(target)
    if json:
        print(json_text.dumps({**found.report(), "out": target and str(target)}, indent=2))
        return 0
    _show(found, with_keys=keys)
    print("nothing was written" if target is None else f"written: {target}")
    return 0


def read_classes(text: str | None) -> list[str] | None:
    """Names of an option: the lines of a file, or parts between commas.

    Raises:
        UsageError: it names a text file that is not there.
    """
    from pixelwise.errors import UsageError

    if text is None:
        return None
    path = Path(text)
    if path.suffix == ".txt":
        if not path.is_file():
            raise UsageError(f"--classes {text}: no such file")
        return [
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    return [part.strip() for part in text.split(",")]


def _show(found: ImportedFile, *, with_keys: bool) -> None:
    print(f"{found.path.name}: {found.name} of {found.origin}")
    print(f"  sha256    {found.sha256}")
    print(f"  licence   {found.licence or 'not stated in the file; see its publisher'}")
    print(f"  classes   {len(found.classes)}: {_few(found.classes, 6)}")
    spec = found.input
    print(f"  input     {spec.channel_order}, mean {_round(spec.mean)}, std {_round(spec.std)}")
    for setting in found.settings:
        mark = "assumed" if setting.assumed else "set"
        print(f"  {mark:9} {setting.field} = {setting.value} ({setting.why})")
    counts = Counter(moved.how for moved in found.moved)
    parts = [f"{counts[how]} {how}" for how in ("matched", "renamed", "permuted") if counts[how]]
    print(f"  keys      {', '.join(parts)}, {len(found.dropped)} left out on purpose")
    for reason, count in Counter(found.dropped.values()).items():
        print(f"            {count}: {reason}")
    gaps: dict[str, list[str]] = {
        "missing": found.gaps.missing,
        "surplus": found.gaps.unknown + found.gaps.surplus + found.gaps.ambiguous,
        "shapes": found.gaps.shapes,
    }
    for title, names in gaps.items():
        print(f"  {title:9} {len(names)}" + (f": {_few(names, _SHOWN)}" if names else ""))
    for note in found.notes:
        print(f"  note      {note}")
    if with_keys:
        for moved in found.moved:
            print(f"  {moved.how:9} {moved.theirs} -> {moved.ours} {list(moved.shape)}")


def _few(names: Any, shown: int) -> str:
    listed = ", ".join(names[:shown])
    return listed + (f", and {len(names) - shown} more" if len(names) > shown else "")


def _round(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
