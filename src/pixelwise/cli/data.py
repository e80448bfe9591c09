"""`pixelwise data check|stats|show|convert|split`."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from pixelwise.data.dataset import Dataset

app = typer.Typer(help="Check, count, show, convert and split data sets.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="A data.yaml, a COCO .json, or a folder.")]
Images = Annotated[
    Optional[Path],  # noqa: UP045  (typer reads the annotation at run time)
    typer.Option(help="Folder of the pictures, where it is not beside the annotations."),
]
Split = Annotated[Optional[str], typer.Option(help="Only this split.")]  # noqa: UP045
Format = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--from", help="Format of the data, where the guess is wrong."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Out = Annotated[Path, typer.Option(help="Where to write.")]


@app.command("check")
def check(
    data: Source,
    *,
    images: Images = None,
    split: Split = None,
    format: Format = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Read every file and list what is wrong; exit code 3 when errors stand."""
    report = _open(data, images, split, format, lenient=True).check(quiet=quiet)
    print(json_text.dumps(report.to_dict(), indent=2) if json else report.summary())
    return 3 if report.error_count else 0


@app.command("stats")
def stats(
    data: Source,
    *,
    images: Images = None,
    split: Split = None,
    format: Format = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Count pictures, sizes, classes and objects; weights for training."""
    found = _open(data, images, split, format).stats(quiet=quiet)
    print(json_text.dumps(found.to_dict(), indent=2) if json else found.summary())
    return 0


@app.command("show")
def show(
    data: Source,
    *,
    out: Out = Path("contact_sheet.jpg"),
    images: Images = None,
    split: Split = None,
    format: Format = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 12,
    columns: Annotated[Optional[int], typer.Option(min=1, help="Pictures in a row.")] = None,  # noqa: UP045
    view: Annotated[str, typer.Option(help="instance, semantic, or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="Which pictures; -1 takes the first ones.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Draw the annotation of some pictures on a contact sheet."""
    from PIL import Image

    dataset = _view(_open(data, images, split, format), view)
    sheet, shown = _sheet(dataset, count=count, columns=columns, seed=seed, quiet=quiet)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(out, quality=92)
    _tell({"sheet": str(out), "images": shown}, f"{len(shown)} pictures on {out}", json)
    return 0


@app.command("convert")
def convert(
    data: Source,
    *,
    to: Annotated[str, typer.Option(help="coco, yolo-seg, masks, voc, or objects.")],
    out: Out,
    images: Images = None,
    split: Split = None,
    format: Format = None,
    link: Annotated[bool, typer.Option(help="Link to the pictures instead of copying.")] = False,
    components: Annotated[
        bool, typer.Option(help="Take connected pieces as objects where only classes are known.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write the data set in another format; says what that format cannot hold."""
    from pixelwise.data.convert import convert as run

    dataset = _open(data, images, split, format)
    done = run(
        dataset, to, out, images="link" if link else "copy", components=components, quiet=quiet
    )
    for line in done.warnings():
        print(f"warning: {line}", file=sys.stderr)
    counts = ", ".join(f"{name} {count}" for name, count in done.images.items())
    _tell(done.to_dict(), f"{done.config} ({counts})", json)
    return 0


@app.command("split")
def split_command(
    data: Source,
    *,
    out: Out,
    train: Annotated[float, typer.Option(min=0, help="Share of the training split.")] = 0.8,
    val: Annotated[float, typer.Option(min=0, help="Share of the validation split.")] = 0.2,
    test: Annotated[float, typer.Option(min=0, help="Share of the test split.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same splits.")] = 0,
    group: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Regular expression; pictures whose paths match alike stay together."),
    ] = None,
    stratify: Annotated[bool, typer.Option(help="Spread every class evenly.")] = False,
    images: Images = None,
    format: Format = None,
    json: Json = False,
) -> int:
    """Divide all pictures anew; writes lists and a data.yaml, and leaves the pictures in place."""
    from pixelwise.data.split import split_indices, write_splits

    dataset = _open(data, images, None, format)
    ratios = {"train": train, "val": val, "test": test}
    chosen = split_indices(dataset, ratios, seed=seed, group=group, stratify=stratify)
    path = write_splits(dataset, chosen, out)
    counts = {name: len(members) for name, members in chosen.items()}
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    _tell({"config": str(path), "images": counts}, f"{path} ({shown})", json)
    return 0


def _open(
    data: str, images: Path | None, split: str | None, format: str | None, *, lenient: bool = False
) -> Dataset:
    from pixelwise.data.dataset import open as open_data

    return open_data(data, images=images, split=split, format=format, lenient=lenient)


def _view(dataset: Dataset, view: str) -> Dataset:
    from pixelwise.errors import UsageError

    if view == "auto":
        has_objects = all(source.has_instances for source in dataset.sources)
        view = "instance" if has_objects else "semantic"
    if view == "instance":
        return dataset.as_instances()
    if view == "semantic":
        return dataset.as_semantic(background=dataset.background)
    raise UsageError(f"unknown view {view!r}; use instance, semantic or auto")


def _sheet(
    dataset: Dataset, *, count: int, columns: int | None, seed: int, quiet: bool
) -> tuple[Any, list[str]]:
    import numpy as np

    from pixelwise.data.contact_sheet import arrange
    from pixelwise.progress import track
    from pixelwise.visualize import class_colors, draw_ground_truth

    count = min(count, len(dataset))
    order = np.arange(len(dataset))
    if seed >= 0:
        order = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count])
    colors = dataset.colors or class_colors(len(dataset.classes))
    pictures: list[Any] = []
    captions: list[str] = []
    seen: set[int] = set()
    for i in track(order[:count].tolist(), "drawing", quiet=quiet):
        sample = dataset[i]
        instances = sample.instances
        values = sample.labels if instances is None else instances.labels
        seen.update([] if values is None else [int(v) for v in np.unique(values)])
        pictures.append(draw_ground_truth(sample, dataset.classes, colors=colors, with_text=False))
        objects = "" if instances is None else f"  {_objects(len(instances))}"
        captions.append(f"{sample.path.name}{objects}")
    legend = [(name, colors[k]) for k, name in enumerate(dataset.classes) if k in seen]
    shown = [str(dataset.path(i)) for i in order[:count].tolist()]
    return arrange(pictures, captions, columns=columns, legend=legend), shown


def _objects(count: int) -> str:
    return f"{count} object{'' if count == 1 else 's'}"


def _tell(values: dict[str, Any], text: str, json: bool) -> None:
    print(json_text.dumps(values, indent=2) if json else text)
