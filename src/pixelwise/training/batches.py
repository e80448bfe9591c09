"""The batches of every optimiser step, epoch after epoch, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from torch.utils.data import DataLoader

from pixelwise import randomness
from pixelwise.data.loader import Batch, EpochSampler, make_loader
from pixelwise.data.transforms import TrainTransform
from pixelwise.training.session import Session, part_size


class StepBatches:
    """Yields, per optimiser step, this process's parts of the batch; never ends by itself.

    The order of an epoch and the augmentation of a picture follow from seed and epoch alone, so a
    resumed run sees the same pictures. An epoch leaves out the pictures that do not fill a batch;
    they differ from epoch to epoch.

    Args:
        session: says at which step to begin.
    """

    def __init__(self, session: Session) -> None:
        recipe, compute = session.recipe, session.compute
        self.session = session
        self.part = part_size(recipe, compute.world)
        self.sampler = EpochSampler(
            len(session.parts.train),
            batch_size=self.part,
            seed=recipe.run.seed,
            rank=compute.rank,
            world=compute.world,
        )
        self.loader: DataLoader[Batch] = make_loader(
            session.parts.train,
            TrainTransform(
                session.parts.input,
                recipe.data.augment,
                session.parts.task,
                background=session.parts.train.background_label,
            ),
            batch_size=self.part,
            workers=recipe.data.workers,
            sampler=self.sampler,
            seed=recipe.run.seed,
        )
        self.running: Iterator[Batch] | None = None
        self.epoch = -1

    def __enter__(self) -> StepBatches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.running = None  # ends the reading processes

    def __iter__(self) -> Iterator[list[Batch]]:
        step = self.session.position.step
        accumulate = self.session.recipe.optim.accumulate
        while True:
            epoch, done = divmod(step, self.session.steps_per_epoch)
            if epoch != self.epoch:
                self._begin(epoch, done * accumulate)
            assert self.running is not None
            with randomness.kept():
                parts = [next(self.running) for _ in range(accumulate)]
            yield parts
            step += 1

    def _begin(self, epoch: int, first: int) -> None:
        """Start an epoch at its part `first`."""
        self.epoch = epoch
        self.sampler.set_epoch(epoch, start=first)
        # Starting reading processes draws from torch's generator, which a run that was not
        # interrupted at this point would not do.
        with randomness.kept():
            self.running = iter(self.loader)
