"""`pixelwise demo`: the main job in three minutes, without any download.

Segments a real microscope picture with the model that the package carries, draws a small data set,
fine-tunes that model on it, measures the result, and says where everything lies.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pixelwise.catalogue import find_checkpoint
from pixelwise.errors import MissingExtraError
from pixelwise.evaluate import evaluate
from pixelwise.predict import load
from pixelwise.shapes import write_shapes
from pixelwise.train import train

MODEL = "nuclei"  # the embedded instance model
_STEPS = 60  # about a minute on two cores


@dataclass(frozen=True, kw_only=True)
class DemoOutput:
    """Where the demo left what it made, and what it measured."""

    overlay: Path
    json: Path
    report: Path
    objects: int
    metrics: dict[str, float]
    seconds: float


def run_demo(out: Path, *, quiet: bool = False) -> DemoOutput:
    """Run the demo into a folder.

    Args:
        out:   folder for pictures, data and the training run; made if missing.
        quiet: show no progress.

    Raises:
        MissingExtraError: scikit-image, whose wheel holds the picture, is not installed.
    """
    started = time.monotonic()
    segmenter = load(MODEL)
    # In tiles, because its nuclei are smaller than those the model was trained on.
    result = segmenter.predict(microscope_picture(), tile=256)
    overlay, document = result.save(out / "picture")
    data = write_shapes(out / "shapes")
    run = train(
        {"weights": str(find_checkpoint(MODEL)), "detections_per_image": 20},
        data={
            "source": str(data),
            "batch_size": 4,
            "workers": 0,
            "scale": (0.8, 1.25),
            "resize": {"short_side": 128, "pad_divisor": 32},
        },
        steps=_STEPS,
        out=out / "run",
        quiet=quiet,
        optim={"name": "adamw", "lr": 5e-4, "warmup_steps": 10, "grad_clip": 5.0},
        run={"channels_last": True},
        eval={"every_steps": _STEPS},
    )
    report = evaluate(run.segmenter(), data, split="val", quiet=quiet)
    return DemoOutput(
        overlay=overlay,
        json=document,
        report=run.out / "report.html",
        objects=len(result),
        metrics=report.metrics,
        seconds=time.monotonic() - started,
    )


def microscope_picture() -> Path:
    """A stained tissue section, 512x512, that ships inside scikit-image's wheel."""
    try:
        import skimage
    except ImportError as error:
        raise MissingExtraError("the demo's microscope picture", "demo") from error
    return Path(skimage.__file__).parent / "data" / "ihc.png"
