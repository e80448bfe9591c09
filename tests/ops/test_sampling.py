"""Balanced sampling: counts, no repetition, and where randomness comes from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.ops.sampling import sample_balanced, sample_hardest

INF = float("inf")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-2, 3), max_size=60),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_counts(values: list[int], count: int, frac: float) -> None:
    matches = torch.tensor(values, dtype=torch.int64)
    positive, background = sample_balanced(matches, count=count, positive_frac=frac)
    positives, backgrounds = int((matches >= 0).sum()), int((matches == -1).sum())
    assert len(positive) == min(positives, int(count * frac))
    assert len(background) == min(backgrounds, count - len(positive))
    assert (matches[positive] >= 0).all()
    assert (matches[background] == -1).all()
    assert positive.unique().tolist() == positive.tolist()
    assert background.unique().tolist() == background.tolist()


def test_a_generator_decides() -> None:
    matches = torch.tensor([0, -1, 1, -1, -2] * 40)

    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        both = sample_balanced(matches, count=32, positive_frac=0.5, generator=generator)
        return torch.cat(both).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_every_positive_has_its_chance() -> None:
    matches = torch.zeros(10, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(10)
    for _ in range(2000):
        positive, _ = sample_balanced(matches, count=4, positive_frac=0.5, generator=generator)
        counts[positive] += 1
    assert counts.sum() == 4000
    assert counts.min() == pytest.approx(400, abs=80)
    assert counts.max() == pytest.approx(400, abs=80)


@pytest.mark.parametrize(
    ("losses", "groups", "expected"),
    [
        ([1, 3, 2, 0], [0, 0, 0, 0], [1, 2]),
        ([1, 3, 2, 9, 8, 7], [0, 0, 0, 1, 1, 1], [1, 2, 3, 4]),  # two of each image
        ([1, 9, 3, 8, 2, 7], [0, 1, 0, 1, 0, 1], [1, 2, 3, 4]),  # in any order of images
        ([5, 5, 5], [0, 0, 0], [0, 1]),  # ties by position
        ([-INF, 1, -INF], [0, 0, 0], [1]),  # what must not be chosen
        ([1, 4], [2, 0], [0, 1]),  # an image without elements
        ([], [], []),
    ],
)
def test_the_hardest_of_each_image(losses, groups, expected):
    values = torch.tensor(losses, dtype=torch.float32)
    chosen = sample_hardest(values, torch.tensor(groups, dtype=torch.int64), count=2)
    assert chosen.nonzero()[:, 0].tolist() == expected
