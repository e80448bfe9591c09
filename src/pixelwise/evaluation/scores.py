"""The result of an evaluation: numbers, tables, worst pictures, plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pixelwise.errors import MissingExtraError
from pixelwise.evaluation.meters import Findings
from pixelwise.spec import Task

MAIN_METRIC: dict[Task, str] = {"semantic": "miou", "instance": "mask_ap"}
_WORST = 12
_TABLE_ROWS = 40  # a longer table is shortened


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How good one picture is: mIoU over the classes in it, or its own mask AP.

    Args:
        path:  of the picture.
        index: position in the evaluated view.
        score: in 0..1.
    """

    path: str
    index: int
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """The numbers of one evaluation.

    Args:
        task:      "semantic" or "instance".
        classes:   class names of the data set, in its order.
        metrics:   by name, the main one first. As in COCO an undefined average precision is -1; an
                   undefined pixel metric is nan.
        rows:      one per class.
        per_image: the main metric of every picture where it is defined, by index.
        confusion: [K, K] pixels, rows annotated, columns predicted (semantic).
        curves:    precision over recall (instance): "recall", "mean" by IoU, "classes" at IoU 0.5.
        about:     what was evaluated: model, data, split, images, seconds, settings.
    """

    task: Task
    classes: tuple[str, ...]
    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    per_image: list[ImageScore]
    confusion: list[list[int]] | None = None
    curves: dict[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(
        cls,
        task: Task,
        classes: Sequence[str],
        findings: Findings,
        *,
        paths: Mapping[int, str],
        losses: Mapping[str, float],
        about: Mapping[str, Any],
    ) -> Report:
        """A report of what a meter found, the losses after the metrics."""
        scores = findings.scores.items()
        notes = [*about.get("notes", ()), *findings.notes]
        return cls(
            task=task,
            classes=tuple(classes),
            metrics=findings.metrics | dict(losses),
            rows=findings.rows,
            per_image=[
                ImageScore(path=paths[i], index=i, score=score)
                for i, score in scores
                if math.isfinite(score)
            ],
            confusion=findings.confusion,
            curves=findings.curves,
            about=dict(about) | {"notes": notes},
        )

    @property
    def main(self) -> str:
        """Name of the main metric: "miou" or "mask_ap"."""
        return MAIN_METRIC[self.task]

    @property
    def worst(self) -> list[ImageScore]:
        """The pictures with the lowest scores, worst first, at most twelve."""
        return sorted(self.per_image, key=lambda image: (image.score, image.index))[:_WORST]

    def per_class(self) -> list[dict[str, Any]]:
        """One row per class, in the order of the data set: its name under "class", then numbers."""
        return [dict(row) for row in self.rows]

    def summary(self) -> str:
        """The result as text: a heading, the metrics, a table per class, the worst pictures."""
        parts = [self._heading(), _metric_lines(self.metrics), _table(self.rows)]
        parts += [f"note: {note}" for note in self.about.get("notes", ())]
        if self.worst:
            lines = [f"  {image.score:7.4f}  {image.path}" for image in self.worst[:5]]
            parts.append("\n".join(["worst pictures", *lines]))
        return "\n\n".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; what is undefined is None."""
        return {
            "task": self.task,
            "about": plain(self.about),
            "metrics": plain(self.metrics),
            "main": self.main,
            "classes": list(self.classes),
            "per_class": plain(self.rows),
            "worst": [asdict(image) for image in self.worst],
            "per_image": [asdict(image) for image in self.per_image],
            "confusion": self.confusion,
            "curves": plain(self.curves),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`."""
        nan = float("nan")
        rows = [{k: nan if v is None else v for k, v in row.items()} for row in values["per_class"]]
        return cls(
            task=values["task"],
            classes=tuple(values["classes"]),
            metrics={k: nan if v is None else float(v) for k, v in values["metrics"].items()},
            rows=rows,
            per_image=[ImageScore(**image) for image in values["per_image"]],
            confusion=values["confusion"],
            curves=values["curves"],
            about=dict(values["about"]),
        )

    def plots(self, out: str | Path) -> list[Path]:
        """Draw confusion matrix or precision-recall curves, and scores per class, as PNG files.

        Args:
            out: folder, made where it is missing.

        Returns:
            The files written.

        Raises:
            MissingExtraError: the extra `plots` is not installed.
        """
        try:
            from pixelwise.evaluation.plots import draw_plots
        except ImportError as error:
            raise MissingExtraError("drawing plots", "plots") from error
        return draw_plots(self, Path(out))

    def _heading(self) -> str:
        about = self.about
        what = " on ".join(str(about[k]) for k in ("model", "data") if about.get(k))
        words = [what, str(about.get("split") or ""), f"{about.get('images', 0)} images"]
        if about.get("seconds"):
            words.append(f"{about['seconds']:.1f} s")
        return ", ".join(word for word in words if word)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: tuples become lists, nan and infinities None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | bool) or value is None else str(value)


def show(value: Any) -> str:
    """A number as a table shows it: four digits, "-" where undefined."""
    if isinstance(value, float):
        undefined = not math.isfinite(value) or value == -1.0
        return "-" if undefined else f"{value:.4f}"
    return "-" if value is None else str(value)


def _metric_lines(metrics: Mapping[str, float]) -> str:
    width = max((len(name) for name in metrics), default=0)
    return "\n".join(f"{name:{width}}  {show(float(value))}" for name, value in metrics.items())


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns aligned by spaces; a long table leaves out classes that are annotated nowhere."""
    shown = list(rows)
    if len(rows) > _TABLE_ROWS:
        shown = [row for row in rows if row.get("annotated", row.get("share"))]
    if not shown:
        return ""
    head = list(shown[0])
    cells = [head] + [[show(row.get(key)) for key in head] for row in shown]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown)} classes without annotations")
    return "\n".join(lines)
