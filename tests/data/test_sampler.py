import itertools

import pytest

from pixelwise.data.sampler import EpochSampler
from pixelwise.errors import UsageError


def indices(sampler: EpochSampler) -> list[int]:
    return [index for batch in sampler for _, index in batch]


def test_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch() -> None:
    sampler = EpochSampler(12, batch_size=3, seed=1)
    first = indices(sampler)
    assert sorted(first) == list(range(12))
    assert indices(EpochSampler(12, batch_size=3, seed=1)) == first
    assert indices(EpochSampler(12, batch_size=3, seed=2)) != first
    sampler.set_epoch(1)
    assert indices(sampler) != first
    assert {epoch for batch in sampler for epoch, _ in batch} == {1}


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_make_the_batches_of_one(world: int) -> None:
    """Also the reason why training on two processes equals training on one."""
    alone = list(EpochSampler(40, batch_size=2 * world, seed=5))
    ranks = [
        list(EpochSampler(40, batch_size=2, seed=5, rank=rank, world=world))
        for rank in range(world)
    ]
    together = [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert together == alone
    assert len(together) == 40 // (2 * world)


@pytest.mark.parametrize(("length", "world", "size"), [(10, 3, 2), (2, 3, 4), (7, 1, 3), (9, 2, 1)])
def test_evaluation_sees_every_picture_once_without_padding(
    length: int, world: int, size: int
) -> None:
    samplers = [
        EpochSampler(length, batch_size=size, seed=0, rank=rank, world=world, shuffle=False)
        for rank in range(world)
    ]
    shards = [indices(s) for s in samplers]
    assert sorted(itertools.chain(*shards)) == list(range(length))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(shard == sorted(shard) for shard in shards)
    assert [len(s) for s in samplers] == [-(-len(shard) // size) for shard in shards]


@pytest.mark.parametrize("consumed", [0, 1, 3])
def test_resuming_inside_an_epoch_gives_the_rest(consumed: int) -> None:
    sampler = EpochSampler(17, batch_size=4, seed=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    resumed = EpochSampler(17, batch_size=4, seed=3)
    resumed.load_state_dict(sampler.state_dict(consumed=consumed))
    assert list(resumed) == whole[consumed:]
    assert len(resumed) == 4 - consumed
    again = EpochSampler(17, batch_size=4, seed=3)
    again.load_state_dict(resumed.state_dict(consumed=1 if consumed < 3 else 0))
    assert list(again) == whole[consumed + 1 if consumed < 3 else consumed :]


def test_the_end_of_an_epoch_is_the_beginning_of_the_next() -> None:
    sampler = EpochSampler(8, batch_size=4, seed=3)
    assert sampler.state_dict(consumed=2) == {"epoch": 1, "start": 0, "seed": 3, "length": 8}


@pytest.mark.parametrize(("length", "seed", "match"), [(9, 3, "length 8"), (8, 4, "seed 3")])
def test_the_state_of_another_run_is_refused(length: int, seed: int, match: str) -> None:
    state = EpochSampler(8, batch_size=4, seed=3).state_dict()
    with pytest.raises(UsageError, match=match):
        EpochSampler(length, batch_size=4, seed=seed).load_state_dict(state)


def test_empty_data_and_empty_batches_are_refused() -> None:
    with pytest.raises(UsageError, match="no pictures"):
        EpochSampler(0, batch_size=4, seed=0)
    with pytest.raises(UsageError, match="batch_size is 0"):
        EpochSampler(4, batch_size=0, seed=0)


def test_every_picture_is_left_out_only_now_and_then() -> None:
    sampler = EpochSampler(10, batch_size=4, seed=0)
    seen: set[int] = set()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        seen |= set(indices(sampler))
    assert seen == set(range(10))
