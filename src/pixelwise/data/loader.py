"""Batches, read ahead by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pixelwise.data.sample import Sample
from pixelwise.data.sampler import EpochSampler, Key
from pixelwise.data.transforms import EvalTransform, Prepared, TrainTransform, pad_to
from pixelwise.errors import DataError, PixelwiseError
from pixelwise.types import IGNORE, ImageSize, SemanticTarget, Target

_T = TypeVar("_T")

__all__ = ["Batch", "EpochSampler", "View", "collate", "make_loader"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The pictures of one step, padded to the largest of them.

    Args:
        images:  [B, C, H, W] float32.
        targets: one per picture, in order; without annotations, none at all.
        sizes:   one per picture; `input` is (H, W).
        indices: positions in the data set.
    """

    images: Tensor
    targets: list[Target]
    sizes: list[ImageSize]
    indices: list[int]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return Batch(
            images=self.images.to(device, non_blocking=non_blocking),
            targets=[t.to(device, non_blocking=non_blocking) for t in self.targets],
            sizes=self.sizes,
            indices=self.indices,
        )

    def pin_memory(self) -> Batch:
        """The same batch with its pictures in page-locked memory, for asynchronous copies."""
        return replace(self, images=self.images.pin_memory())


def collate(items: Sequence[Prepared]) -> Batch:
    """Join prepared pictures; smaller ones are padded at the right and the bottom.

    Images with zeros (they are normalised already), labels with 255, weights with zeros.

    Args:
        items: each padded to the network's divisor already, so the largest is too.
    """
    size = max(p.image.shape[-2] for p in items), max(p.image.shape[-1] for p in items)
    targets = [_pad_target(p.target, size) for p in items if p.target is not None]
    return Batch(
        images=torch.stack([pad_to(p.image, size) for p in items]),
        targets=targets,
        sizes=[replace(p.size, input=size) for p in items],
        indices=[p.index for p in items],
    )


def _pad_target(target: Target, size: tuple[int, int]) -> Target:
    if not isinstance(target, SemanticTarget):
        return target  # objects live in the content, which does not change
    weights = target.weights
    return SemanticTarget(
        labels=pad_to(target.labels, size, value=IGNORE),
        weights=None if weights is None else pad_to(weights, size),
    )


class View(Protocol):
    """What a loader reads from: a view of a data set, or anything like it."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Sample: ...

    def path(self, i: int, /) -> Path:
        """The file of picture i."""
        ...


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker to the process that can show it.

    Torch would bury the message under the worker's traceback; here it arrives as it was.
    """

    message: str
    is_data: bool


class _FailureError(Exception):
    """A failure on its way up to where it can be returned."""

    def __init__(self, failure: _Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Reader:
    """Reads and transforms; the chance in it follows from seed, epoch and index alone."""

    def __init__(self, view: View, transform: TrainTransform | EvalTransform, seed: int) -> None:
        self.view, self.transform, self.seed = view, transform, seed

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, key: Key) -> Prepared | _Failure:
        epoch, index = key
        try:
            sample = self._read(index)
            return self._named(index, lambda: self._transform(sample, epoch, index))
        except _FailureError as error:
            return error.failure

    def _read(self, index: int) -> Sample:
        return self._named(index, lambda: self.view[index])

    def _transform(self, sample: Sample, epoch: int, index: int) -> Prepared:
        if isinstance(self.transform, EvalTransform):
            return self.transform(sample)
        rng = np.random.default_rng([self.seed, epoch, index])

        def draw_other() -> Sample:
            return self._read(int(rng.integers(len(self.view))))

        return self.transform(sample, rng, draw_other)

    def _named(self, index: int, work: Callable[[], _T]) -> _T:
        """Do some work; an error in it names the file of this picture."""
        try:
            return work()
        except _FailureError:
            raise  # of another picture, which it names
        except Exception as error:
            path, message = str(self.view.path(index)), str(error)
            if not isinstance(error, PixelwiseError):
                message = f"{type(error).__name__}: {error}; check this picture and its annotation"
            message = message if path in message else f"{path}: {message}"
            is_data = isinstance(error, DataError | OSError)
            raise _FailureError(_Failure(message, is_data)) from error


class _Loader(DataLoader[Batch]):
    """A `DataLoader` that raises the errors of its workers as errors of ours."""

    def __iter__(self) -> Any:
        return _checked(super().__iter__())


def _checked(batches: Iterator[Any]) -> Iterator[Batch]:
    try:
        for batch in batches:
            if isinstance(batch, _Failure):
                raise (DataError if batch.is_data else PixelwiseError)(batch.message)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise PixelwiseError(
            f"a process that reads pictures died ({str(error).splitlines()[0]}); it probably ran "
            "out of memory: use fewer workers or a smaller batch"
        ) from error


def _collate_or_fail(items: Sequence[Prepared | _Failure]) -> Batch | _Failure:
    failures = [item for item in items if isinstance(item, _Failure)]
    return failures[0] if failures else collate(cast(Sequence[Prepared], items))


def make_loader(
    view: View,
    transform: TrainTransform | EvalTransform,
    *,
    batch_size: int,
    workers: int,
    sampler: EpochSampler,
    seed: int,
) -> DataLoader[Batch]:
    """Read batches, in this process or ahead of it in others.

    The result does not depend on the number of workers, nor on where in an epoch it begins.

    Args:
        view:       the annotated pictures.
        transform:  what is done to each.
        batch_size: as the sampler's.
        workers:    number of reading processes; 0 reads in this one.
        sampler:    which pictures, and in which batches.
        seed:       of the chance in the transform.

    Returns:
        An iterable of `Batch`. Iterating raises DataError where a file is missing or broken; the
        message names it.
    """
    if batch_size != sampler.batch_size:
        raise ValueError(f"batch_size is {batch_size}, the sampler's {sampler.batch_size}")
    generator = torch.Generator().manual_seed(seed)  # else each epoch draws from the global one
    collate_fn: Callable[..., Any] = _collate_or_fail
    return _Loader(
        cast(Any, _Reader(view, transform, seed)),
        batch_sampler=cast(Any, sampler),
        collate_fn=collate_fn,
        num_workers=workers,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )
