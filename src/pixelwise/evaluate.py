"""Evaluation: the same loop for a model on disk, during training, alone or on several processes.

Every process evaluates whole batches of the list that a single process would work through, none
twice, and the counts are joined at the end. So the numbers do not depend on how many took part.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

import numpy as np
import torch
from torch import nn

from pixelwise import randomness
from pixelwise.data.dataset import Dataset
from pixelwise.data.dataset import open as open_data
from pixelwise.errors import DataError, ModelError, UsageError
from pixelwise.evaluation.loop import (
    Job,
    Losses,
    Settings,
    check,
    described,
    evaluation_mode,
    gather,
    predict_one,
    predictions,
)
from pixelwise.evaluation.meters import InstanceMeter, Meter, SemanticMeter, Truth
from pixelwise.evaluation.scores import Report
from pixelwise.metrics.coco_ap import resolve_max_dets
from pixelwise.metrics.miou import as_array
from pixelwise.spec import InputSpec, Task
from pixelwise.types import (
    IGNORE,
    InstancePrediction,
    IntArray,
    Prediction,
    SemanticPrediction,
)

if TYPE_CHECKING:
    from pixelwise.predict import Segmenter

_SHOWN_SCORE = 0.5  # objects below it would clutter the pictures


def evaluate(
    model: Segmenter | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    *,
    split: str | None = "val",
    **settings: Unpack[Settings],
) -> Report:
    """Measure a model on annotated pictures.

    >>> report = evaluate("runs/city/weights/best.safetensors", "city.yaml")   # doctest: +SKIP
    >>> print(report.summary())                                               # doctest: +SKIP

    Pictures are judged at their original size. Classes of model and data are matched by name: an
    order that differs is translated, and predictions of classes that the data does not know count
    as wrong pixels (semantic) or are left out (instance).

    Args:
        model:    a `Segmenter`, a name, or the path of a checkpoint.
        data:     a data.yaml, a COCO json, a folder, or an opened data set.
        split:    split of the data set; None takes all pictures. A COCO json is one split already.
        settings: see `Settings`.

    Returns:
        The numbers in the data set's class order.

    Raises:
        UsageError: a setting that does not fit.
        DataError:  data that cannot be read, or a split that is not there.
        ModelError: a model that cannot be loaded, or lacks a class of the data.
    """
    from pixelwise.predict import Segmenter, load

    device = settings.get("device")
    if not isinstance(model, Segmenter):
        model = load(model if isinstance(model, str) else Path(model), device=device)
    view = open_view(data, split=split, task=model.task, channels=model.input.channels)
    settings["device"] = device or model.device
    report = evaluate_system(
        model.system,
        view,
        task=model.task,
        input=model.input,
        classes=model.classes,
        **settings,
    )
    source = view.sources[0].format if isinstance(data, Dataset) else str(data)
    return replace(
        report,
        about={"model": model.name, "data": source, "split": "+".join(view.splits)} | report.about,
    )


def open_view(
    data: Dataset | str | os.PathLike[str], *, split: str | None, task: Task, channels: int = 3
) -> Dataset:
    """The pictures that `evaluate` would measure a model on.

    Args:
        data:     a data.yaml, a COCO json, a folder, or an opened data set.
        split:    one of its splits, or None for all; a COCO json is one split already.
        task:     "semantic" or "instance".
        channels: of the pictures.

    Raises:
        DataError: data that cannot be read, or a split that is not there or empty.
    """
    found = open_data(data)
    one_file = not isinstance(data, Dataset) and Path(data).suffix.lower() == ".json"
    if split is not None and not one_file:
        found = found.split(split)
    view = found.as_semantic() if task == "semantic" else found.as_instances()
    if not len(view):
        raise DataError(f"{data}: no pictures to evaluate in split {split!r}")
    return replace(view, channels=channels)


def evaluate_system(
    system: nn.Module,
    view: Dataset,
    *,
    task: Task,
    input: InputSpec,
    classes: Sequence[str],
    **settings: Unpack[Settings],
) -> Report:
    """Measure a system on a view of a data set; what training calls after every epoch.

    Leaves the system in the mode, and all random generators in the state, in which it found them.
    Where torch.distributed is initialised all processes must call it, and all get the same report.

    Args:
        system:   follows the `System` contract; moved to `device`.
        view:     a semantic or an instance view, as the task needs.
        task:     "semantic" or "instance".
        input:    how pictures become network inputs.
        classes:  class names of the system, in label order.
        settings: see `Settings`.

    Raises:
        UsageError: a setting that does not fit.
        ModelError: the system lacks a class of the data.
    """
    job = Job(task=task, input=input, classes=tuple(classes), **settings)
    check(job)
    translate = match_classes(job.classes, view.classes)
    if job.with_loss and translate is not None:
        raise UsageError("a loss needs the classes of model and data in the same order")
    meter = _meter(job, view.classes)
    losses = Losses()
    start = time.perf_counter()
    with randomness.kept(), evaluation_mode(system.to(job.place)), torch.no_grad():
        for found, truths in predictions(system, view, job, losses):
            for prediction, truth in zip(found, truths, strict=True):
                _add(meter, _translated(prediction, translate), truth)
    meter, losses = gather(meter, losses)
    about = {
        "images": len(view),
        "seconds": time.perf_counter() - start,
        "settings": described(job),
        "notes": _notes(system, job),
    }
    return Report.of(
        task, view.classes, meter.findings(), paths=meter.paths, losses=losses.means(), about=about
    )


@torch.no_grad()
def draw_worst(
    system: nn.Module,
    view: Dataset,
    report: Report,
    *,
    out: str | os.PathLike[str],
    input: InputSpec,
    classes: Sequence[str],
    count: int = 6,
    **settings: Unpack[Settings],
) -> list[Path]:
    """Draw annotation beside prediction for the worst pictures of a report.

    Pictures of an earlier report in the same folder are removed; `write_report` shows the new ones.

    Args:
        system:  that was evaluated, on any device.
        view:    that it was evaluated on.
        report:  of that evaluation.
        out:     folder of the run; the files are pictures/worst_INDEX.jpg in it.
        input:   how pictures become network inputs.
        classes: class names of the system.
        count:   how many pictures.
        settings: of the evaluation, so that the pictures show what was judged.

    Returns:
        The files written, worst first.
    """
    from PIL import Image

    from pixelwise.visualize import draw, draw_ground_truth, side_by_side

    folder = Path(out) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("worst_*.jpg"):
        old.unlink()
    written: list[Path] = []
    chosen = [image.index for image in report.worst[:count]]
    place = next((p.device for p in system.parameters()), torch.device("cpu"))
    settings = {"device": place, **settings, "quiet": True}
    job = Job(task=report.task, input=input, classes=tuple(classes), **settings)
    translate = match_classes(job.classes, view.classes)
    with randomness.kept(), evaluation_mode(system):
        for index in chosen:
            sample = view[index]
            prediction = _translated(predict_one(system, sample, job), translate)
            if isinstance(prediction, InstancePrediction):
                prediction = prediction.select(prediction.scores >= _SHOWN_SCORE)
            pair = [
                draw_ground_truth(sample, view.classes, colors=view.colors),
                draw(sample.image, prediction, view.classes, colors=view.colors),
            ]
            picture = side_by_side(pair, titles=["annotation", "prediction"])
            written.append(folder / f"worst_{index:05d}.jpg")
            Image.fromarray(picture).save(written[-1], quality=88)
    return written


def match_classes(model: Sequence[str], data: Sequence[str]) -> IntArray | None:
    """Where the classes of a model stand in a data set, matched by name.

    Args:
        model: class names of the model, in label order.
        data:  class names of the data set, in label order.

    Returns:
        [len(model)] the data set's label of each class, -1 where it has none; None where the two
        lists are the same and nothing needs translation.

    Raises:
        ModelError: the model lacks a class of the data set.
    """
    if tuple(model) == tuple(data):
        return None
    missing = [name for name in data if name not in model]
    if missing:
        raise ModelError(
            f"the model does not know {len(missing)} of the data set's {len(data)} classes: "
            f"{', '.join(missing)}.\nmodel: {', '.join(model)}\ndata: {', '.join(data)}\n"
            "rename the classes under `names` in data.yaml, or train on this data set first"
        )
    position = {name: i for i, name in enumerate(data)}
    return np.array([position.get(name, -1) for name in model], np.int64)


def _meter(job: Job, classes: Sequence[str]) -> Meter:
    if job.task == "semantic":
        return SemanticMeter(classes, absent=job.absent)
    return InstanceMeter(classes, max_dets=job.max_dets, boundary=job.boundary)


def _add(meter: Meter, prediction: Prediction, truth: Truth) -> None:
    if isinstance(meter, SemanticMeter):
        meter.update(cast(SemanticPrediction, prediction), truth)
    else:
        meter.update(cast(InstancePrediction, prediction), truth)


def _notes(system: nn.Module, job: Job) -> list[str]:
    """A limit of the system that makes a setting of the evaluation void."""
    limit = getattr(getattr(system, "cfg", None), "detections_per_image", None)
    if job.task != "instance" or limit is None or resolve_max_dets(job.max_dets)[-1] <= limit:
        return []
    return [
        f"the system returns at most {limit} objects per picture, so a larger max_dets changes "
        f"little; raise its detections_per_image too"
    ]


def _translated(prediction: Prediction, translate: IntArray | None) -> Prediction:
    """A prediction with the data set's labels for the model's."""
    if translate is None:
        return prediction
    if isinstance(prediction, InstancePrediction):
        labels = torch.as_tensor(translate)[prediction.labels]
        return replace(prediction, labels=labels).select(labels >= 0)
    labels = as_array(prediction.labels)
    table = np.full(max(IGNORE + 1, len(translate)), IGNORE, np.uint8)
    table[: len(translate)] = np.where(translate < 0, IGNORE, translate)
    return replace(prediction, labels=torch.as_tensor(table[labels]))
