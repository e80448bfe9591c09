"""Evaluation: the same loop for a model on disk, during training, alone or on several processes.

Every process evaluates whole batches of the list that a single process would work through, none
twice, and the counts are joined at the end. So the numbers do not depend on how many took part.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pixelwise import randomness
from pixelwise.data.dataset import Dataset
from pixelwise.data.loader import Batch, collate
from pixelwise.data.transforms import EvalTransform, Prepared
from pixelwise.errors import UsageError
from pixelwise.meters import InstanceMeter, Meter, SemanticMeter, Truth
from pixelwise.metrics.miou import Absent, as_array
from pixelwise.progress import track
from pixelwise.scores import Report
from pixelwise.spec import InputSpec, Task
from pixelwise.types import (
    IGNORE,
    InstancePrediction,
    IntArray,
    Prediction,
    SemanticPrediction,
    System,
)

if TYPE_CHECKING:
    from pixelwise.predict import Segmenter

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Settings(TypedDict, total=False):
    """How an evaluation runs; every key may be left out.

    Args:
        device:     where the system computes ("cpu", "cuda:0"); `evaluate` takes the model's.
        batch_size: pictures per forward pass (1).
        workers:    processes that read pictures (0: this one).
        max_dets:   detections per picture and class that count (100, as COCO's); a list gives one
                    average recall each.
        boundary:   boundary AP too, for instances (off: it takes longer).
        absent:     classes that do not occur: "defined", "in_gt" or "all_zero" (`Confusion`).
        with_loss:  the loss on these pictures too.
        precision:  "fp32", "bf16" or "fp16".
        tile:       segment in tiles of this side, pixels; None takes every picture whole.
        tta:        test-time augmentation, as `Segmenter.predict` takes it.
        quiet:      show no progress.
        label:      what the progress shows.
    """

    device: str | torch.device
    batch_size: int
    workers: int
    max_dets: int | Sequence[int]
    boundary: bool
    absent: Absent
    with_loss: bool
    precision: Literal["fp32", "bf16", "fp16"]
    tile: int | None
    tta: Any
    quiet: bool
    label: str


@dataclass(frozen=True, kw_only=True)
class _Job:
    """`Settings` with its defaults, and what every part of the loop needs."""

    task: Task
    input: InputSpec
    classes: tuple[str, ...]
    device: str | torch.device = "cpu"
    batch_size: int = 1
    workers: int = 0
    max_dets: int | Sequence[int] = 100
    boundary: bool = False
    absent: Absent = "defined"
    with_loss: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tile: int | None = None
    tta: Any = None
    quiet: bool = False
    label: str = "evaluate"

    @property
    def place(self) -> torch.device:
        """Where the system computes."""
        return torch.device(self.device)


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
    from pixelwise.data.dataset import open as open_data
    from pixelwise.predict import Segmenter, load

    device = settings.get("device")
    if not isinstance(model, Segmenter):
        model = load(model, device=None if device is None else str(device))
    found = open_data(data)
    if split is not None and not _is_one_file(data):
        found = found.split(split)
    view = found.as_semantic() if model.task == "semantic" else found.as_instances()
    if not len(view):
        raise UsageError(f"{data}: split {split!r} has no pictures to evaluate")
    settings["device"] = device or model.device
    report = evaluate_system(
        model.system,
        replace(view, channels=model.input.channels),
        task=model.task,
        input=model.input,
        classes=model.classes,
        **settings,
    )
    source = view.sources[0].format if isinstance(data, Dataset) else str(data)
    return replace(
        report,
        about={"model": model.name, "data": source, "split": "+".join(found.splits)} | report.about,
    )


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
    job = _Job(task=task, input=input, classes=tuple(classes), **settings)
    _check(job)
    translate = match_classes(job.classes, view.classes)
    if job.with_loss and translate is not None:
        raise UsageError("a loss needs the classes of model and data in the same order")
    meter = _meter(job, view.classes)
    losses = _Losses()
    start = time.perf_counter()
    with randomness.kept(), _evaluation_mode(system.to(job.place)), torch.no_grad():
        for predictions, truths in _predict(system, view, job, losses):
            for prediction, truth in zip(predictions, truths, strict=True):
                _add(meter, _translated(prediction, translate), truth)
    meter, losses = _gather(meter, losses)
    about = {
        "images": len(view),
        "seconds": time.perf_counter() - start,
        "settings": _described(job),
    }
    return Report.of(
        task, view.classes, meter.findings(), paths=meter.paths, losses=losses.means(), about=about
    )


def _is_one_file(data: Dataset | str | os.PathLike[str]) -> bool:
    """Whether the data is one annotation file, which knows no splits."""
    return not isinstance(data, Dataset) and Path(data).suffix.lower() == ".json"


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
    from pixelwise.errors import ModelError

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


class _Losses:
    """Validation losses of every batch, by the first picture in it."""

    def __init__(self) -> None:
        self.batches: dict[int, tuple[int, dict[str, float]]] = {}

    def update(self, first: int, pictures: int, losses: dict[str, float]) -> None:
        self.batches[first] = pictures, losses

    def merge(self, other: _Losses) -> _Losses:
        self.batches |= other.batches
        return self

    def means(self) -> dict[str, float]:
        """Means over pictures: the total under "loss", each part under "loss/NAME"."""
        sums: dict[str, float] = defaultdict(float)
        total = 0
        for _, (pictures, losses) in sorted(self.batches.items()):
            total += pictures
            for name, value in losses.items():
                sums[f"loss/{name}"] += value * pictures
        parts = {name: value / total for name, value in sums.items()}
        return {"loss": sum(parts.values())} | parts if parts else {}


class _Pictures:
    """What the reading processes do: a picture made ready, and its annotation at original size."""

    def __init__(self, view: Dataset, transform: EvalTransform) -> None:
        self.view, self.transform = view, transform

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, i: int) -> tuple[Prepared, Truth]:
        sample = self.view[i]
        truth = Truth(
            index=i, path=str(sample.path), labels=sample.labels, instances=sample.instances
        )
        return self.transform(sample), truth


def _predict(
    system: nn.Module, view: Dataset, job: _Job, losses: _Losses
) -> Iterator[tuple[Sequence[Prediction], Sequence[Truth]]]:
    """Predictions and annotations of this process's pictures, batch by batch."""
    batches = _my_batches(len(view), job.batch_size)
    if job.tile is not None or job.tta:
        yield from _predict_assembled(system, view, job, [i for batch in batches for i in batch])
        return
    loader = DataLoader(
        cast(Any, _Pictures(view, EvalTransform(job.input, job.task))),
        batch_sampler=batches,
        collate_fn=_join,
        num_workers=job.workers,
        pin_memory=job.place.type == "cuda",
    )
    contract = cast(System, system)
    done: Iterable[tuple[Batch, list[Truth]]] = track(
        loader, job.label, total=len(batches), quiet=job.quiet or _rank_and_world()[0] > 0
    )
    for batch, truths in done:
        images = batch.images.to(job.place, non_blocking=True)
        with _autocast(job):
            raw = contract(images)  # pyright: ignore[reportUnknownVariableType,reportCallIssue]
        yield contract.decode(_full_precision(raw), batch.sizes), truths
        if job.with_loss:
            found = _loss(contract, images, batch, job)
            losses.update(truths[0].index, len(truths), found)


def _predict_assembled(
    system: nn.Module, view: Dataset, job: _Job, indices: Sequence[int]
) -> Iterator[tuple[Sequence[Prediction], Sequence[Truth]]]:
    """The same through `Segmenter`, for tiles and test-time augmentation."""
    from pixelwise.predict import Segmenter

    segmenter = Segmenter(
        system,
        name=job.label,
        classes=job.classes,
        input=job.input,
        task=job.task,
        device=job.place,
    )
    for i in track(indices, job.label, quiet=job.quiet or _rank_and_world()[0] > 0):
        sample = view[i]
        result = segmenter.predict(sample.image, tile=job.tile, tta=job.tta, score_thresh=0.0)
        truth = Truth(
            index=i, path=str(sample.path), labels=sample.labels, instances=sample.instances
        )
        prediction = result.semantic if job.task == "semantic" else result.instances
        yield [cast(Prediction, prediction)], [truth]


def _loss(system: System, images: Tensor, batch: Batch, job: _Job) -> dict[str, float]:
    """The losses of one batch; sampling inside them depends on the batch alone."""
    targets = [target.to(job.place, non_blocking=True) for target in batch.targets]
    torch.manual_seed(batch.indices[0])
    with _autocast(job):
        return {name: float(value) for name, value in system.loss(images, targets).items()}


def _join(items: Sequence[tuple[Prepared, Truth]]) -> tuple[Batch, list[Truth]]:
    return collate([prepared for prepared, _ in items]), [truth for _, truth in items]


def _my_batches(pictures: int, batch_size: int) -> list[list[int]]:
    """This process's share of the batches that a single process would make, none of them padded.

    Whole batches are dealt out, since what a picture is batched with may change its padding.
    """
    rank, world = _rank_and_world()
    starts = range(0, pictures, batch_size)
    return [list(range(s, min(s + batch_size, pictures))) for s in starts][rank::world]


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _gather(meter: Meter, losses: _Losses) -> tuple[Meter, _Losses]:
    """The meters of all processes joined, in the order of their ranks; the same on each of them."""
    world = _rank_and_world()[1]
    if world == 1:
        return meter, losses
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, (meter, losses))
    meter, losses = parts[0]
    for other, other_losses in parts[1:]:
        meter.merge(other)
        losses.merge(other_losses)
    return meter, losses


def _meter(job: _Job, classes: Sequence[str]) -> Meter:
    if job.task == "semantic":
        return SemanticMeter(classes, absent=job.absent)
    return InstanceMeter(classes, max_dets=job.max_dets, boundary=job.boundary)


def _add(meter: Meter, prediction: Prediction, truth: Truth) -> None:
    if isinstance(meter, SemanticMeter):
        meter.update(cast(SemanticPrediction, prediction), truth)
    else:
        meter.update(cast(InstancePrediction, prediction), truth)


def _translated(prediction: Prediction, translate: IntArray | None) -> Prediction:
    """A prediction with the data set's labels for the model's."""
    if translate is None:
        return prediction
    if isinstance(prediction, InstancePrediction):
        labels = torch.from_numpy(translate)[prediction.labels]
        return replace(prediction, labels=labels).select(labels >= 0)
    labels = as_array(prediction.labels)
    table = np.full(max(IGNORE + 1, len(translate)), IGNORE, np.uint8)
    table[: len(translate)] = np.where(translate < 0, IGNORE, translate)
    return replace(prediction, labels=torch.from_numpy(table[labels]))


@contextmanager
def _evaluation_mode(system: nn.Module) -> Generator[None]:
    """Evaluation mode inside; afterwards every sub-module is in the mode it was in.

    `train()` alone would also wake frozen normalisation layers.
    """
    before = {module: module.training for module in system.modules()}
    system.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _autocast(job: _Job) -> AbstractContextManager[Any]:
    if job.precision == "fp32":
        return nullcontext()
    return torch.autocast(job.place.type, _AUTOCAST[job.precision])


def _full_precision(raw: Any) -> Any:
    """Raw outputs in float32, which decoding counts on."""
    if isinstance(raw, Tensor):
        return raw.float() if raw.dtype in (torch.bfloat16, torch.float16) else raw
    if isinstance(raw, tuple):
        fields = cast("tuple[Any, ...]", raw)
        parts = map(_full_precision, fields)
        return type(fields)(*parts) if hasattr(fields, "_fields") else tuple(parts)
    return raw


def _check(job: _Job) -> None:
    if job.batch_size < 1 or job.workers < 0:
        raise UsageError(
            f"batch_size={job.batch_size}, workers={job.workers}: at least one picture per batch, "
            "and no negative number of workers"
        )
    if job.precision != "fp32" and job.precision not in _AUTOCAST:
        raise UsageError(f"precision={job.precision!r}; choose fp32, bf16 or fp16")
    if job.absent not in get_args(Absent):
        raise UsageError(f"absent={job.absent!r}; choose one of {', '.join(get_args(Absent))}")
    if job.with_loss and (job.tile is not None or job.tta):
        raise UsageError("a loss is taken of whole pictures; leave tile and tta out with it")


def _described(job: _Job) -> dict[str, Any]:
    """The settings that the numbers depend on."""
    keys = ("batch_size", "precision", "tile", "tta")
    own = ("absent",) if job.task == "semantic" else ("max_dets",)
    return {key: getattr(job, key) for key in (*keys, *own)}
