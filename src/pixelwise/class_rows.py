"""A checkpoint's weights in a network for other classes, matched by class name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pixelwise.checkpoint import Stored, few, listed, read
from pixelwise.errors import ModelError


def load_by_class(system: nn.Module, source: str | Path | Stored, *, classes: Sequence[str]) -> str:
    """Fill a system with a checkpoint's weights; class rows are matched by class name.

    Args:
        system:  built for `classes`; otherwise of the checkpoint's architecture. Its `CLASS_ROWS`
                 say which parameters have rows per class, its `CLASS_COLUMNS`, if any, which have
                 inputs per class (their second dimension).
        source:  a file written by `save`, or what was read of one.
        classes: class names of `system`, in label order.

    Returns:
        One line: how many classes were reused, and which start afresh.

    Raises:
        ModelError: the checkpoint is of another system or architecture.
    """
    stored = source if isinstance(source, Stored) else read(source)
    header, tensors, path = stored.header, stored.tensors, stored.label
    rows: Mapping[str, int] = getattr(system, "CLASS_ROWS", {})
    columns: Mapping[str, int] = getattr(system, "CLASS_COLUMNS", {})
    old = header["classes"]
    own = system.state_dict()
    _check_same_architecture(header, path, own, tensors, rows, columns)
    same = list(old) == list(classes)
    for name, value in own.items():
        weight = tensors[name]
        per_class = None if same else _rows_per_class(name, rows)
        if per_class is None:
            own[name] = weight
            continue
        inputs = _rows_per_class(name, columns)
        if inputs is not None and value.ndim > 1:
            # Rows as the checkpoint has them, so that only the columns differ.
            frame = value.new_zeros(len(weight), *value.shape[1:])
            frame = _match_rows(frame, value, classes, old, per_class).transpose(0, 1)
            weight = _match_rows(frame, weight.transpose(0, 1), old, classes, inputs)
            weight = weight.transpose(0, 1)
        own[name] = _match_rows(value, weight, old, classes, per_class)
    system.load_state_dict(own)
    return _reuse_line(old, classes)


def _match_rows(
    fresh: Tensor, stored: Tensor, old: Sequence[str], new: Sequence[str], per_class: int
) -> Tensor:
    """Rows of known classes from `stored`, the rest from `fresh`.

    Args:
        fresh:  [len(new) * per_class + rest, ...]; `rest` rows (background) come last.
        stored: [len(old) * per_class + rest, ...].
        old:    class names of `stored`.
        new:    class names of `fresh`.
        per_class: rows that belong to one class.
    """
    rest = len(fresh) - len(new) * per_class
    if rest < 0 or rest != len(stored) - len(old) * per_class:
        if fresh.shape != stored.shape:
            raise ModelError(f"rows of {tuple(stored.shape)} do not fit {tuple(fresh.shape)}")
        return stored.to(fresh.dtype)  # the same for all classes
    mixed = fresh.clone()
    for i, name in enumerate(new):
        if name in old:
            j = old.index(name)
            mixed[i * per_class : (i + 1) * per_class] = stored[
                j * per_class : (j + 1) * per_class
            ].to(fresh)
    if rest:
        mixed[-rest:] = stored[-rest:].to(fresh)
    return mixed


def _rows_per_class(name: str, rows: Mapping[str, int]) -> int | None:
    for prefix, count in rows.items():
        if name == prefix or name.startswith(f"{prefix}."):
            return count
    return None


def _check_same_architecture(
    header: Mapping[str, Any],
    path: str | Path,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, int],
    columns: Mapping[str, int],
) -> None:
    def fixed(name: str, value: Tensor) -> list[int]:
        """The dimensions that do not belong to classes."""
        free = [_rows_per_class(name, table) is not None for table in (rows, columns)]
        return [n for d, n in enumerate(value.shape) if d > 1 or not free[d]]

    different = set(own) ^ set(tensors) | {
        name
        for name in set(own) & set(tensors)
        if fixed(name, own[name]) != fixed(name, tensors[name])
    }
    if different:
        raise ModelError(
            f"{path}: holds {header['system']} of another architecture than the one being "
            f"built: {few('differing weights', sorted(different))}leave model.name and its "
            "config out of the recipe to take the checkpoint's own"
        )


def _reuse_line(old: Sequence[str], new: Sequence[str]) -> str:
    reused = [name for name in new if name in old]
    fresh = [name for name in new if name not in old]
    line = f"reused {len(reused)} of {len(new)} classes by name"
    if reused:
        line += f": {listed(reused)}"
    return f"{line}; initialised: {listed(fresh)}" if fresh else line
