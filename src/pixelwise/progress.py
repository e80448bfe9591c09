"""Progress of loops that a user waits for: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_LINE_EVERY_S = 10.0  # a log file should show life without drowning in lines
_PATIENCE_S = 1.0  # a loop that ends within this shows nothing


def track(
    items: Iterable[T],
    label: str,
    *,
    total: int | None = None,
    quiet: bool = False,
    status: Callable[[], str] | None = None,
) -> Iterator[T]:
    """Yield the items and show on stderr how far along they are.

    Args:
        items:  what to loop over.
        label:  what is being done, in a word or two.
        total:  number of items, where `items` has no length.
        quiet:  show nothing.
        status: called for a short text (losses, speed) shown after the counts.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, label, total, status)
    else:
        yield from _lines(items, label, total, status)


def note(text: str, *, quiet: bool = False) -> None:
    """Say one line on stderr."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _bar(
    items: Iterable[T], label: str, total: int | None, status: Callable[[], str] | None
) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, status="")
        for item in items:
            yield item
            progress.update(task, advance=1, status=status() if status else "")


def _lines(
    items: Iterable[T], label: str, total: int | None, status: Callable[[], str] | None
) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S and now - start > _PATIENCE_S:
            last = now
            of = f"/{total}" if total else ""
            tail = f"  {status()}" if status else ""
            print(f"{label}: {done}{of}, {now - start:.0f} s{tail}", file=sys.stderr, flush=True)
