"""Training: one loop of small functions, from a recipe to a run folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixelwise import atomic, randomness
from pixelwise.data.loader import Batch
from pixelwise.errors import PixelwiseError, UsageError
from pixelwise.progress import track
from pixelwise.spec import Recipe
from pixelwise.training import optimisation, run_folder
from pixelwise.training import recipe as recipes
from pixelwise.training.acceleration import Compute
from pixelwise.training.batches import StepBatches
from pixelwise.training.interruption import StopSignal, TrainingInterrupted
from pixelwise.training.loggers import open_loggers
from pixelwise.training.prepare import Parts, prepare
from pixelwise.training.run_folder import RunFolder
from pixelwise.training.session import Session, load_state, open_session, part_size, save_state
from pixelwise.training.validation import evaluation_due, next_evaluation, validate
from pixelwise.types import InstanceTarget, SemanticTarget, Target

if TYPE_CHECKING:
    from pixelwise.predict import Segmenter


_WEIGHTS = (".safetensors", ".pth", ".pt", ".pkl", ".ckpt", ".bin", ".npz")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training run left behind.

    Args:
        out:     the run folder.
        best:    weights with the best metric.
        last:    the newest evaluated weights.
        steps:   optimiser steps done.
        metrics: of the best weights, by name.
        memory:  the memory estimate of a dry run, in MB; empty otherwise.
    """

    out: Path
    best: Path
    last: Path
    steps: int
    metrics: dict[str, float]
    memory: dict[str, float]

    def segmenter(self) -> Segmenter:
        """The best weights, ready to predict."""
        from pixelwise.predict import load

        return load(str(self.best))


def train(
    model: str | Mapping[str, Any],
    *,
    data: str | Mapping[str, Any],
    steps: int | None = None,
    epochs: int | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **keys: Any,
) -> Run:
    """Train a system.

    >>> run = train("deeplabv3plus", data="city.yaml", steps=40_000, out="runs/city",
    ...             optim={"lr": 0.01})                               # doctest: +SKIP

    Args:
        model:  a row of `SYSTEMS`, a checkpoint to fine-tune, or a recipe's model section.
        data:   a data set that `pixelwise.data.open` reads, or a recipe's data section.
        steps:  optimiser steps; or
        epochs: passes over the data.
        out:    the run folder; None takes the next free `runs/NAME`.
        quiet:  show nothing on stderr.
        keys:   any section of a recipe, or dotted keys: `**{"optim.lr": 0.01}`.

    Returns:
        Paths of the weights, and the metrics of the best.

    Raises:
        UsageError: an unknown key or a wrong value.
        DataError:  data that cannot be read.
    """
    if isinstance(model, str) and Path(model).suffix in _WEIGHTS:
        model = {"weights": model}
    length = {k: v for k, v in (("steps", steps), ("epochs", epochs)) if v is not None}
    tree = recipes.merge(
        {"model": model, "data": data, "run": length}, recipes.nest(keys), {"out": _text(out)}
    )
    return run_recipe(recipes.validate(tree, origin="train"), quiet=quiet)


def resume(folder: str | Path, overrides: Sequence[str] = (), *, quiet: bool = False) -> Run:
    """Go on with a run from its newest state.

    Args:
        folder:    the run folder.
        overrides: changes to its recipe, such as "run.epochs=20".
        quiet:     show nothing on stderr.

    Raises:
        UsageError: no run in the folder.
        ModelError: its state cannot be read or does not fit.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder}: no run to resume (it has no config.yaml); check the folder")
    recipe = recipes.read(folder / "config.yaml", overrides)
    recipe = recipe.model_copy(update={"out": str(folder)})
    return run_recipe(recipe, resumed=True, quiet=quiet)


def run_recipe(recipe: Recipe, *, resumed: bool = False, quiet: bool = False) -> Run:
    """Train what a recipe describes.

    Args:
        recipe:  validated.
        resumed: go on from the state in its run folder.
        quiet:   show nothing on stderr.

    Raises:
        UsageError: a value that does not fit the system, the data or this machine.
        DataError:  data that cannot be read.
        ModelError: weights or a state that do not fit.
        TrainingInterrupted: SIGINT or SIGTERM; the state is saved.
    """
    compute = Compute(recipe.run)
    session: Session | None = None
    try:
        session = open_run(recipe, compute, resumed=resumed, quiet=quiet)
        with session.stop.watching():
            _run(session)
        best = session.position.best_step
        session.folder.say(f"done: {session.folder.path}, best at step {best}")
        return close_run(session)
    finally:
        for logger in session.loggers if session else []:
            logger.close()
        compute.close()


def open_run(
    recipe: Recipe, compute: Compute, *, resumed: bool = False, quiet: bool = False
) -> Session:
    """Everything before the first step: folder, data, system, records."""
    part_size(recipe, compute.world)  # a wrong batch size should not wait for the data
    folder = _open_folder(recipe, compute, resumed=resumed, quiet=quiet)
    randomness.seed(recipe.run.seed, deterministic=recipe.run.deterministic)
    parts = prepare(recipe, quiet=quiet or not compute.is_main)
    session = open_session(recipe, parts, compute, folder=folder, stop=StopSignal())
    # From here on processes draw their own numbers (dropout, sampled regions).
    randomness.seed(recipe.run.seed + compute.rank, deterministic=recipe.run.deterministic)
    if resumed:
        load_state(session)
        folder.rewind(session.position.step, session.position.evaluated_step)
    if compute.is_main:
        _write_records(session, recipe, resumed=resumed)
        session.loggers = open_loggers(recipe, folder.path)
    return session


def _open_folder(recipe: Recipe, compute: Compute, *, resumed: bool, quiet: bool) -> RunFolder:
    chosen = recipe.out or run_folder.next_free(recipe.model.name or "run")
    path = Path(compute.gather(str(chosen))[0])  # the first process decides for all
    folder = RunFolder(path, quiet=quiet, write=compute.is_main)
    if compute.is_main:
        if resumed:
            folder.make_folders()
        else:
            folder.create()
    compute.wait()
    return folder


def _write_records(session: Session, recipe: Recipe, *, resumed: bool) -> None:
    """What one needs to repeat the run: recipe, command, environment, data."""
    folder, parts = session.folder, session.parts
    folder.write("config.yaml", recipes.dump(recipe.model_copy(update={"out": str(folder.path)})))
    folder.write("command.txt", run_folder.command_line())
    folder.write_json("environment.json", run_folder.environment())
    source = Path(recipe.data.source)
    splits = {recipe.data.train: parts.train, recipe.data.val: parts.val}
    hashes = {name: run_folder.fingerprint(view, source) for name, view in splits.items()}
    folder.write_json("data.json", {"source": str(source.resolve()), "splits": hashes})
    for note in parts.notes:
        folder.say(note)
    folder.say(_headline(session, resumed=resumed))


def _headline(session: Session, *, resumed: bool) -> str:
    parts, compute = session.parts, session.compute
    weights = sum(p.numel() for p in parts.system.parameters()) / 1e6
    start = f"resuming at step {session.position.step}: " if resumed else ""
    return (
        f"{start}{parts.name}, {weights:.1f} M parameters, {len(parts.classes)} classes, "
        f"{len(parts.train)} pictures, {session.total_steps} steps of "
        f"{session.recipe.data.batch_size}, {compute.device}"
        f"{f' x {compute.world}' if compute.world > 1 else ''}, {session.recipe.run.precision}"
    )


# --- the loop ------------------------------------------------------------------------------------


def _run(session: Session) -> None:
    """Train and evaluate in turns until done."""
    if evaluation_due(session):  # stopped during an evaluation
        evaluate_run(session)
    while not session.done:
        train_until(session, next_evaluation(session))
        evaluate_run(session)


def train_until(session: Session, end: int) -> None:
    """Optimiser steps up to step `end`."""
    system, position = session.parts.system, session.position
    system.train()
    optimisation.hold(session.held)
    speed = _Speed(session)
    with StepBatches(session) as batches:
        steps: Iterator[list[Batch]] = itertools.islice(batches, end - position.step)
        quiet = session.folder.quiet or not session.compute.is_main
        for parts in track(
            steps, "training", total=end - position.step, quiet=quiet, status=speed.text
        ):
            speed.loss = _step(session, parts)
            speed.steps += 1
            _keep_books(session, end, speed)


def _keep_books(session: Session, end: int, speed: _Speed) -> None:
    """After a step: rows of the log, the state, and whether to stop."""
    step = session.position.step
    if step % session.recipe.log.every_steps == 0:
        _log_training(session, speed)
    if _stop_wanted(session):
        _stop(session)
    if step % session.recipe.run.save_every_steps == 0 and step != end:
        save_state(session)


def _stop_wanted(session: Session) -> bool:
    """Whether any process was told to stop; all agree."""
    return session.compute.sum([float(session.stop.requested)])[0] > 0


def _stop(session: Session) -> None:
    if session.saved_step != session.position.step:
        save_state(session)
    raise TrainingInterrupted(session.folder.path, session.position.step)


def evaluate_run(session: Session) -> None:
    """Validate between two saved states, so that a kill on the way costs no training."""
    if session.saved_step != session.position.step:
        save_state(session)
    if _stop_wanted(session):
        _stop(session)
    with session.stop.at_once():
        validate(session)
    if session.stop.requested:
        # A signal may have cut the evaluation short: it is repeated after resuming.
        raise TrainingInterrupted(session.folder.path, session.position.step)
    save_state(session)


def _step(session: Session, parts: Sequence[Batch]) -> float:
    """One optimiser step over the parts of a batch; returns its loss in this process.

    Each part counts by its share of the whole batch over all processes: of the pixels for label
    maps, of the pictures for objects. So the gradient is that of the whole batch at once.
    """
    recipe, compute = session.recipe, session.compute
    factor = optimisation.lr_factor(session.position.step, session.total_steps, recipe.optim)
    optimisation.set_lr(session.optimizer, recipe.optim.lr * factor)
    counts = [_count(batch.targets, session.parts) for batch in parts]
    total = compute.sum([sum(counts)])[0]
    loss = 0.0
    for i, (batch, count) in enumerate(zip(parts, counts, strict=True)):
        share = count / total if total else 0.0
        with compute.part(session.module, last=i == len(parts) - 1):
            loss += share * _backward(session, batch, share)
    norm = compute.clip(_trainable(session), recipe.optim.grad_clip)
    if not math.isfinite(norm) and not compute.scales_loss:
        _stop_at_bad_batch(session, parts[-1], f"its gradient is {norm}")
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    session.position.step += 1
    session.meter.steps += 1
    if session.average is not None:
        session.average.update(session.parts.system)
    return loss


def _backward(session: Session, batch: Batch, share: float) -> float:
    """Gradients of one part; returns its loss."""
    compute = session.compute
    images = batch.images.to(compute.device, non_blocking=True)
    if session.recipe.run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    targets = [t.to(compute.device, non_blocking=True) for t in batch.targets]
    losses: Mapping[str, Tensor] = session.module(images, targets)
    loss = torch.stack([value.float() for value in losses.values()]).sum()
    value = float(loss.detach())
    if not math.isfinite(value):
        named = ", ".join(f"{name} {float(v.detach()):.4g}" for name, v in losses.items())
        _stop_at_bad_batch(session, batch, f"its loss is {value} ({named})")
    # DDP averages over processes; the shares add up to one over all of them.
    compute.backward(loss * (share * compute.world))
    session.meter.add({**losses, "": loss}, share=share)
    return value


def _count(targets: Sequence[Target], parts: Parts) -> float:
    """How much a batch counts: its weighted valid pixels, or its pictures."""
    total = 0.0
    for target in targets:
        if isinstance(target, SemanticTarget) and parts.pixel_weights is not None:
            weights = parts.pixel_weights[target.labels.long()]
            if target.weights is not None:
                weights = weights * target.weights
            total += float(weights.double().sum())
        else:
            total += 1.0
    return total


def _trainable(session: Session) -> list[Tensor]:
    return [p for group in session.optimizer.param_groups for p in group["params"]]


def _stop_at_bad_batch(session: Session, batch: Batch, reason: str) -> None:
    """Save the batch that broke the run and say which pictures it held."""
    paths = [str(session.parts.train.path(i)) for i in batch.indices]
    path = session.folder.nan_batch
    content = {
        "images": batch.images,
        "targets": [_plain(target) for target in batch.targets],
        "indices": list(batch.indices),
        "paths": paths,
        "step": session.position.step,
    }
    atomic.write(path, lambda file: torch.save(content, file))
    shown = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
    raise PixelwiseError(
        f"training broke at step {session.position.step}: {reason}; pictures: {shown}. The batch "
        f"is in {path}. Lower optim.lr, set optim.grad_clip or optim.warmup_steps, or use "
        "run.precision=fp32, and start again; the weights of the last evaluation are kept"
    )


def _plain(target: Target) -> dict[str, Any]:
    if isinstance(target, InstanceTarget):
        return {
            "boxes": target.boxes,
            "labels": target.labels,
            "crowd": target.crowd,
            "mask_windows": target.masks.windows,
            "mask_pixels": target.masks.pixels,
        }
    return {"labels": target.labels, "weights": target.weights}


# --- what is written down ------------------------------------------------------------------------


class _Speed:
    """Live numbers of a stretch of training."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.loss = math.nan
        self.steps = 0
        self.began = session.elapsed_s

    @property
    def images_per_s(self) -> float:
        """Over all processes, since the stretch began."""
        seconds = max(1e-9, self.session.elapsed_s - self.began)
        return self.steps * self.session.recipe.data.batch_size / seconds

    def text(self) -> str:
        """Losses, speed, time left and memory in a few words."""
        session = self.session
        left = session.total_steps - session.position.step
        seconds = left * session.recipe.data.batch_size / max(1e-9, self.images_per_s)
        memory = run_folder.memory_mb(session.compute.device)
        return (
            f"step {session.position.step}/{session.total_steps}  loss {self.loss:.4f}  "
            f"{self.images_per_s:.1f} images/s  {_clock(seconds)} left  {memory:.0f} MB"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _log_training(session: Session, speed: _Speed) -> None:
    """One row of training losses: means since the last one."""
    means = session.meter.means(session.compute)
    session.meter.reset()
    row: run_folder.Row = {
        "epoch": session.epoch,
        "step": session.position.step,
        "lr": session.optimizer.param_groups[0]["lr"]
        / session.optimizer.param_groups[0]["lr_scale"],
        "train/loss": means.pop(""),
        **{f"train/loss/{name}": value for name, value in means.items()},
        "time_s": round(session.elapsed_s, 3),
        "images_per_s": round(speed.images_per_s, 3),
        "memory_mb": round(run_folder.memory_mb(session.compute.device), 1),
    }
    session.folder.log_row(row)
    for logger in session.loggers:
        logger.log(row)


def close_run(session: Session) -> Run:
    """The run as its user gets it."""
    from pixelwise.checkpoint import read_header

    session.compute.wait()
    folder = session.folder
    return Run(
        out=folder.path,
        best=folder.best,
        last=folder.last,
        steps=session.position.step,
        metrics=dict(read_header(folder.best)["metrics"]),
        memory={},
    )


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
