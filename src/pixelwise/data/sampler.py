"""The order in which pictures come: the same for any number of workers, processes and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from pixelwise.errors import UsageError
from pixelwise.types import IntArray

Key = tuple[int, int]  # (epoch, index): all that the chance in a picture may follow from


class EpochSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) whose order follows from seed and epoch alone.

    Training (`shuffle`): every process goes through the same permutation and they take turns batch
    by batch, so that step n of two processes with batches of 4 sees the pictures of step n of one
    process with batches of 8. Every process gets equally many full batches; the pictures that are
    left over differ from epoch to epoch.

    Evaluation (not `shuffle`): every picture exactly once over all processes, in order, without
    padding, so the shards and the last batch may be smaller.

    The position is counted in batches of this process. Who consumes them decides when a batch is
    done: `state_dict(consumed=...)` is what a loader that reads ahead must be told.

    Args:
        length:     number of pictures.
        batch_size: pictures per batch of this process.
        seed:       of the order.
        rank:       this process.
        world:      number of processes.
        shuffle:    training or evaluation.

    Raises:
        UsageError: an empty data set, or a batch below one.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        if length < 1:
            raise UsageError("the data set has no pictures; check its path and split")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.shuffle = rank, world, shuffle
        self.epoch, self.start = 0, 0

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of this process in a whole epoch."""
        return len(self._batches(np.arange(self.length)))

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch, and the batch within it to begin with."""
        self.epoch, self.start = epoch, start

    def state_dict(self, *, consumed: int = 0) -> dict[str, int]:
        """The position, `consumed` batches after where the iteration began.

        At the end of an epoch it is the beginning of the next.
        """
        epoch, start = self.epoch, self.start + consumed
        if start >= self.batches_per_epoch:
            epoch, start = epoch + 1, 0
        return {"epoch": epoch, "start": start, "seed": self.seed, "length": self.length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another sampler of the same data and seed stood.

        Raises:
            UsageError: the state belongs to another seed or data set.
        """
        for name in ("seed", "length"):
            if state[name] != getattr(self, name):
                raise UsageError(
                    f"the saved order has {name} {state[name]}, this one {getattr(self, name)}: "
                    "resume with the same seed and data set"
                )
        self.set_epoch(int(state["epoch"]), start=int(state["start"]))

    def __len__(self) -> int:
        return max(0, self.batches_per_epoch - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        for batch in self._batches(order)[self.start :]:
            yield [(epoch, int(i)) for i in batch]

    def _batches(self, order: IntArray) -> list[IntArray]:
        """This process's batches of an epoch."""
        size = self.batch_size
        if not self.shuffle:
            mine = order[self.rank :: self.world]
            return [mine[at : at + size] for at in range(0, len(mine), size)]
        steps = len(order) // (size * self.world)
        whole = order[: steps * size * self.world].reshape(steps, self.world, size)
        return list(whole[:, self.rank])
