"""Between two stretches of training: measure, keep the best weights, draw the same pictures."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from pixelwise import checkpoint, randomness
from pixelwise.data.loader import collate
from pixelwise.data.transforms import EvalTransform
from pixelwise.errors import UsageError
from pixelwise.evaluate import draw_worst, evaluate_system
from pixelwise.evaluation.loop import evaluation_mode
from pixelwise.evaluation.scores import MAIN_METRIC, Report, show
from pixelwise.report import write_report
from pixelwise.training import run_folder
from pixelwise.training.session import Session
from pixelwise.types import InstancePrediction, System
from pixelwise.visualize import draw, draw_ground_truth, side_by_side

_EVALUATIONS = 20  # of a run in steps whose recipe does not say how often
_SHOWN_SCORE = 0.5  # objects below it would clutter the pictures
_SUMMARY = 5  # metrics in the line of an evaluation


def next_evaluation(session: Session) -> int:
    """The next step after which the run is evaluated."""
    period = _period(session)
    return min(session.total_steps, (session.position.step // period + 1) * period)


def evaluation_due(session: Session) -> bool:
    """Whether the current step ends a stretch that has not been evaluated."""
    step = session.position.step
    at_end = step > 0 and (step % _period(session) == 0 or step >= session.total_steps)
    return at_end and session.position.evaluated_step != step


def _period(session: Session) -> int:
    watch = session.recipe.eval
    if watch.every_steps is not None:
        return watch.every_steps
    if watch.every_epochs is None and session.recipe.run.epochs is None:
        return max(1, session.total_steps // _EVALUATIONS)
    return (watch.every_epochs or 1) * session.steps_per_epoch


def validate(session: Session) -> None:
    """Evaluate, save weights, draw pictures, write a row and the report. All processes call it."""
    system = session.parts.system
    with _averaged(session, system), randomness.kept():
        report = _measure(session, system)
        improved = _judge(session, report.metrics)
        if session.compute.is_main:
            _save_weights(session, system, report, improved=improved)
            with evaluation_mode(system):
                _draw_pictures(session, system)
            if improved and session.recipe.log.pictures:
                _draw_worst(session, system, report)
    session.position.evaluated_step = session.position.step
    if session.compute.is_main:
        _log_validation(session, report, improved=improved)
        write_report(session.folder.path)
    session.compute.wait()


@contextmanager
def _averaged(session: Session, system: nn.Module) -> Generator[None]:
    """Averaged weights, where the run keeps them."""
    if session.average is None:
        yield
        return
    with session.average.applied(system):
        yield


def _measure(session: Session, system: nn.Module) -> Report:
    recipe, parts = session.recipe, session.parts
    report = evaluate_system(
        system,
        parts.val,
        task=parts.task,
        input=parts.input,
        classes=parts.classes,
        device=session.compute.device,
        batch_size=recipe.eval.batch_size,
        workers=recipe.data.workers,
        max_dets=recipe.eval.max_dets,
        with_loss=True,
        quiet=session.folder.quiet,
        label="validation",
    )
    about = {
        "model": parts.name,
        "data": recipe.data.source,
        "split": recipe.data.val,
        "step": session.position.step,
        "epoch": session.epoch,
    }
    return replace(report, about=about | report.about)


def _judge(session: Session, metrics: Mapping[str, float]) -> bool:
    """Compare with the best so far; returns whether this is better."""
    watch, position = session.recipe.eval, session.position
    name = (watch.best or MAIN_METRIC[session.parts.task]).removeprefix("val/")
    if name not in metrics:
        raise UsageError(
            f"eval.best = {watch.best!r} is not measured; choose one of {', '.join(metrics)}"
        )
    value = metrics[name]
    falls = watch.mode == "min" or (watch.mode is None and "loss" in name)
    better = position.best is None or (
        value < position.best if falls else value > position.best
    )  # an undefined value (nan) is never better
    if better:
        position.best = None if math.isnan(value) else value
        position.best_step = session.position.step
    position.stale = 0 if better else position.stale + 1
    return better


def _save_weights(session: Session, system: nn.Module, report: Report, *, improved: bool) -> None:
    recipe, parts, folder = session.recipe, session.parts, session.folder
    for path in (folder.best, folder.last) if improved else (folder.last,):
        checkpoint.save(
            path,
            system,
            name=parts.name,
            classes=parts.classes,
            input=parts.input,
            metrics=report.metrics,
            licence=recipe.model.licence,
            recipe=recipe.model_dump(mode="json"),
            colors=parts.colors,
        )
    if improved:
        folder.write_json("evaluation.json", report.to_dict())


@torch.no_grad()
def _draw_pictures(session: Session, system: nn.Module) -> None:
    """Annotation beside prediction, for the same pictures at every evaluation."""
    parts, folder = session.parts, session.folder
    count = min(session.recipe.log.pictures, len(parts.val))
    transform = EvalTransform(parts.input, parts.task)
    contract = cast("System", system)
    for number, index in enumerate(np.linspace(0, len(parts.val) - 1, count).astype(int).tolist()):
        sample = parts.val[index]
        batch = collate([transform(sample)])
        raw = contract.forward(batch.images.to(session.compute.device))
        (prediction,) = contract.decode(raw, batch.sizes)
        if isinstance(prediction, InstancePrediction):
            prediction = prediction.select(prediction.scores >= _SHOWN_SCORE)
        picture = side_by_side(
            [
                draw_ground_truth(sample, parts.classes, colors=parts.colors),
                draw(sample.image, prediction, parts.classes, colors=parts.colors),
            ],
            titles=["annotation", "prediction"],
        )
        name = f"epoch_{session.epoch:03d}_{number:02d}.jpg"
        Image.fromarray(picture).save(folder.path / "pictures" / name, quality=90)


def _draw_worst(session: Session, system: nn.Module, report: Report) -> None:
    """The pictures that the best weights fail on most, for the report."""
    parts = session.parts
    draw_worst(
        system,
        parts.val,
        report,
        out=session.folder.path,
        input=parts.input,
        classes=parts.classes,
    )


def _log_validation(session: Session, report: Report, *, improved: bool) -> None:
    row: run_folder.Row = {
        "epoch": session.epoch,
        "step": session.position.step,
        **{f"val/{name}": value for name, value in report.metrics.items() if math.isfinite(value)},
        "time_s": round(session.elapsed_s, 3),
        "memory_mb": round(run_folder.memory_mb(session.compute.device), 1),
    }
    session.folder.log_row(row)
    for logger in session.loggers:
        logger.log(row)
    names = [*list(report.metrics)[:_SUMMARY], *(["loss"] if "loss" in report.metrics else [])]
    values = ", ".join(f"{name} {show(report.metrics[name])}" for name in names)
    session.folder.say(
        f"epoch {session.epoch}, step {session.position.step}: {values}"
        f"{' (best)' if improved else ''}"
    )
