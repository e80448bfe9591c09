"""A rehearsal: one batch through training, validation and saving, and where the memory goes."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pixelwise.spec import Recipe
from pixelwise.train import Run, close_run, evaluate_run, open_run, train_until
from pixelwise.training import run_folder
from pixelwise.training.acceleration import Compute
from pixelwise.training.run_folder import RunFolder
from pixelwise.training.session import Session

_MB = 2**20
_VAL_PICTURES = 2


def dry_run(recipe: Recipe, *, quiet: bool = False) -> Run:
    """Pass one batch through everything a run does, leave nothing behind, and count memory.

    The folder of the real run is tried out too, so that a wrong path is found now.

    Args:
        recipe: as for `run_recipe`; its length is cut to one step.
        quiet:  show nothing on stderr.

    Returns:
        A run whose `memory` holds the estimate in MB and whose files are gone.

    Raises:
        UsageError: the run folder exists already.
    """
    chosen = Path(recipe.out) if recipe.out else run_folder.next_free(recipe.model.name or "run")
    RunFolder(chosen).check_new()
    parent = next(folder for folder in chosen.absolute().parents if folder.is_dir())
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=parent) as scratch:
        compute = Compute(recipe.run)
        try:
            session = open_run(_shortened(recipe, scratch), compute, quiet=quiet)
            few = session.parts.val.subset(range(min(_VAL_PICTURES, len(session.parts.val))))
            session.parts = replace(session.parts, val=few)
            with counted(session, memory):
                train_until(session, 1)
            evaluate_run(session)
            run = close_run(session)
        finally:
            compute.close()
    return replace(run, out=chosen, memory=memory)


def _shortened(recipe: Recipe, folder: str) -> Recipe:
    """The recipe cut to one step, writing elsewhere."""
    silent = {"every_steps": 1, "tensorboard": False, "wandb": False, "mlflow": False}
    return recipe.model_copy(
        update={
            "out": folder,
            "run": recipe.run.model_copy(update={"steps": 1, "epochs": None}),
            "log": recipe.log.model_copy(update=silent),
        }
    )


@contextmanager
def counted(session: Session, memory: dict[str, float]) -> Generator[None]:
    """Count what the steps inside the block keep in memory.

    Args:
        session: its optimiser and averaged weights are counted after the block.
        memory:  filled with MB by part.
    """
    held: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        # Several operations keep the same activation: count its storage once.
        storage = value.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        yield
    weights = list(session.parts.system.parameters())
    own = {p.untyped_storage().data_ptr() for p in weights}
    state = [v for s in session.optimizer.state.values() for v in s.values()]
    average = session.average.average.values() if session.average else []
    memory["weights"] = _bytes(weights) / _MB
    memory["gradients"] = _bytes([p for p in weights if p.requires_grad]) / _MB
    memory["optimizer"] = _bytes([v for v in state if isinstance(v, Tensor)]) / _MB
    memory["averaged weights"] = _bytes(list(average)) / _MB
    memory["activations"] = sum(n for key, n in held.items() if key not in own) / _MB
    memory["sum"] = sum(memory.values())
    memory["peak of the process"] = run_folder.memory_mb(session.compute.device)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
