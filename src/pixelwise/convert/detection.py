"""What the converters of the detectors share: reading settings from shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from pixelwise.convert.rules import Drop, Rename, Rule

Shapes = dict[str, tuple[int, ...]]


def with_group_norm(rules: Iterable[Rule]) -> list[Rule]:
    """The same rules for a network whose norms are called `gn` instead of `bn` (OpenMMLab)."""
    return [replace(rule, pattern=rule.pattern.replace("bn", "gn")) for rule in rules]


def renamed_shapes(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the source's tensors under the names that rules give them.

    So settings are read from one vocabulary, ours, whatever the origin. Rows are those of the
    source. Keys that no rule covers are left out; `translate` lists them later.
    """
    shapes: Shapes = {}
    for key, value in state.items():
        for rule in rules:
            match = None if isinstance(rule, Drop) else re.match(rule.pattern, key)
            if match and isinstance(rule, Rename):
                shapes[match.expand(rule.to) + key[match.end() :]] = tuple(value.shape)
                break
    return shapes


def count(shapes: Shapes, pattern: str) -> int:
    """How many different first groups a pattern finds at the start of the keys."""
    return len({m[1] for key in shapes if (m := re.match(pattern, key))})


def norm_kind(shapes: Shapes, module: str, *, counter_means: str) -> str | None:
    """Which norm a module is.

    Args:
        shapes: by our names.
        module: name of the norm.
        counter_means: the kind where batch statistics come with a counter.

    Returns:
        "frozen" for statistics without a counter, "group" for none, None where there is no norm.
    """
    if f"{module}.weight" not in shapes:
        return None
    if f"{module}.running_mean" not in shapes:
        return "group"
    return counter_means if f"{module}.num_batches_tracked" in shapes else "frozen"
