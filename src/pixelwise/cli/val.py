"""`pixelwise val`: measure a model on annotated pictures."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelwise.cli.inference import (
    CRF,
    TTA,
    CRFPreset,
    Flip,
    Overlap,
    Scales,
    Seams,
    Tile,
    read_augmentation,
    read_crf,
)

if TYPE_CHECKING:
    from pixelwise.evaluation.scores import Report


def command(
    model: Annotated[str, typer.Argument(help="Name, checkpoint file, or run folder.")],
    data: Annotated[str, typer.Argument(help="data.yaml, COCO json, or folder.")],
    *,
    split: Annotated[
        str, typer.Option(help="Split of the data set; `all` takes every one.")
    ] = "val",
    max_dets: Annotated[
        str, typer.Option(help="Detections per picture and class: a number, or 1,10,100.")
    ] = "100",
    absent: Annotated[
        str, typer.Option(help="Classes that do not occur: defined, in_gt or all_zero.")
    ] = "defined",
    boundary: Annotated[bool, typer.Option("--boundary", help="Boundary AP too.")] = False,
    batch_size: Annotated[int, typer.Option(help="Pictures per forward pass.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that read pictures.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    tile: Tile = None,
    overlap: Overlap = None,
    seams: Seams = "blended",
    tta: TTA = False,
    scales: Scales = None,
    flip: Flip = True,
    crf: CRF = False,
    crf_preset: CRFPreset = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json, report.html and plots.")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots", help="PNG plots too (extra `plots`).")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the network, same weights: output_stride=8."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> int:
    """Measure MODEL on the annotated pictures of DATA and print the numbers."""
    from pixelwise.errors import UsageError
    from pixelwise.evaluate import draw_worst, evaluate, open_view
    from pixelwise.predict import load
    from pixelwise.training.recipe import parse_overrides

    if plots and out is None:
        raise UsageError("--plots needs a folder to write to: add --out DIR")
    settings: dict[str, Any] = {
        "max_dets": _limits(max_dets),
        "absent": absent,
        "boundary": boundary,
        "batch_size": batch_size,
        "workers": workers,
        "precision": precision,
        "tile": tile,
        "overlap": overlap,
        "seams": seams,
        "crf": read_crf(crf_preset, crf=crf),
        "quiet": quiet,
    }
    segmenter = load(model, device=device, **parse_overrides(changes or []))
    settings["tta"] = read_augmentation(scales, tta=tta, flip=flip, task=segmenter.task)
    view = open_view(data, split=None if split == "all" else split, task=segmenter.task)
    report = evaluate(segmenter, view, split=None, **settings)
    report.about["data"] = data
    if out is not None:
        draw_worst(
            segmenter.system,
            view,
            report,
            out=out,
            input=segmenter.input,
            classes=segmenter.classes,
            **settings,
        )
        _write(report, out, plots=plots)
    print(json_text.dumps(report.to_dict(), indent=2) if json else report.summary())
    return 0


def _limits(text: str) -> int | list[int]:
    """`100` as a number, `1,10,100` as a list.

    Raises:
        UsageError: anything else.
    """
    from pixelwise.errors import UsageError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--max-dets {text!r}: give a number such as 500, or a list such as 1,10,100"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _write(report: Report, out: Path, *, plots: bool) -> None:
    """The report as json and as a page, and plots where they were asked for."""
    from pixelwise.report import write_report

    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json_text.dumps(report.to_dict(), indent=2) + "\n")
    written = [out / "evaluation.json", write_report(out)]
    if plots:
        written += report.plots(out)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
