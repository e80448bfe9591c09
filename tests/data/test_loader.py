import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelwise.data.images import read_image
from pixelwise.data.loader import Batch, EpochSampler, collate, make_loader
from pixelwise.data.sample import Sample
from pixelwise.data.transforms import EvalTransform, Prepared, TrainTransform
from pixelwise.errors import DataError, PixelwiseError
from pixelwise.spec import AugmentSpec, InputSpec, ResizeRule
from pixelwise.types import IGNORE, ImageSize, InstanceTarget, SemanticTarget
from tests.data.pictures import Drawn, squares

AUGMENT = AugmentSpec(
    crop=(32, 32), color=0.5, blur=0.3, copy_paste=0.5, mosaic=0.3, vertical_flip=0.5
)


def read(
    *, workers: int, start: int = 0, view: object = None, epoch: int = 0
) -> list[Batch]:  # fmt: skip
    view = view or Drawn()
    sampler = EpochSampler(len(view), batch_size=2, seed=7)  # type: ignore[arg-type]
    sampler.set_epoch(epoch, start=start)
    transform = TrainTransform(InputSpec(), AUGMENT, "instance")
    return list(
        make_loader(view, transform, batch_size=2, workers=workers, sampler=sampler, seed=7)  # type: ignore[arg-type]
    )


def equal(a: Batch, b: Batch) -> bool:
    if a.indices != b.indices or not torch.equal(a.images, b.images):
        return False
    pairs = [
        (x, y)
        for x, y in zip(a.targets, b.targets, strict=True)
        if isinstance(x, InstanceTarget) and isinstance(y, InstanceTarget)
    ]
    return len(pairs) == len(a.targets) and all(
        torch.equal(x.boxes, y.boxes) and torch.equal(x.masks.pixels, y.masks.pixels)
        for x, y in pairs
    )


def test_collate_pads_to_the_largest() -> None:
    def prepared(size: tuple[int, int], index: int) -> Prepared:
        target = SemanticTarget(labels=torch.ones(size).long(), weights=torch.ones(size))
        return Prepared(
            image=torch.ones(3, *size), target=target, size=ImageSize.same(size), index=index
        )

    batch = collate([prepared((16, 24), 4), prepared((20, 8), 9)])
    assert batch.images.shape == (2, 3, 20, 24)
    assert batch.indices == [4, 9]
    assert [s.input for s in batch.sizes] == [(20, 24), (20, 24)]
    assert [s.content for s in batch.sizes] == [(16, 24), (20, 8)]
    for image, target, size in zip(batch.images, batch.targets, batch.sizes, strict=True):
        assert isinstance(target, SemanticTarget)
        assert target.weights is not None
        inside = torch.zeros(20, 24, dtype=torch.bool)
        inside[: size.content[0], : size.content[1]] = True
        assert torch.equal(image[0] == 1, inside)
        assert torch.equal(target.labels == 1, inside)
        assert (target.labels[~inside] == IGNORE).all()
        assert torch.equal(target.weights == 1, inside)


def test_collate_keeps_objects_and_pictures_without_annotation() -> None:
    transform = EvalTransform(InputSpec(resize=ResizeRule(pad_divisor=16)), "instance")
    samples = [squares((20, 30), [(1, 2, 5, 6)]), squares((33, 10), [])]
    batch = collate([transform(s) for s in samples])
    assert batch.images.shape == (2, 3, 48, 32)
    assert [t.size for t in batch.targets if isinstance(t, InstanceTarget)] == [(20, 30), (33, 10)]
    bare = collate([transform(replace(samples[0], instances=None))])
    assert bare.targets == []
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images)
    assert len(moved) == 2


def test_batches_do_not_depend_on_workers_or_on_where_the_epoch_is_resumed() -> None:
    """Nor on the state of the global generators."""
    torch.manual_seed(1)
    alone = read(workers=0)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002  (the legacy generator is what careless code would use)
    helped = read(workers=2)
    resumed = read(workers=1, start=3)
    assert len(alone) == len(helped) == 5
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert all(equal(a, b) for a, b in zip(alone[3:], resumed, strict=True))
    later = read(workers=0, epoch=1)
    same_picture = [
        (a.images[i], b.images[b.indices.index(index)])
        for a in alone for i, index in enumerate(a.indices)
        for b in later if index in b.indices
    ]  # fmt: skip
    assert not any(torch.equal(a, b) for a, b in same_picture), "another epoch, other changes"


def test_reading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    read(workers=0)
    assert torch.equal(torch.get_rng_state(), before)


class Files(Drawn):
    """Pictures on the disk; the second is cut off."""

    def __init__(self, folder: Path) -> None:
        super().__init__(4)
        self.folder = folder
        for i in range(4):
            Image.fromarray(super().__getitem__(i).image).save(self.path(i))
        content = self.path(1).read_bytes()
        self.path(1).write_bytes(content[: len(content) // 2])

    def path(self, i: int, /) -> Path:
        return self.folder / f"{i}.png"

    def __getitem__(self, i: int, /) -> Sample:
        return replace(super().__getitem__(i), image=read_image(self.path(i)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named_on_one_line(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError) as caught:
        read(workers=workers, view=Files(tmp_path))
    message = str(caught.value)
    assert "1.png" in message
    assert "cut off or damaged" in message
    assert "Traceback" not in message
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_file_is_named(tmp_path: Path, workers: int) -> None:
    view = Files(tmp_path)
    view.path(1).unlink()
    with pytest.raises(DataError, match=r"1\.png: no such file"):
        read(workers=workers, view=view)


def test_the_file_of_a_pasted_picture_is_named(tmp_path: Path) -> None:
    """The picture itself is sound, the one that is pasted into it is not."""
    view = Files(tmp_path)
    sampler = EpochSampler(4, batch_size=1, seed=0)
    transform = TrainTransform(InputSpec(), AugmentSpec(copy_paste=1.0), "instance")
    loader = make_loader(
        view, transform, batch_size=1, workers=0, sampler=sampler, seed=0
    )  # fmt: skip
    dataset = loader.dataset
    messages = [getattr(dataset[(epoch, 0)], "message", "") for epoch in range(12)]
    assert {m.split(": ")[0] for m in messages} == {"", str(view.path(1))}


class Faulty(Drawn):
    """Fails in a way that nobody thought of."""

    def __getitem__(self, i: int, /) -> Sample:
        raise KeyError("category 7")


class Deadly(Drawn):
    """Takes its process with it, as the kernel does when memory runs out."""

    def __getitem__(self, i: int, /) -> Sample:
        os._exit(1)


def test_an_unforeseen_error_names_the_picture() -> None:
    with pytest.raises(PixelwiseError, match=r"drawn_\d\.png: KeyError: 'category 7'"):
        read(workers=1, view=Faulty())


def test_a_dead_worker_is_explained() -> None:
    with pytest.raises(PixelwiseError, match="use fewer workers"):
        read(workers=1, view=Deadly())


def test_a_wrong_channel_count_names_the_picture() -> None:
    sampler = EpochSampler(10, batch_size=1, seed=0)
    spec = InputSpec(mean=(0.0,) * 5, std=(1.0,) * 5)
    loader = make_loader(
        Drawn(), EvalTransform(spec, "semantic"),
        batch_size=1, workers=0, sampler=sampler, seed=0,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"drawn_\d\.png: the picture has 3 channels, the model"):
        next(iter(loader))


def test_what_goes_to_a_worker_is_small() -> None:
    """Transforms hold plain values only; with `fork` and with `spawn` alike."""
    transform = TrainTransform(InputSpec(), AUGMENT, "instance")
    assert len(pickle.dumps(transform)) < 2000
