"""Exact arithmetic for the comparisons of this folder."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_tf32():
    """TF32 keeps 10 bits of the factors of a product: three digits, where we compare five."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed
