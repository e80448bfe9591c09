"""Charts of the run report as inline SVG: no library, no network, sharp at any size.

Colours come from the page's style sheet (`--series-0` .. `--series-7`, `--ink`, `--grid`), so a
chart follows the light or dark theme of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 14, 40
_SERIES = 8  # colours in the style sheet
_MARKED = 60  # up to this many points each gets a dot
_CELL = 34  # largest side of a cell of a matrix, pixels
_MATRIX = 620  # largest side of the cells of a matrix together


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart; points whose y is not finite interrupt it.

    Args:
        name:   for the legend.
        xs:     ascending.
        ys:     one per x.
        color:  number of the colour; None takes the position in the chart.
        dashed: draw it broken.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int | None = None
    dashed: bool = False


@dataclass(frozen=True)
class _Frame:
    """The range that a chart shows, and the way from data to its pixels."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        span = HEIGHT - _TOP - _BOTTOM
        return HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * span


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    best: tuple[float, float] | None = None,
) -> str:
    """Lines over a common axis, with a legend below.

    Args:
        series:  the lines.
        x_label: what the horizontal axis counts.
        y_range: fixed vertical range; None fits the data.
        from_zero: start the vertical range at 0.
        best:    a point (x, y) to ring.

    Returns:
        A `<figure>`; a note instead of a chart where no point is finite.
    """
    shown = [s for s in series if any(math.isfinite(y) for y in s.ys)]
    if not shown:
        return '<p class="note">no finite values</p>'
    frame = _frame(shown, y_range, from_zero=from_zero)
    parts = [_axes(frame, x_label)]
    for number, one in enumerate(shown):
        color = (number if one.color is None else one.color) % _SERIES
        parts.append(_line(one, frame, color))
    if best is not None:
        x, y = frame.x(best[0]), frame.y(best[1])
        parts.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
    keys = "".join(
        f'<span><i class="s{(n if s.color is None else s.color) % _SERIES}'
        f'{" dashed" if s.dashed else ""}"></i>{escape(s.name)}</span>'
        for n, s in enumerate(shown)
    )
    legend = f'<figcaption class="legend">{keys}</figcaption>'
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"{''.join(parts)}</svg>{legend}</figure>"
    )


def matrix_chart(counts: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """A confusion matrix: rows are annotated classes, each cell the share of its row.

    Args:
        counts: [K, K] pixels.
        names:  K class names.
    """
    k = len(names)
    cell = min(_CELL, _MATRIX / max(k, 1))
    wordy = cell >= 24  # a smaller cell has no room for digits
    text = min(12.0, max(cell * 0.62, 5.0))
    margin = 16 + text * 0.6 * max((min(len(n), 18) for n in names), default=0)
    parts: list[str] = []
    for i, row in enumerate(counts):
        total = sum(row)
        for j, count in enumerate(row):
            share = count / total if total else 0.0
            parts.append(_cell(i, j, share, (names[i], names[j]), (cell, margin, wordy)))
    for i, name in enumerate(names):
        at = margin + (i + 0.5) * cell
        short = escape(name if len(name) <= 18 else name[:17] + "…")
        style = f'style="font-size:{text:.1f}px"'
        parts.append(
            f'<text class="tick" {style} x="{margin - 6:.1f}" y="{at:.1f}" text-anchor="end" '
            f'dominant-baseline="central">{short}</text>'
            f'<text class="tick" {style} dominant-baseline="central" '
            f'transform="translate({at:.1f} {margin - 6:.1f}) rotate(-60)">{short}</text>'
        )
    side = margin + k * cell + 4
    return (
        f'<figure class="chart matrix"><svg viewBox="0 0 {side + margin * 0.5:.0f} {side:.0f}" '
        f'style="max-width:{side + margin * 0.5:.0f}px" role="img">{"".join(parts)}</svg>'
        '<figcaption class="note">Rows: annotated class. Columns: predicted class. '
        "Each cell is the share of its row's pixels.</figcaption></figure>"
    )


def bar(share: float) -> str:
    """A value in 0..1 as a small bar for a table cell; an empty place where it is undefined."""
    if not math.isfinite(share) or share < 0:
        return '<span class="bar none"></span>'
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A tick label: short, never in needless digits."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def _frame(
    series: Sequence[Series], y_range: tuple[float, float] | None, *, from_zero: bool
) -> _Frame:
    xs = [x for s in series for x in s.xs]
    ys = [y for s in series for y in s.ys if math.isfinite(y)]
    x0, x1 = min(xs), max(xs)
    if x0 == x1:
        x0, x1 = x0 - 0.5, x1 + 0.5
    if y_range is not None:
        return _Frame(x0, x1, *y_range)
    y0, y1 = min(ys), max(ys)
    if from_zero or 0 <= y0 < 0.5 * y1:
        y0 = 0.0  # a loss or a share reads best from zero
    if y0 == y1:
        y0, y1 = y0 - max(abs(y0), 1e-6) * 0.5, y1 + max(abs(y1), 1e-6) * 0.5
    room = 0.05 * (y1 - y0)
    return _Frame(x0, x1, y0 if y0 == 0 else y0 - room, y1 + room)


def _axes(frame: _Frame, x_label: str) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts: list[str] = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 8}" y="{y:.1f}" text-anchor="end" '
            f'dominant-baseline="central">{number(value)}</text>'
        )
    for value in ticks(frame.x0, frame.x1, about=8):
        parts.append(
            f'<text class="tick" x="{frame.x(value):.1f}" y="{bottom + 16}" '
            f'text-anchor="middle">{number(value)}</text>'
        )
    middle = (_LEFT + right) / 2
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return "".join(parts)


def _line(series: Series, frame: _Frame, color: int) -> str:
    """One path, interrupted where values are missing, and a dot with a tooltip at each point."""
    points = [(x, y) for x, y in zip(series.xs, series.ys, strict=True)]
    path: list[str] = []
    pen = "M"
    for x, y in points:
        if not math.isfinite(y):
            pen = "M"
            continue
        path.append(f"{pen}{frame.x(x):.1f} {frame.y(y):.1f}")
        pen = "L"
    dashed = " dashed" if series.dashed else ""
    parts = [f'<path class="line c{color}{dashed}" d="{"".join(path)}"/>']
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) <= _MARKED:
        name = escape(series.name)
        parts += [
            f'<circle class="dot c{color}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3">'
            f"<title>{name}\n{number(x)}: {y:.5g}</title></circle>"
            for x, y in finite
        ]
    return "".join(parts)


def _cell(
    i: int, j: int, share: float, names: tuple[str, str], look: tuple[float, float, bool]
) -> str:
    """One square; the diagonal in the colour of success, the rest in that of mistakes."""
    cell, margin, wordy = look
    x, y = margin + j * cell, margin + i * cell
    kind = "hit" if i == j else "miss"
    # The square root lets small confusions show beside a strong diagonal.
    opacity = math.sqrt(share)
    tip = f"{names[0]} taken for {names[1]}: {share:.2%}" if i != j else f"{names[0]}: {share:.2%}"
    square = (
        f'<rect class="cell {kind}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" '
        f'height="{cell - 1:.1f}" style="fill-opacity:{opacity:.3f}">'
        f"<title>{escape(tip)}</title></rect>"
    )
    if not wordy or share < 0.005:
        return square
    ink = "on" if opacity > 0.6 else "off"
    return square + (
        f'<text class="count {ink}" x="{x + cell / 2:.1f}" y="{y + cell / 2:.1f}">'
        f"{100 * share:.0f}</text>"
    )
