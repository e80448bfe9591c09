"""Many pictures on one sheet, with captions and one legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pixelwise.data.source import Color

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Picture = npt.NDArray[np.uint8]

_PAPER, _INK, _QUIET = (255, 255, 255), (32, 34, 38), (110, 114, 122)
_GAP_PX, _TEXT_PX = 16, 13
_CAPTION_PX = 24
_SWATCH_PX = 14
_OVERSAMPLED = 4  # round corners are drawn larger and shrunk, which smooths their edge


def arrange(
    pictures: Sequence[Picture],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    cell_px: int = 360,
    legend: Sequence[tuple[str, Color]] = (),
) -> Picture:
    """Lay pictures out in rows, each shrunk to fit its cell, with a caption below.

    Args:
        pictures: [H, W, 3] each.
        captions: one per picture; cut where it is longer than the cell.
        columns:  pictures in a row; None makes the sheet about as wide as high.
        cell_px:  longer side of a picture on the sheet.
        legend:   (name, colour) of the classes, written below all.

    Returns:
        [H, W, 3] the sheet.
    """
    from PIL import Image, ImageDraw

    columns = max(1, min(columns or _good_columns(len(pictures)), len(pictures)))
    rows = [range(r, min(r + columns, len(pictures))) for r in range(0, len(pictures), columns)]
    small = [_fit(picture, cell_px) for picture in pictures]
    heights = [max(small[i].height for i in row) for row in rows]
    width = columns * (cell_px + _GAP_PX) + _GAP_PX
    lines = _break_legend(legend, width - 2 * _GAP_PX)
    below = len(lines) * 2 * _SWATCH_PX + (_GAP_PX if lines else 0)
    height = sum(h + _CAPTION_PX + _GAP_PX for h in heights) + _GAP_PX + below
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _GAP_PX
    for row, tall in zip(rows, heights, strict=True):
        for place, i in enumerate(row):
            left = _GAP_PX + place * (cell_px + _GAP_PX)
            inset = (cell_px - small[i].width) // 2
            sheet.paste(small[i], (left + inset, top), _rounded(small[i].size))
            text = _shorten(captions[i], cell_px)
            pen.text(
                (left + cell_px / 2, top + small[i].height + 7), text, _QUIET, _font(), anchor="ma"
            )
        top += tall + _CAPTION_PX + _GAP_PX
    _write_legend(pen, lines, top)
    return np.asarray(sheet)


def _good_columns(count: int) -> int:
    """About as many columns as rows, preferably without a ragged last row."""
    ideal = (count * 1.2) ** 0.5
    near = range(max(1, int(ideal)), int(ideal) + 3)
    return min(near, key=lambda columns: (-count % columns + abs(columns - ideal), columns))


def _fit(picture: Picture, cell_px: int) -> Image.Image:
    from PIL import Image

    image = Image.fromarray(picture)
    scale = cell_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Microscope tiles are smaller than a cell: enlarged without blur their pixels stay honest.
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return image.resize(size, method)


def _rounded(size: tuple[int, int]) -> Image.Image:
    from PIL import Image, ImageDraw

    large = Image.new("L", (size[0] * _OVERSAMPLED, size[1] * _OVERSAMPLED), 0)
    box = (0, 0, large.width - 1, large.height - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, radius=6 * _OVERSAMPLED, fill=255)
    return large.resize(size, Image.Resampling.BOX)


def _font():  # noqa: ANN202  (Pillow gives one of two classes, by how it was built)
    from PIL import ImageFont

    return ImageFont.load_default(_TEXT_PX)


def _shorten(text: str, width_px: int) -> str:
    """Cut the middle out: names differ at the end more often than at the start."""
    font = _font()
    if font.getlength(text) <= width_px:
        return text
    keep = len(text)
    while (
        keep > 4
        and font.getlength(text[: keep // 3] + "…" + text[-(keep - keep // 3) :]) > width_px
    ):
        keep -= 1
    return text[: keep // 3] + "…" + text[-(keep - keep // 3) :]


def _break_legend(
    legend: Sequence[tuple[str, Color]], width_px: int
) -> list[list[tuple[float, str, Color]]]:
    """Lines of (left, name, colour) that fit the sheet."""
    lines: list[list[tuple[float, str, Color]]] = []
    left = float(width_px)
    for name, color in legend:
        needed = _SWATCH_PX + 8 + _font().getlength(name) + 20
        if left + needed > width_px:
            lines.append([])
            left = 0.0
        lines[-1].append((left, name, color))
        left += needed
    return lines


def _write_legend(
    pen: ImageDraw.ImageDraw, lines: Sequence[Sequence[tuple[float, str, Color]]], top: int
) -> None:
    for line in lines:
        for left, name, color in line:
            x = _GAP_PX + left
            box = (x, top, x + _SWATCH_PX, top + _SWATCH_PX)
            pen.rounded_rectangle(box, radius=3, fill=color)
            middle = top + _SWATCH_PX / 2
            pen.text((x + _SWATCH_PX + 7, middle), name, _INK, _font(), anchor="lm")
        top += 2 * _SWATCH_PX
