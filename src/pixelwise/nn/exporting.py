"""Whether an exporter is looking at the code."""

from __future__ import annotations

from collections.abc import Callable

import torch


def _is_exporting() -> bool:
    """As `torch.compiler.is_exporting`, which torch 2.6 has not: `torch.compile` is told apart."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", _is_exporting)
