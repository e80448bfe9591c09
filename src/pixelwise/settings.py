"""What the configs of all systems check, so that each states only what is its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pixelwise.errors import UsageError


def check_config(cfg: Any, choices: Mapping[str, Sequence[Any]] | None = None) -> None:
    """For the `__post_init__` of a frozen config: lists become tuples, shared fields are checked.

    Shared fields are `num_classes`, at least 1, and `class_weights`, one per class or None; a
    config may lack them.

    Args:
        cfg:     a frozen dataclass named `<System>Config`.
        choices: allowed values of some fields.

    Raises:
        UsageError: a value that is not allowed; the message names field, value and choices.
    """
    system = type(cfg).__name__.removesuffix("Config").lower()
    for item in fields(cfg):
        value = getattr(cfg, item.name)
        if isinstance(value, list):
            object.__setattr__(cfg, item.name, tuple(value))  # JSON and YAML bring lists
    for name, allowed in (choices or {}).items():
        if getattr(cfg, name) not in allowed:
            raise UsageError(
                f"{system} has no {name}={getattr(cfg, name)!r}; "
                f"choose one of {', '.join(map(str, allowed))}"
            )
    classes = getattr(cfg, "num_classes", 1)
    if classes < 1:
        raise UsageError(f"num_classes is at least 1, not {classes}")
    weights = getattr(cfg, "class_weights", None)
    if weights is not None and len(weights) != classes:
        raise UsageError(
            f"class_weights has {len(weights)} values for {classes} classes; give one per class"
        )
