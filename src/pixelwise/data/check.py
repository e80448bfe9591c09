"""`data check`: read every file of a data set and list what is wrong, by kind, with the fix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.data.dataset import Dataset
from pixelwise.data.duplicates import Fingerprint, find_duplicates, fingerprint
from pixelwise.data.images import read_image
from pixelwise.data.kinds import KINDS, Severity
from pixelwise.data.source import Problem
from pixelwise.errors import DataError
from pixelwise.progress import track
from pixelwise.types import IGNORE, Size

_SHOWN = 5  # file names per kind in the summary
_KEPT = 1000  # problems per kind in the report; the counts are complete


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found.

    Args:
        images:   number of pictures looked at, by split.
        problems: kind → the problems (at most 1000 of each).
        counts:   kind → how many there are.
    """

    images: dict[str, int]
    problems: dict[str, list[Problem]] = field(default_factory=dict[str, list[Problem]])
    counts: Counter[str] = field(default_factory=Counter[str])

    @property
    def errors(self) -> list[Problem]:
        """Problems that must be mended."""
        return self._of("error")

    @property
    def warnings(self) -> list[Problem]:
        """Problems worth a look."""
        return self._of("warning")

    @property
    def notes(self) -> list[Problem]:
        """Facts that may surprise."""
        return self._of("note")

    @property
    def error_count(self) -> int:
        """How many errors there are, also beyond those kept."""
        return sum(n for kind, n in self.counts.items() if KINDS[kind].severity == "error")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "images": self.images,
            "errors": self.error_count,
            "kinds": {
                kind: {
                    "severity": KINDS[kind].severity,
                    "count": self.counts[kind],
                    "meaning": KINDS[kind].meaning,
                    "fix": KINDS[kind].fix,
                    "problems": [{"file": p.file, "detail": p.detail} for p in found],
                }
                for kind, found in self._sorted()
            },
        }

    def summary(self) -> str:
        """A text for people: kinds with counts, the first files, and the fix."""
        total = sum(self.images.values())
        splits = ", ".join(f"{name} {count}" for name, count in self.images.items())
        lines = [f"{total} pictures ({splits})"]
        for kind, found in self._sorted():
            about = KINDS[kind]
            lines.append(f"\n{about.severity}: {kind} ({self.counts[kind]}): {about.meaning}")
            lines += [f"  {p.file}" + (f": {p.detail}" if p.detail else "") for p in found[:_SHOWN]]
            more = self.counts[kind] - min(len(found), _SHOWN)
            lines += [f"  ... and {more} more"] if more else []
            lines.append(f"  fix: {about.fix}")
        lines.append("")
        lines.append(self._verdict())
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.error_count:
            return f"{self.error_count} errors: mend them before training"
        warnings = sum(n for kind, n in self.counts.items() if KINDS[kind].severity == "warning")
        return f"no errors, {warnings} warnings" if warnings else "no errors"

    def _of(self, severity: Severity) -> list[Problem]:
        return [
            problem
            for kind, found in self._sorted()
            if KINDS[kind].severity == severity
            for problem in found
        ]

    def _sorted(self) -> list[tuple[str, list[Problem]]]:
        order = list(KINDS)
        return sorted(self.problems.items(), key=lambda entry: order.index(entry[0]))

    def add(self, problem: Problem) -> None:
        """Count one more problem."""
        self.counts[problem.kind] += 1
        if self.counts[problem.kind] <= _KEPT:
            self.problems.setdefault(problem.kind, []).append(problem)


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """What one picture showed."""

    problems: Sequence[Problem]
    fingerprint: Fingerprint | None
    classes: npt.NDArray[np.int64]


def check(dataset: Dataset, *, quiet: bool = False) -> CheckReport:
    """Read every label and every picture.

    Args:
        dataset: the plain view; best opened with `open(..., lenient=True)`, so that a broken
                 annotation is listed instead of stopping it.
        quiet:   show no progress.

    Returns:
        Everything found; `report.errors` must be mended before training.
    """
    report = CheckReport(images={name: len(dataset.split(name)) for name in dataset.splits})
    checked: set[int] = set()
    for source in dataset.sources:
        if id(source) not in checked:
            checked.add(id(source))
            for problem in source.problems():
                report.add(problem)
    used: set[int] = set()
    prints: list[Fingerprint | None] = []
    for looked in track(_look_at_all(dataset), "checking", total=len(dataset), quiet=quiet):
        for problem in looked.problems:
            report.add(problem)
        used.update(looked.classes.tolist())
        prints.append(looked.fingerprint)
    _add_unused(report, dataset, used)
    for first, second in find_duplicates(prints, dataset.index[:, 0], dataset.names):
        report.add(
            Problem(
                kind="duplicate across splits",
                file=str(dataset.path(first)),
                detail=f"like {dataset.path(second)}",
            )
        )
    return report


def _look_at_all(dataset: Dataset) -> Iterator[_Looked]:
    """In order, decoding several pictures at a time; Pillow works outside the interpreter lock."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        todo = iter(range(len(dataset)))
        while batch := list(islice(todo, 16 * workers)):
            yield from pool.map(_look_at, repeat(dataset), batch)


def _look_at(dataset: Dataset, i: int) -> _Looked:
    source, at = dataset.locate(i)
    path = source.files.path(at)
    problems: list[Problem] = []
    mark: Fingerprint | None = None
    stated = source.files.stated_size(at)
    size: Size | None = stated
    if not path.is_file():
        problems.append(Problem(kind="missing image", file=str(path)))
    else:
        try:
            image = read_image(path)
        except DataError as error:
            problems.append(Problem(kind="unreadable image", file=str(path), detail=str(error)))
        else:
            size = (int(image.shape[0]), int(image.shape[1]))
            mark = fingerprint(image)
            if stated is not None and stated != size:
                problems.append(_mismatch(path, size, stated))
                size = stated
    classes = np.zeros(0, np.int64)
    if size is not None:
        found = list(source.picture_problems(at, size))
        problems += found
        if not any(problem.kind == "unreadable label" for problem in found):
            classes, empty = _classes_of(dataset, i, size)
            problems += [Problem(kind="empty image", file=str(path))] if empty else []
    return _Looked(problems=problems, fingerprint=mark, classes=classes)


def _mismatch(path: Path, size: Size, stated: Size) -> Problem:
    turned = " (the sides are swapped: an EXIF rotation?)" if stated == size[::-1] else ""
    detail = f"{size[1]}x{size[0]}, annotated as {stated[1]}x{stated[0]}{turned}"
    return Problem(kind="size mismatch", file=str(path), detail=detail)


def _classes_of(dataset: Dataset, i: int, size: Size) -> tuple[npt.NDArray[np.int64], bool]:
    """The classes that occur in picture i, and whether there is nothing in it."""
    source, at = dataset.locate(i)
    try:
        if source.has_labels:
            labels = source.labels(at)
            found = np.unique(labels[labels != IGNORE]).astype(np.int64)
        else:
            found = np.unique(source.instances(at, size).labels)
    except DataError:
        return np.zeros(0, np.int64), False  # reported already, by the reader of the format
    return found, len(found) == 0


def _add_unused(report: CheckReport, dataset: Dataset, used: set[int]) -> None:
    if not used:
        return
    source = dataset.sources[0]
    for k in sorted(set(range(len(source.classes))) - used):
        report.add(Problem(kind="unused class", file=source.classes[k], detail=f"label {k}"))
