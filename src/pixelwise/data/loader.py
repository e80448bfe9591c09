"""Batches, and the order in which pictures come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from pixelwise.data.sample import Sample
from pixelwise.data.transforms import Prepared, TrainTransform, pad_to
from pixelwise.types import ImageSize, SemanticTarget, Target


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Pictures of one step, padded to the largest.

    Args:
        images:  [B, C, H, W] float32.
        targets: one per picture.
        sizes:   one per picture; `input` is (H, W).
        indices: positions in the data set.
    """

    images: Tensor
    targets: list[Target]
    sizes: list[ImageSize]
    indices: list[int]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return Batch(
            images=self.images.to(device, non_blocking=non_blocking),
            targets=[t.to(device, non_blocking=non_blocking) for t in self.targets],
            sizes=self.sizes,
            indices=self.indices,
        )


def collate(items: Sequence[Prepared]) -> Batch:
    """Join prepared pictures; smaller ones are padded at the right and the bottom."""
    height = max(p.image.shape[-2] for p in items)
    width = max(p.image.shape[-1] for p in items)
    targets: list[Target] = []
    for item in items:
        target = item.target
        if isinstance(target, SemanticTarget):
            target = SemanticTarget(labels=pad_to(target.labels, (height, width), value=255))
        if target is not None:
            targets.append(target)
    return Batch(
        images=torch.stack([pad_to(p.image, (height, width)) for p in items]),
        targets=targets,
        sizes=[
            ImageSize(original=p.size.original, content=p.size.content, input=(height, width))
            for p in items
        ],
        indices=[p.index for p in items],
    )


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), in an order that follows from seed and epoch alone.

    All processes see the same permutation and take turns; what does not fill a batch on every
    process is left out.

    Args:
        length:     of the data set.
        batch_size: pictures per batch of this process.
        seed:       of the order.
        rank:       this process.
        world:      number of processes.
    """

    def __init__(
        self, length: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch, and the batch within it to begin with."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world) - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        whole = self.batch_size * self.world
        for number in range(self.start, self.length // whole):
            first = number * whole + self.rank * self.batch_size
            yield [(self.epoch, int(i)) for i in order[first : first + self.batch_size]]


class View(Protocol):
    """What a loader reads from."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Sample: ...


class _Training:
    """Reads and transforms; the chance in it follows from seed, epoch and picture alone."""

    def __init__(self, view: View, transform: TrainTransform, seed: int) -> None:
        self.view, self.transform, self.seed = view, transform, seed

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, key: tuple[int, int]) -> Prepared:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])

        def draw_other() -> Sample:
            return self.view[int(rng.integers(len(self.view)))]

        return self.transform(self.view[index], rng, draw_other)


def make_loader(
    view: View,
    transform: TrainTransform,
    *,
    batch_size: int,
    workers: int,
    sampler: EpochSampler,
    seed: int,
) -> DataLoader[Batch]:
    """Read training batches, in this process or in `workers` others."""
    del batch_size  # the sampler makes the batches
    return DataLoader(
        cast(Any, _Training(view, transform, seed)),
        batch_sampler=cast(Any, sampler),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
