r"""Rules that translate another project's state dict into ours: data, total, and invertible.

A converter is a list of rules. Each source key must be matched by exactly one rule, each
destination key must be filled, each shape must agree; otherwise `translate` raises and lists what
is wrong.

>>> rules = [Rename(r"backbone\.layer(\d)\.(\d+)\.bn1\.", r"backbone.layer\1.\2.norm1."),
...          Drop(r"head\.fc\.", "classifier of ImageNet")]

Patterns are regular expressions, matched at the start of a key; what follows the match is kept, so
a rule for a module covers its weight, bias and statistics. End a pattern with `$` for a whole key.

`num_batches_tracked` needs no rule of its own: it follows its module's rule where the destination
has the key, is left out where it has not (frozen batch norms), and is 0 where the source lacks it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pixelwise.errors import ConversionError

_COUNTER = "num_batches_tracked"
_SHOWN = 12  # keys listed per problem


@dataclass(frozen=True)
class Rename:
    r"""Move a tensor unchanged.

    Args:
        pattern: regular expression matched at the start of the source key.
        to:      replacement for the matched part; `\1`, `\2` are the pattern's groups.
    """

    pattern: str
    to: str

    def apply(self, value: Tensor) -> Tensor:
        """The tensor as the destination stores it."""
        return value

    def undo(self, value: Tensor) -> Tensor:
        """The tensor as the source stores it."""
        return value


@dataclass(frozen=True)
class Permute(Rename):
    """Move a tensor with its dimensions in another order, such as [out, in] from [in, out].

    Args:
        pattern, to: as in `Rename`.
        dims: position in the source of each destination dimension.
    """

    dims: tuple[int, ...] = (1, 0)

    def apply(self, value: Tensor) -> Tensor:
        """The tensor as the destination stores it."""
        return value.permute(self.dims)

    def undo(self, value: Tensor) -> Tensor:
        """The tensor as the source stores it."""
        return value.permute(tuple(self.dims.index(d) for d in range(len(self.dims))))


@dataclass(frozen=True)
class Rows(Rename):
    """Move a tensor with the rows of its first dimension in another order, or fewer of them.

    Args:
        pattern, to: as in `Rename`.
        order: from the number of source rows to the source row of each destination row; see `roll`.
    """

    order: Callable[[int], Sequence[int]] = range

    def apply(self, value: Tensor) -> Tensor:
        """The tensor as the destination stores it."""
        return value[torch.tensor(self.order(len(value)), dtype=torch.int64)]

    def undo(self, value: Tensor) -> Tensor:
        """The tensor as the source stores it; rows that were left out are an error."""
        order = list(self.order(len(value)))
        if sorted(order) != list(range(len(value))):
            raise ConversionError(f"{self.to}: rows were left out on the way in; cannot be undone")
        return value[torch.tensor(order).argsort()]

    def undo_with_zeros(self, value: Tensor) -> Tensor:
        """The same, with zeros for rows that were left out: nothing of the network reads them."""
        rows = len(value)
        while len(self.order(rows)) < len(value):
            rows += 1
        result = value.new_zeros(rows, *value.shape[1:])
        result[torch.tensor(self.order(rows), dtype=torch.int64)] = value
        return result


@dataclass(frozen=True)
class Reshape(Rename):
    """Move a tensor with another shape of the same number of elements.

    Args:
        pattern, to: as in `Rename`.
        shape:  of the destination, from the source's shape.
        source: the way back, from the destination's shape; None where nobody needs it.
    """

    shape: Callable[[tuple[int, ...]], Sequence[int]] = tuple
    source: Callable[[tuple[int, ...]], Sequence[int]] | None = None

    def apply(self, value: Tensor) -> Tensor:
        """The tensor as the destination stores it."""
        return value.reshape(tuple(self.shape(tuple(value.shape))))

    def undo(self, value: Tensor) -> Tensor:
        """The tensor as the source stores it."""
        if self.source is None:
            raise ConversionError(f"{self.to}: the rule has no way back")
        return value.reshape(tuple(self.source(tuple(value.shape))))


@dataclass(frozen=True)
class Split:
    """Cut one tensor into several along a dimension.

    Args:
        pattern: as in `Rename`.
        to:      one replacement per part.
        dim:     along which.
        sizes:   of the parts; None for equal ones.
    """

    pattern: str
    to: tuple[str, ...]
    dim: int = 0
    sizes: tuple[int, ...] | None = None

    def apply(self, value: Tensor) -> list[Tensor]:
        """The parts, in the order of `to`."""
        if self.sizes is None:
            return list(value.tensor_split(len(self.to), self.dim))
        return list(torch.split(value, list(self.sizes), self.dim))


@dataclass(frozen=True)
class Drop:
    """Leave a tensor out.

    Args:
        pattern: as in `Rename`.
        reason:  shown in the report: what it is and why it is not needed.
    """

    pattern: str
    reason: str


Rule = Rename | Split | Drop


def roll(shift: int) -> Callable[[int], list[int]]:
    """An order for `Rows`: the first `shift` rows go to the end (background first → last)."""
    return lambda rows: [(i + shift) % rows for i in range(rows)]


def skip(count: int) -> Callable[[int], list[int]]:
    """An order for `Rows`: without the first `count` rows."""
    return lambda rows: list(range(count, rows))


def prefixed(rules: Iterable[Rule], source: str, destination: str) -> list[Rule]:
    """Shared rules (of a backbone, say) under the prefixes of one system.

    Args:
        rules:       with patterns and destinations relative to the part.
        source:      literal prefix of the source keys, such as "encoder."; not a pattern.
        destination: prefix of our keys, such as "backbone.".
    """
    result: list[Rule] = []
    for rule in rules:
        pattern = re.escape(source) + rule.pattern
        if isinstance(rule, Drop):
            result.append(replace(rule, pattern=pattern))
        elif isinstance(rule, Split):
            to = tuple(destination + part for part in rule.to)
            result.append(replace(rule, pattern=pattern, to=to))
        else:
            result.append(replace(rule, pattern=pattern, to=destination + rule.to))
    return result


@dataclass(frozen=True)
class Translation:
    """A translated state dict and where everything in it came from.

    Args:
        state:   our keys and tensors.
        sources: our key → source key.
        dropped: source key → reason.
    """

    state: dict[str, Tensor]
    sources: dict[str, str]
    dropped: dict[str, str]

    def summary(self) -> str:
        """One line for a log."""
        line = f"{len(self.sources)} tensors moved"
        return line + (f", {len(self.dropped)} left out" if self.dropped else "")


@dataclass
class Gaps:
    """What keeps a translation from being total; all as text for a reader."""

    unknown: list[str] = field(default_factory=list[str])
    ambiguous: list[str] = field(default_factory=list[str])
    surplus: list[str] = field(default_factory=list[str])
    twice: list[str] = field(default_factory=list[str])
    shapes: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])

    def raise_any(self) -> None:
        """Fail if there is a gap.

        Raises:
            ConversionError: with the lists.
        """
        titles = {
            "unknown": "source keys that no rule covers",
            "ambiguous": "source keys that several rules cover",
            "surplus": "rules that lead to keys which the network does not have",
            "twice": "network keys filled twice",
            "shapes": "tensors of another shape",
            "missing": "network keys that nothing fills",
        }
        parts: list[str] = []
        for name, title in titles.items():
            keys: list[str] = getattr(self, name)
            if keys:
                rest = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
                parts.append(f"{len(keys)} {title}: {', '.join(keys[:_SHOWN])}{rest}")
        if parts:
            raise ConversionError(
                "the checkpoint does not fit; "
                + "; ".join(parts)
                + ". Check origin and name, and pass the settings that shapes cannot tell"
            )


def translate(
    rules: Sequence[Rule],
    source: Mapping[str, Tensor],
    destination: Mapping[str, Tensor],
    *,
    partial: bool = False,
) -> Translation:
    """Translate a state dict; every key on both sides must be accounted for.

    Args:
        rules:       of the origin.
        source:      the other project's state dict.
        destination: the state dict of the network to fill; only its keys and shapes are read.
        partial:     the destination is a part of what the source holds (a backbone without its
            classifier or last stages): tensors that lead to no key of it are left out.

    Returns:
        The translated state, ready for `load_state_dict(strict=True)`.

    Raises:
        ConversionError: a key that no rule or several cover, that is not filled or filled twice, or
            a shape that differs; the message holds the lists.
    """
    result, gaps = _attempt(rules, source, destination, partial=partial)
    gaps.raise_any()
    return result


def translate_what_fits(
    rules: Sequence[Rule], source: Mapping[str, Tensor], destination: Mapping[str, Tensor]
) -> tuple[Translation, Gaps]:
    """Translate what the rules cover and the network has in this shape; the rest keeps its values.

    Args:
        rules:       of the origin.
        source:      the other project's state dict.
        destination: the state dict of the network to fill, with the values to keep.

    Returns:
        translation: complete; `sources` lacks what was kept.
        gaps: what was left out, and what was kept.
    """
    result, gaps = _attempt(rules, source, destination, partial=False)
    for key, value in destination.items():
        if key not in result.state or result.state[key].shape != value.shape:
            result.state[key] = value
            result.sources.pop(key, None)
    return result, gaps


def _attempt(
    rules: Sequence[Rule],
    source: Mapping[str, Tensor],
    destination: Mapping[str, Tensor],
    *,
    partial: bool,
) -> tuple[Translation, Gaps]:
    gaps = Gaps()
    result = Translation(state={}, sources={}, dropped={})
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    for key, value in source.items():
        matches = [(m, rule) for pattern, rule in compiled if (m := pattern.match(key))]
        if len(matches) != 1:
            (gaps.ambiguous if matches else gaps.unknown).append(key)
            continue
        match, rule = matches[0]
        if isinstance(rule, Drop):
            result.dropped[key] = rule.reason
            continue
        for target, tensor in _moved(rule, match, value):
            if partial and target not in destination:
                result.dropped[key] = "not part of the network to fill"
            else:
                _place(target, tensor, key, destination=destination, result=result, gaps=gaps)
    for key, value in destination.items():
        if key not in result.state:
            if key.endswith(_COUNTER):
                result.state[key] = torch.zeros_like(value)
            else:
                gaps.missing.append(key)
    return result, gaps


def rule_of(rules: Sequence[Rule], key: str) -> Rule | None:
    """The rule that covers a source key, or None."""
    return next((rule for rule in rules if re.match(rule.pattern, key)), None)


def _moved(rule: Rename | Split, match: re.Match[str], value: Tensor) -> list[tuple[str, Tensor]]:
    rest = match.string[match.end() :]
    is_counter = match.string.endswith(_COUNTER)
    if isinstance(rule, Split):
        targets = [match.expand(to) + rest for to in rule.to]
        # A counter is one number: every part gets it.
        parts = [value] * len(targets) if is_counter else rule.apply(value)
        return list(zip(targets, parts, strict=True))
    return [(match.expand(rule.to) + rest, value if is_counter else rule.apply(value))]


def _place(
    target: str,
    tensor: Tensor,
    key: str,
    *,
    destination: Mapping[str, Tensor],
    result: Translation,
    gaps: Gaps,
) -> None:
    if target not in destination:
        if target.endswith(_COUNTER):
            result.dropped[key] = "counter of a batch norm whose statistics are frozen"
        else:
            gaps.surplus.append(f"{key} → {target}")
    elif target in result.state:
        gaps.twice.append(f"{target} (from {result.sources[target]} and {key})")
    elif tensor.shape != destination[target].shape:
        gaps.shapes.append(
            f"{key} {list(tensor.shape)} → {target} {list(destination[target].shape)}"
        )
        result.state[target] = tensor  # reported already: not missing too
        result.sources[target] = key
    else:
        result.state[target] = tensor.contiguous()
        result.sources[target] = key


def invert(
    rules: Sequence[Rule], state: Mapping[str, Tensor], *, with_zeros: bool = False
) -> dict[str, Tensor]:
    """Translate one of our state dicts back into the origin's names.

    What the rules drop stays absent.

    Args:
        rules: of the origin; only those that rename or reorder can be inverted.
        state: ours.
        with_zeros: rows that were left out on the way in come back as zeros, instead of an error.

    Returns:
        The origin's keys and tensors.

    Raises:
        ConversionError: a key that no rule leads to, or a rule that cannot be inverted.
    """
    compiled = [
        (re.compile(pattern), to, rule)
        for rule in rules
        if isinstance(rule, Rename)
        for pattern, to in [_inverse(rule)]
    ]
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        found = [(m, to, rule) for pattern, to, rule in compiled if (m := pattern.match(key))]
        if not found:
            raise ConversionError(f"no invertible rule leads to {key!r}")
        # The longest match is the most specific rule; ours may be prefixes of each other.
        match, to, rule = max(found, key=lambda f: f[0].end())
        target = match.expand(to) + key[match.end() :]
        back = rule.undo_with_zeros if with_zeros and isinstance(rule, Rows) else rule.undo
        result[target] = value if key.endswith(_COUNTER) else back(value)
    return result


_GROUP = re.compile(r"\((?!\?)[^()]*\)")
_REFERENCE = re.compile(r"\\(\d)")


def _inverse(rule: Rename) -> tuple[str, str]:
    """Pattern and replacement of the way back: groups and literals change places."""
    end = "$" if rule.pattern.endswith("$") else ""
    pattern = rule.pattern.removesuffix("$")
    groups = _GROUP.findall(pattern)
    literals = [re.sub(r"\\(.)", r"\1", part) for part in _GROUP.split(pattern)]
    special = [
        part for part in _GROUP.split(pattern) if re.search(r"(?<!\\)[.*+?\[\]|^{}()]", part)
    ]
    order = [int(number) for number in _REFERENCE.findall(rule.to)]
    if special or sorted(order) != list(range(1, len(groups) + 1)):
        raise ConversionError(f"the rule {rule.pattern!r} → {rule.to!r} cannot be inverted")
    pieces = _REFERENCE.split(rule.to)[::2]  # the literals between the references
    back = re.escape(pieces[0])
    for number, piece in zip(order, pieces[1:], strict=True):
        back += groups[number - 1] + re.escape(piece)
    to = literals[0]
    for i, literal in enumerate(literals[1:], start=1):
        to += f"\\{order.index(i) + 1}{literal}"
    return back + end, to
