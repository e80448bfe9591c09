"""Plots of an evaluation as PNG files, for papers and slides; needs the extra `plots`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Without a window, and without touching the backend that a user chose for pyplot.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pixelwise.evaluation.scores import Report

_DPI = 160
_COLORS = ("#2563eb", "#e8590c", "#12805c", "#9333ea", "#d6336c", "#0c8599", "#7c5c1e", "#5c677d")
_MOST_CURVES = 8


def draw_plots(report: Report, out: Path) -> list[Path]:
    """Draw everything that the report holds.

    Args:
        report: of any task.
        out:    folder, made where it is missing.

    Returns:
        Files written: confusion.png or precision_recall.png, and classes.png.
    """
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if report.confusion is not None:
        written.append(_save(_confusion(report), out / "confusion.png"))
    if report.curves is not None:
        written.append(_save(_precision_recall(report), out / "precision_recall.png"))
    if report.rows:
        written.append(_save(_classes(report), out / "classes.png"))
    return written


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes without the upper and the right frame."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    drawn: Any = figure
    drawn.savefig(path, dpi=_DPI)
    return path


def _confusion(report: Report) -> Figure:
    """Rows are annotated classes, each cell the share of its row."""
    counts = report.confusion or []
    k = len(counts)
    side = max(3.5, 0.42 * k + 1.8)
    figure, axes = _figure(side + 0.6, side)
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(k), report.classes, rotation=60, ha="right")
    axes.set_yticks(range(k), report.classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("annotated")
    if k <= 24:
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                if share >= 0.005:
                    ink = "white" if share > 0.55 else "#1c2430"
                    axes.text(
                        j, i, f"{100 * share:.0f}", color=ink, size=7, ha="center", va="center"
                    )
    whole: Any = figure
    whole.colorbar(picture, ax=axes, shrink=0.7, label="share of the annotated pixels")
    return figure


def _precision_recall(report: Report) -> Figure:
    """The mean over classes at three IoU thresholds, thin lines for single classes at 0.5."""
    curves: dict[str, Any] = report.curves or {}
    figure, axes = _figure(5.6, 4.2)
    often = sorted(report.rows, key=lambda row: -row["annotated"])
    names = [row["class"] for row in often if row["class"] in curves["classes"]]
    if len(names) > 1:
        for name in names[:_MOST_CURVES]:
            axes.plot(curves["recall"], curves["classes"][name], color="#c3cad5", linewidth=0.9)
    for color, (threshold, values) in zip(_COLORS, curves["mean"].items(), strict=False):
        shown = [value if value >= 0 else math.nan for value in values]
        axes.plot(curves["recall"], shown, color=color, linewidth=2, label=f"IoU {threshold}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color="#e4e8ee", linewidth=0.8)
    axes.legend(frameon=False)
    return figure


def _classes(report: Report) -> Figure:
    """The main number of every class, best on top."""
    key = "iou" if report.task == "semantic" else "mask_ap"
    found = [(row["class"], float(row[key])) for row in report.rows]
    found = sorted((v, name) for name, v in found if math.isfinite(v) and v >= 0)
    figure, axes = _figure(5.6, max(1.6, 0.26 * len(found) + 0.9))
    axes.barh([name for _, name in found], [value for value, _ in found], color=_COLORS[0])
    for i, (value, _) in enumerate(found):
        axes.text(value + 0.01, i, f"{value:.3f}", va="center", size=8, color="#5d6878")
    axes.set(xlim=(0, 1.08), xlabel="IoU" if key == "iou" else "mask AP")
    axes.tick_params(axis="y", length=0)
    return figure
