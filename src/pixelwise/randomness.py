"""Every random number generator a run draws from: seeded, stored and restored together."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed(value: int, *, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch on all devices.

    Args:
        value:         any whole number.
        deterministic: let torch use only algorithms that repeat bit by bit.
    """
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002  (other libraries draw from the global one)
    torch.manual_seed(value)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def state() -> dict[str, Any]:
    """The position of every generator, as plain tensors and numbers."""
    twister: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, keys, place, has_gauss, gauss = twister
    return {
        "python": list(random.getstate()[1]),
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), place, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: dict[str, Any]) -> None:
    """The inverse of `state`."""
    random.setstate((3, tuple(saved["python"]), None))
    name, keys, place, has_gauss, gauss = saved["numpy"]
    np.random.set_state(  # noqa: NPY002
        (name, keys.numpy().astype(np.uint32), place, has_gauss, gauss)
    )
    torch.set_rng_state(saved["torch"])
    if len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])


@contextmanager
def kept() -> Generator[None]:
    """Leave all generators as they were: what happens inside does not change the run."""
    before = state()
    try:
        yield
    finally:
        restore(before)
