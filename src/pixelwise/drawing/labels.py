"""Text on pictures: labels of objects that do not cover each other, legends, titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from pixelwise.drawing.palette import Color, ink_on

Rectangle = tuple[float, float, float, float]  # xyxy

_PAPER = (24, 26, 31)
_INK = (235, 237, 240)


@dataclass(frozen=True)
class Label:
    """A text and the object it names.

    Args:
        text: may be empty, then nothing is drawn.
        box:  xyxy of the object, pixels of the canvas.
    """

    text: str
    box: Rectangle


def text_size_px(size: tuple[int, int]) -> float:
    """Text height for a picture of (height, width): 15 px at 480 x 640, never below 11."""
    return max(11.0, 15.0 * ((size[0] * size[1]) ** 0.5 / 554) ** 0.8)


def draw_labels(canvas: Image.Image, labels: Sequence[Label], colors: Sequence[Color]) -> None:
    """Write each label next to its object, on a box of the object's colour.

    Labels come best first; one that finds no free place, or whose object is smaller than its text,
    is left out: in a crowd the outlines speak for themselves.

    Args:
        canvas: drawn on in place.
        labels: best first.
        colors: one per label.
    """
    text_px = text_size_px((canvas.height, canvas.width))
    taken: list[Rectangle] = []
    for label, color in zip(labels, colors, strict=True):
        width, height = _tag_size(label.text, text_px)
        if not label.text or not _worth_text(label.box, width, height):
            continue
        place = _free_place(label.box, (width, height), canvas.size, taken)
        if place is not None:
            taken.append((*place, place[0] + width, place[1] + height))
            _draw_tag(canvas, label.text, place, color)


def draw_legend(
    canvas: Image.Image, shares: Sequence[tuple[int, str, float]], colors: Sequence[Color]
) -> Image.Image:
    """Extend the canvas by a strip that names the colours.

    Args:
        canvas: the drawn picture.
        shares: (label, name, share of the picture) of each class to name.
        colors: one per class.

    Returns:
        A taller picture of the same width.
    """
    text_px = text_size_px((canvas.height, canvas.width))
    font = _font(text_px)
    row, pad, swatch = round(text_px * 1.75), round(text_px * 0.7), round(text_px * 0.95)
    entries = [(colors[i], name, _percent(share)) for i, name, share in shares]
    widths = [round(swatch + pad * 2.4 + font.getlength(f"{n} {p}")) for _, n, p in entries]
    places: list[tuple[int, int]] = []
    x, y = pad, 0
    for width in widths:
        if x + width > canvas.width and x > pad:
            x, y = pad, y + 1
        places.append((x, y))
        x += width
    legend = Image.new("RGB", (canvas.width, pad + row * (y + 1)), _PAPER)
    pen = ImageDraw.Draw(legend)
    for (color, name, percent), (x, line) in zip(entries, places, strict=True):
        middle = pad // 2 + row * line + row // 2
        box = _rounded(swatch, swatch, max(2, swatch // 4))
        legend.paste(color, (x, middle - swatch // 2), box)
        start = x + swatch + round(pad * 0.7)
        pen.text((start, middle), name, fill=_INK, font=font, anchor="lm")
        after = start + font.getlength(name + " ")
        pen.text((after, middle), percent, fill=(150, 154, 162), font=font, anchor="lm")
    whole = Image.new("RGB", (canvas.width, canvas.height + legend.height))
    whole.paste(canvas, (0, 0))
    whole.paste(legend, (0, canvas.height))
    return whole


def draw_title(canvas: Image.Image, text: str, corner: tuple[int, int], text_px: float) -> None:
    """Write dark text into the upper left of a light area of twice the text's height."""
    place = corner[0] + round(text_px * 0.4), corner[1] + round(text_px)
    pen = ImageDraw.Draw(canvas)
    pen.text(place, text, fill=(30, 32, 36), font=_font(text_px), anchor="lm")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def _worth_text(box: Rectangle, width: float, height: float) -> bool:
    """Whether an object is large enough, beside its text, to be named."""
    wide, tall = box[2] - box[0], box[3] - box[1]
    return wide * tall >= 0.8 * width * height and max(wide, tall) >= 1.5 * height


def _free_place(
    box: Rectangle,
    size: tuple[int, int],
    canvas: tuple[int, int],
    taken: Sequence[Rectangle],
) -> tuple[int, int] | None:
    """The first spot near the object where the text covers no other text."""
    width, height = size
    x1, y1, x2, y2 = box
    middle_x, middle_y = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
    spots = (
        (x1, y1 - height),
        (x1, y1),
        (middle_x, middle_y),
        (x2 - width, y1 - height),
        (x1, y2),
        (x2 - width, y2 - height),
        (x1, y2 - height),
    )
    for x, y in spots:
        left = round(min(max(x, 0), max(canvas[0] - width, 0)))
        top = round(min(max(y, 0), max(canvas[1] - height, 0)))
        own = (left, top, left + width, top + height)
        if not any(_overlap(own, other) for other in taken):
            return left, top
    return None


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _tag_size(text: str, text_px: float) -> tuple[int, int]:
    return round(_font(text_px).getlength(text) + text_px * 0.7), round(text_px * 1.35)


def _draw_tag(canvas: Image.Image, text: str, place: tuple[int, int], color: Color) -> None:
    text_px = text_size_px((canvas.height, canvas.width))
    width, height = _tag_size(text, text_px)
    canvas.paste(color, place, _rounded(width, height, max(2, round(text_px / 5))))
    pen = ImageDraw.Draw(canvas)
    middle = place[0] + text_px * 0.35, place[1] + height / 2
    pen.text(middle, text, fill=ink_on(color), font=_font(text_px), anchor="lm")


@lru_cache(maxsize=256)
def _rounded(width: int, height: int, radius: int) -> Image.Image:
    """Opacity of a rectangle with round corners, antialiased."""
    fine = 4
    mask = Image.new("L", (width * fine, height * fine))
    pen = ImageDraw.Draw(mask)
    corners = (0, 0, width * fine - 1, height * fine - 1)
    pen.rounded_rectangle(corners, radius=radius * fine, fill=255)
    return mask.resize((width, height), Image.Resampling.BOX)


@lru_cache(maxsize=16)
def _font(text_px: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=text_px)
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow built without FreeType
        raise RuntimeError("this Pillow has no scalable font; install Pillow's own wheel")
    return font
