"""The one seam to Accelerate: devices, processes, precision. Nothing else imports it."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.spec import RunRecipe
from pixelwise.types import System, Target


class LossModule(nn.Module):
    """A system whose `forward` is its loss, so that DDP hooks the graph that is trained."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, images: Tensor, targets: Sequence[Target]) -> Mapping[str, Tensor]:
        """The losses of a batch, weighted already."""
        return cast("System", self.system).loss(images, targets)


class Compute:
    """Where a run computes: its device, its precision and its place among the processes.

    Under torchrun every process makes one and they find each other; alone there is one.

    Args:
        recipe: the run section.

    Raises:
        UsageError: the device is not there, or fp16 was asked for without a GPU.
    """

    def __init__(self, recipe: RunRecipe) -> None:
        _check_device(recipe)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            # Accelerate keeps its first choice of device and precision for the whole process; a
            # second run in the same process (a notebook) must be free to choose again.
            AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]
        on_cpu = recipe.device == "cpu" or not _has_accelerator()
        self._accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if recipe.precision == "fp32" else recipe.precision,
            # A picture without objects leaves the mask head out of the graph.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def prepare(
        self, system: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The loss of a system, hooked for several processes and autocast, and its optimiser."""
        module = self._accelerator.prepare_model(LossModule(system))
        return module, cast("torch.optim.Optimizer", self._accelerator.prepare_optimizer(optimizer))

    @contextmanager
    def part(self, module: nn.Module, *, last: bool) -> Generator[None]:
        """One part of an accumulated step; gradients cross processes after the last part only."""
        with nullcontext() if last else self._accelerator.no_sync(module):
            yield

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients, scaled where fp16 needs it."""
        self._accelerator.backward(loss)

    def clip(self, parameters: Sequence[Tensor], limit: float | None) -> float:
        """Limit the norm of the whole gradient; returns the norm before that."""
        norm = self._accelerator.clip_grad_norm_(parameters, limit or float("inf"))
        return float(cast("Tensor", norm))

    def sum(self, values: Sequence[float] | Tensor) -> list[float]:
        """Sums over all processes, in float64 where the device has it."""
        if self.world == 1:
            return [float(v) for v in values]
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.as_tensor(values, dtype=kind, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """One Python object of each process, in the order of their ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when all processes are here."""
        self._accelerator.wait_for_everyone()

    @property
    def scales_loss(self) -> bool:
        """Whether gradients that overflow are skipped rather than an error (fp16)."""
        return self._accelerator.scaler is not None

    def scaler_state(self) -> dict[str, Any] | None:
        """The state of the fp16 loss scaler, where there is one."""
        scaler = self._accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any] | None) -> None:
        """The inverse of `scaler_state`."""
        scaler = self._accelerator.scaler
        if scaler is not None and state:
            scaler.load_state_dict(state)

    def close(self) -> None:
        """Leave the group of processes, where there is one."""
        if self.world > 1:
            PartialState().destroy_process_group()


def _check_device(recipe: RunRecipe) -> None:
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("run.device = 'cuda': torch finds no GPU; see `pixelwise doctor`")
    if recipe.device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("run.device = 'mps': torch finds none; use run.device=cpu")
    on_gpu = recipe.device != "cpu" and torch.cuda.is_available()
    if recipe.precision == "fp16" and not on_gpu:
        raise UsageError("run.precision = 'fp16' needs a CUDA GPU; use bf16 or fp32 on the CPU")


def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()
