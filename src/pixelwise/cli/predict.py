"""`pixelwise predict`: segment pictures and write what was found."""

from __future__ import annotations

import json as json_text
import sys
from dataclasses import dataclass, field
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
    from pixelwise.errors import DataError
    from pixelwise.predict import Segmenter
    from pixelwise.prediction.sources import Frame
    from pixelwise.result import Result

_BAD_PICTURES = 3  # exit code when some pictures could not be read


def command(
    model: Annotated[
        str, typer.Argument(help="Name (`pixelwise models list`), checkpoint file, or run folder.")
    ],
    source: Annotated[
        list[str], typer.Argument(help="Pictures: files, folders, globs, URLs, videos.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    score: Annotated[float, typer.Option(help="Lowest score of an object, 0..1.")] = 0.5,
    tile: Tile = None,
    overlap: Overlap = None,
    seams: Seams = "blended",
    tta: TTA = False,
    scales: Scales = None,
    flip: Flip = True,
    crf: CRF = False,
    crf_preset: CRFPreset = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Also write: coco, yolo, labelme, label_studio, geojson, csv, labels.",
        ),
    ] = None,
    save_probs: Annotated[
        bool, typer.Option("--save-probs", help="Also write class probabilities (npz).")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the network, same weights: output_stride=8."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors.")] = False,
) -> int:
    """Segment SOURCE with MODEL; write a drawn picture and a json for each picture.

    A picture that cannot be read is reported and left out; the exit code is then 3.
    """
    from pixelwise.predict import load
    from pixelwise.training.recipe import parse_overrides

    kinds = _formats(formats, save_probs=save_probs)
    segmenter = load(model, device=device, **parse_overrides(changes or []))
    job = _Job(segmenter, out, kinds, quiet=quiet, says_results=not (json or quiet))
    options: dict[str, Any] = {
        "score_thresh": score,
        "tile": tile,
        "overlap": overlap,
        "seams": seams,
        "tta": read_augmentation(scales, tta=tta, flip=flip, task=segmenter.task),
        "crf": read_crf(crf_preset, crf=crf),
        "batch_size": batch_size,
        "with_probs": save_probs,
    }
    job.run(source, options)
    if json:
        print(json_text.dumps(job.document(), indent=2))
    elif not quiet:
        print(job.summary())
    return _BAD_PICTURES if job.failures else 0


@dataclass
class _Job:
    """One run over a source: what was written, what failed."""

    segmenter: Segmenter
    out: Path
    formats: list[str]
    quiet: bool
    says_results: bool
    written: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    failures: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    names: set[str] = field(default_factory=set[str])

    def run(self, source: list[str], options: dict[str, Any]) -> None:
        """Predict everything; each result is on the disk before the next picture is read."""
        from pixelwise.prediction.settings import read_options
        from pixelwise.prediction.sources import open_source
        from pixelwise.progress import track

        settings = read_options({**options, "on_error": self.fail}, self.segmenter.task)  # type: ignore[typeddict-item]
        one = source[0] if len(source) == 1 else source
        found = open_source(one, channels=self.segmenter.input.channels)
        quiet = self.quiet or found.is_single
        # The bar counts pictures as they are read, so that failures count too.
        frames = track(found.frames, "predict", total=found.total, quiet=quiet)
        for result in self.segmenter.predict_frames(frames, settings):
            self.save(result)

    def fail(self, frame: Frame, error: DataError) -> None:
        """Report a picture that cannot be read, and go on."""
        self.failures.append({"path": frame.path or frame.name, "message": str(error)})
        print(f"error: {error}", file=sys.stderr)

    def save(self, result: Result) -> None:
        """Write one result and say so."""
        overlay, document = result.save(
            self.out, name=self.free_name(result.name), formats=self.formats
        )
        self.written.append(
            {
                "path": result.path,
                "summary": repr(result),
                "picture": str(overlay),
                "json": str(document),
                "objects": len(result) if result.instances is not None else None,
                "shares": result.shares or None,
                "times_ms": {stage: round(ms, 2) for stage, ms in result.times.items()},
            }
        )
        if self.says_results:
            print(f"{result.name}: {result!r}")

    def free_name(self, name: str) -> str:
        """Without suffix, where that is unique: a.jpg and a.png must not share their outputs."""
        short = str(Path(name).with_suffix(""))
        chosen, count = short, 2
        if chosen in self.names:
            chosen = name
        while chosen in self.names:
            chosen, count = f"{name}_{count}", count + 1
        self.names.add(chosen)
        return chosen

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "model": self.segmenter.name,
            "task": self.segmenter.task,
            "device": str(self.segmenter.device),
            "out": str(self.out),
            "results": self.written,
            "errors": self.failures,
        }

    def summary(self) -> str:
        """The last lines: how much, how fast, where."""
        count = len(self.written)
        lines: list[str] = []
        if count:
            mean = {
                stage: sum(w["times_ms"][stage] for w in self.written) / count
                for stage in self.written[0]["times_ms"]
            }
            stages = ", ".join(f"{stage} {ms:.0f}" for stage, ms in mean.items())
            pictures = "1 picture" if count == 1 else f"{count} pictures"
            lines.append(f"{pictures}, {sum(mean.values()):.0f} ms each ({stages})")
            where = self.written[0]["picture"] if count == 1 else f"{self.out}/"
            lines.append(f"wrote {where} (the json lies beside it)")
        if self.failures:
            lines.append(f"{len(self.failures)} could not be read, see the errors above")
        return "\n".join(lines)


def _formats(formats: list[str] | None, *, save_probs: bool) -> list[str]:
    """Check the names before hours of work, and split `coco,yolo`."""
    from pixelwise.results.formats import writer

    kinds = [kind.strip() for text in formats or [] for kind in text.split(",")]
    for kind in kinds:
        writer(kind)
    return list(dict.fromkeys([*kinds, *(["probs"] if save_probs else [])]))
