"""A training run in memory: its parts, its position, and how both become a file and come back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from pixelwise import atomic, randomness
from pixelwise.errors import ModelError, UsageError
from pixelwise.spec import Recipe
from pixelwise.training import optimisation
from pixelwise.training.acceleration import Compute
from pixelwise.training.ema import AveragedWeights
from pixelwise.training.interruption import StopSignal
from pixelwise.training.loggers import Logger
from pixelwise.training.prepare import Parts
from pixelwise.training.run_folder import RunFolder

STATE_VERSION = 1


@dataclass(kw_only=True)
class Position:
    """How far a run is.

    Args:
        step:           optimiser steps done.
        evaluated_step: step of the newest finished evaluation, -1 before the first.
        best:           best value of the watched metric so far.
        best_step:      where it was reached.
        stale:          evaluations since then.
        elapsed_s:      seconds of training so far, over all resumed parts.
    """

    step: int = 0
    evaluated_step: int = -1
    best: float | None = None
    best_step: int = -1
    stale: int = 0
    elapsed_s: float = 0.0


@dataclass
class Meter:
    """Running sums of losses since the last row of the log."""

    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    steps: int = 0

    def add(self, values: Mapping[str, Tensor], *, share: float) -> None:
        """Add the losses of a part of a step, which makes up `share` of the step's batch."""
        for name, value in values.items():
            part = value.detach().double() * share
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def means(self, compute: Compute) -> dict[str, float]:
        """Mean per step over all processes."""
        names = sorted(self.sums)
        if not names:
            return {}
        totals = compute.sum(torch.stack([self.sums[n].reshape(()) for n in names]).cpu())
        return {n: total / max(1, self.steps) for n, total in zip(names, totals, strict=True)}

    def reset(self) -> None:
        """Start the next row."""
        self.sums, self.steps = {}, 0


@dataclass(kw_only=True)
class Session:
    """Everything the training loop hands around.

    Args:
        recipe:    the resolved recipe.
        parts:     data views, system, input spec.
        compute:   device, precision, processes.
        folder:    where results go.
        module:    the system's loss, hooked for several processes.
        optimizer: over the trainable parameters.
        held:      norm layers whose statistics stand still.
        average:   averaged weights, or None.
        steps_per_epoch: optimiser steps of one pass over the training split.
        total_steps: optimiser steps of the run.
        stop:      tells whether the user wants to stop.
        loggers:   other places where rows go.
    """

    recipe: Recipe
    parts: Parts
    compute: Compute
    folder: RunFolder
    module: nn.Module
    optimizer: torch.optim.Optimizer
    held: list[nn.Module]
    average: AveragedWeights | None
    steps_per_epoch: int
    total_steps: int
    stop: StopSignal
    loggers: list[Logger]
    position: Position = field(default_factory=Position)
    meter: Meter = field(default_factory=Meter)
    saved_step: int = -1
    started: float = field(default_factory=time.monotonic)

    @property
    def epoch(self) -> int:
        """Number of the epoch that the newest step belongs to, from 1; 0 before the first."""
        return math.ceil(self.position.step / self.steps_per_epoch)

    @property
    def done(self) -> bool:
        """Whether the last step is behind us, or early stopping ended the run."""
        patience = self.recipe.eval.early_stop
        impatient = patience is not None and self.position.stale >= patience
        return self.position.step >= self.total_steps or impatient

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, over all resumed parts."""
        return self.position.elapsed_s + time.monotonic() - self.started


def open_session(
    recipe: Recipe, parts: Parts, compute: Compute, *, folder: RunFolder, stop: StopSignal
) -> Session:
    """Put the parts of a run on its device and make its optimiser.

    Raises:
        UsageError: settings that exclude each other.
    """
    system = parts.system.to(compute.device)
    if recipe.run.channels_last:
        system = system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    held = optimisation.freeze(system, recipe.optim)
    optimizer = optimisation.make_optimizer(system, recipe.optim)
    module, optimizer = compute.prepare(system, optimizer)
    if recipe.run.compile:
        module.compile()
    decay = recipe.optim.ema_decay
    per_epoch = len(parts.train) // recipe.data.batch_size
    if per_epoch == 0:
        raise UsageError(
            f"data.batch_size = {recipe.data.batch_size} is more than the {len(parts.train)} "
            f"pictures of split {recipe.data.train!r}; lower it"
        )
    total = recipe.run.steps or per_epoch * (recipe.run.epochs or 0)
    return Session(
        recipe=recipe,
        parts=parts,
        compute=compute,
        folder=folder,
        module=module,
        optimizer=optimizer,
        held=held,
        average=None if decay is None else AveragedWeights(system, decay),
        steps_per_epoch=per_epoch,
        total_steps=total,
        stop=stop,
        loggers=[],
    )


def part_size(recipe: Recipe, world: int) -> int:
    """Pictures per process and accumulated part.

    Raises:
        UsageError: the batch does not divide evenly.
    """
    parts = world * recipe.optim.accumulate
    size, rest = divmod(recipe.data.batch_size, parts)
    if rest or size == 0:
        raise UsageError(
            f"data.batch_size = {recipe.data.batch_size} does not divide evenly into {parts} "
            f"parts ({world} processes x optim.accumulate = {recipe.optim.accumulate}); "
            f"use a multiple of {parts}"
        )
    return size


def save_state(session: Session) -> None:
    """Write state/last.pt: plain tensors and numbers, all or nothing. All processes call it."""
    generators = session.compute.gather(randomness.state())
    session.saved_step = session.position.step
    if not session.compute.is_main:
        return
    state = {
        "version": STATE_VERSION,
        "position": {**asdict(session.position), "elapsed_s": session.elapsed_s},
        "system": session.parts.system.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "average": session.average.state() if session.average else None,
        "scaler": session.compute.scaler_state(),
        "generators": generators,
        "meter": {"sums": session.meter.sums, "steps": session.meter.steps},
    }
    atomic.write(session.folder.state, lambda file: torch.save(state, file))


def load_state(session: Session) -> None:
    """Go on where state/last.pt stands.

    Raises:
        ModelError: no state, or one that does not fit.
    """
    path = session.folder.state
    state = _read_state(path)
    try:
        session.parts.system.load_state_dict(state["system"])
        session.optimizer.load_state_dict(state["optimizer"])
        if session.average is not None and state["average"] is not None:
            session.average.load_state(state["average"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: is of another model or optimiser ({reason})") from None
    session.compute.load_scaler_state(state["scaler"])
    session.position = Position(**state["position"])
    session.saved_step = session.position.step
    sums = {n: v.to(session.compute.device) for n, v in state["meter"]["sums"].items()}
    session.meter = Meter(sums, state["meter"]["steps"])
    generators = state["generators"]
    if session.compute.rank < len(generators):  # started with more processes than before
        randomness.restore(generators[session.compute.rank])


def _read_state(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(f"{path}: no state to resume from; name the folder of a run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: cannot be read ({reason}); start the run again") from None
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
        raise ModelError(f"{path}: no state of this version of pixelwise; start the run again")
    return state
