"""The loop of an evaluation: this process's share of the pictures, and joining what each found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pixelwise.data.dataset import Dataset
from pixelwise.data.loader import Batch, collate
from pixelwise.data.sample import Sample
from pixelwise.data.transforms import EvalTransform, Prepared
from pixelwise.errors import UsageError
from pixelwise.evaluation.meters import Meter, Truth
from pixelwise.metrics.miou import Absent
from pixelwise.ops.crf import DenseCRF
from pixelwise.prediction.augmented import Augmentation
from pixelwise.prediction.settings import Options, Seams, read_options
from pixelwise.progress import track
from pixelwise.spec import InputSpec, Task
from pixelwise.types import Prediction, System

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
        tile, overlap, seams, tta, crf: as `Segmenter.predict` takes them.
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
    overlap: float | None
    seams: Seams
    tta: Augmentation | Sequence[float] | bool | None
    crf: DenseCRF | str | bool | None
    quiet: bool
    label: str


@dataclass(frozen=True, kw_only=True)
class Job:
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
    overlap: float | None = None
    seams: Seams = "blended"
    tta: Augmentation | Sequence[float] | bool | None = None
    crf: DenseCRF | str | bool | None = None
    quiet: bool = False
    label: str = "evaluate"

    @property
    def place(self) -> torch.device:
        """Where the system computes."""
        return torch.device(self.device)

    @property
    def options(self) -> Options:
        """Of the prediction; objects of every score are judged."""
        return {
            "tile": self.tile,
            "overlap": self.overlap,
            "seams": self.seams,
            "tta": self.tta,
            "crf": self.crf,
            "score_thresh": 0.0,
        }

    @property
    def is_plain(self) -> bool:
        """Every picture is one forward pass, and that is all."""
        return self.tile is None and not self.tta and not self.crf


class Losses:
    """Validation losses of every batch, by the first picture in it."""

    def __init__(self) -> None:
        self.batches: dict[int, tuple[int, dict[str, float]]] = {}

    def update(self, first: int, pictures: int, losses: dict[str, float]) -> None:
        """Add one batch: its first picture, how many it holds, and its losses."""
        self.batches[first] = pictures, losses

    def merge(self, other: Losses) -> Losses:
        """Add another shard; returns self."""
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


def predictions(
    system: nn.Module, view: Dataset, job: Job, losses: Losses
) -> Iterator[tuple[Sequence[Prediction], Sequence[Truth]]]:
    """Predictions and annotations of this process's pictures, batch by batch."""
    batches = _my_batches(len(view), job.batch_size)
    if not job.is_plain:
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
        loader, job.label, total=len(batches), quiet=job.quiet or rank_and_world()[0] > 0
    )
    for batch, truths in done:
        images = batch.images.to(job.place, non_blocking=True)
        with _autocast(job):
            raw = contract.forward(images)
        yield contract.decode(_full_precision(raw), batch.sizes), truths
        if job.with_loss:
            found = _loss(contract, images, batch, job)
            losses.update(truths[0].index, len(truths), found)


def predict_one(system: nn.Module, sample: Sample, job: Job) -> Prediction:
    """The prediction of a single picture."""
    if not job.is_plain:
        return _assemble(_segmenter(system, job), sample, job)
    contract = cast(System, system)
    batch = collate([EvalTransform(job.input, job.task)(sample)])
    with _autocast(job):
        raw = contract.forward(batch.images.to(job.place))
    return contract.decode(_full_precision(raw), batch.sizes)[0]


def _predict_assembled(
    system: nn.Module, view: Dataset, job: Job, indices: Sequence[int]
) -> Iterator[tuple[Sequence[Prediction], Sequence[Truth]]]:
    """The same through `Segmenter`, which knows tiles, test-time augmentation and CRFs."""
    segmenter = _segmenter(system, job)
    for i in track(indices, job.label, quiet=job.quiet or rank_and_world()[0] > 0):
        sample = view[i]
        truth = Truth(
            index=i, path=str(sample.path), labels=sample.labels, instances=sample.instances
        )
        yield [_assemble(segmenter, sample, job)], [truth]


def _segmenter(system: nn.Module, job: Job) -> Segmenter:
    from pixelwise.predict import Segmenter

    return Segmenter(
        system,
        name=job.label,
        classes=job.classes,
        input=job.input,
        task=job.task,
        device=job.place,
    )


def _assemble(segmenter: Segmenter, sample: Sample, job: Job) -> Prediction:
    result = segmenter.predict(sample.image, **job.options)
    return cast(Prediction, result.semantic if job.task == "semantic" else result.instances)


def _loss(system: System, images: Tensor, batch: Batch, job: Job) -> dict[str, float]:
    """The losses of one batch; sampling inside them depends on the batch alone."""
    targets = [target.to(job.place, non_blocking=True) for target in batch.targets]
    torch.manual_seed(batch.indices[0])  # pyright: ignore[reportUnknownMemberType]
    with _autocast(job):
        return {name: float(value) for name, value in system.loss(images, targets).items()}


def _join(items: Sequence[tuple[Prepared, Truth]]) -> tuple[Batch, list[Truth]]:
    return collate([prepared for prepared, _ in items]), [truth for _, truth in items]


def _my_batches(pictures: int, batch_size: int) -> list[list[int]]:
    """This process's share of the batches that a single process would make, none of them padded.

    Whole batches are dealt out, since what a picture is batched with may change its padding.
    """
    rank, world = rank_and_world()
    starts = range(0, pictures, batch_size)
    return [list(range(s, min(s + batch_size, pictures))) for s in starts][rank::world]


def rank_and_world() -> tuple[int, int]:
    """Which process this is, and of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(meter: Meter, losses: Losses) -> tuple[Meter, Losses]:
    """The meters of all processes joined, in the order of their ranks; the same on each of them."""
    world = rank_and_world()[1]
    if world == 1:
        return meter, losses
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, (meter, losses))
    meter, losses = parts[0]
    for other, other_losses in parts[1:]:
        meter.merge(other)
        losses.merge(other_losses)
    return meter, losses


@contextmanager
def evaluation_mode(system: nn.Module) -> Generator[None]:
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


def _autocast(job: Job) -> AbstractContextManager[Any]:
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


def check(job: Job) -> None:
    """Refuse settings that no evaluation can have, before it starts.

    Raises:
        UsageError: naming the setting.
    """
    if job.batch_size < 1 or job.workers < 0:
        raise UsageError(
            f"batch_size={job.batch_size}, workers={job.workers}: at least one picture per batch, "
            "and no negative number of workers"
        )
    if job.precision != "fp32" and job.precision not in _AUTOCAST:
        raise UsageError(f"precision={job.precision!r}; choose fp32, bf16 or fp16")
    if job.absent not in get_args(Absent):
        raise UsageError(f"absent={job.absent!r}; choose one of {', '.join(get_args(Absent))}")
    read_options(job.options, job.task)
    if job.with_loss and not job.is_plain:
        raise UsageError("a loss is taken of whole pictures; leave tile, tta and crf out with it")
    if job.precision != "fp32" and not job.is_plain:
        raise UsageError("tile, tta and crf compute in fp32; leave precision out")


def described(job: Job) -> dict[str, Any]:
    """The settings that the numbers depend on."""
    found: dict[str, Any] = {"batch_size": job.batch_size, "precision": job.precision}
    settings = read_options(job.options, job.task)
    if settings.sliding is not None:
        found["sliding"] = asdict(settings.sliding)
    elif settings.tile is not None:
        found |= {"tile": settings.tile, "overlap": settings.overlap}
    found |= {k: asdict(v) for k in ("tta", "crf") if (v := getattr(settings, k)) is not None}
    own = "absent" if job.task == "semantic" else "max_dets"
    return found | {own: getattr(job, own)}
