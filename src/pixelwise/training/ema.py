"""Averaged weights: an exponential moving average of everything a checkpoint holds."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """A moving average of parameters and running statistics, with a warm-up.

    The effective decay is min(decay, (1 + n) / (10 + n)) after n updates, so that a short run is
    not dominated by its random start. Whole-number buffers (counters) are copied.

    Args:
        system: the module that is averaged.
        decay:  share of the old average that survives an update, 0..1.

    Source: Polyak averaging as in TensorFlow's ExponentialMovingAverage (its `num_updates` rule).
    """

    def __init__(self, system: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: value.clone() for name, value in _tensors(system).items()}

    @torch.no_grad()
    def update(self, system: nn.Module) -> None:
        """Take the weights of one more step into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in _tensors(system).items():
            mine = self.average[name]
            if mine.is_floating_point():
                mine.lerp_(value, 1 - decay)
            else:
                mine.copy_(value)

    @contextmanager
    def applied(self, system: nn.Module) -> Generator[None]:
        """The system with averaged weights inside the block, with its own again after it."""
        own = {name: value.clone() for name, value in _tensors(system).items()}
        _assign(system, self.average)
        try:
            yield
        finally:
            _assign(system, own)

    def state(self) -> dict[str, object]:
        """Plain tensors and numbers, for the state file."""
        return {"updates": self.updates, "average": self.average}

    def load_state(self, state: dict[str, object]) -> None:
        """The inverse of `state`."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        saved: dict[str, Tensor] = state["average"]  # type: ignore[assignment]
        for name, value in self.average.items():
            value.copy_(saved[name])


def _tensors(system: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in system.state_dict().items()}


@torch.no_grad()
def _assign(system: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in _tensors(system).items():
        value.copy_(values[name])
