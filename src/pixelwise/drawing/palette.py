"""Colours of classes and of instances: fixed, far apart for the eye, the same in every picture.

Distances are taken in OKLab, where equal steps look equally large.
Source: B. Ottosson, "A perceptual color space for image processing", 2020.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Color = tuple[int, int, int]
FloatArray = npt.NDArray[np.float64]

# The first classes of a data set are seen most: these are picked by eye, clear on photographs and
# on dark microscopy alike, and told apart with the common kinds of colour blindness.
_FIRST: tuple[Color, ...] = (
    (255, 89, 94),
    (46, 160, 255),
    (255, 190, 11),
    (18, 191, 140),
    (173, 106, 255),
    (255, 133, 27),
    (0, 214, 230),
    (240, 80, 190),
    (150, 205, 40),
    (150, 110, 80),
)
_LINEAR_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def class_colors(count: int) -> list[Color]:
    """The fixed colours of classes 0..count-1.

    Colour i never depends on `count`, so a class looks the same in every picture of a model. After
    the first ten each next colour is the candidate farthest from all earlier ones.

    Args:
        count: number of classes; after 255 the colours repeat.

    Returns:
        `count` (red, green, blue) triples, 0..255.
    """
    palette = _palette()
    return [palette[i % len(palette)] for i in range(count)]


def vary(color: Color, index: int, *, spread: float = 1.0) -> Color:
    """A neighbour of a class colour, for the index-th instance of that class.

    Hue and lightness walk by the golden ratio, so consecutive instances differ most.

    Args:
        color:  the class colour.
        index:  position of the instance among those of its class; 0 keeps the colour.
        spread: 1 stays recognisably the class colour; 3 covers most of the colour circle.
    """
    if index == 0:
        return color
    lightness, a, b = to_oklab(np.array([color], np.float64))[0]
    chroma, hue = np.hypot(a, b), np.arctan2(b, a)
    hue += (_walk(index, 0.6180339887) - 0.5) * 0.9 * spread
    lightness = np.clip(lightness + (_walk(index, 0.7548776662) - 0.5) * 0.16, 0.5, 0.9)
    lab = np.array([[lightness, chroma * np.cos(hue), chroma * np.sin(hue)]])
    red, green, blue = from_oklab(lab)[0].round().astype(int).tolist()
    return red, green, blue


def ink_on(color: Color) -> Color:
    """Black or white, whichever reads better on this colour (relative luminance of WCAG 2)."""
    luminance = float(_to_linear(np.array([color], np.float64))[0] @ (0.2126, 0.7152, 0.0722))
    # The contrast ratios (L + .05) / .05 and 1.05 / (L + .05) are equal at L = 0.179. Large, bold
    # white text on mid tones looks better than the ratio says, hence a little above.
    return (20, 20, 20) if luminance > 0.22 else (255, 255, 255)


def to_oklab(rgb: FloatArray) -> FloatArray:
    """From sRGB to OKLab.

    Args:
        rgb: [N, 3], 0..255.

    Returns:
        lab: [N, 3], lightness 0..1 and the two colour axes, about -0.4..0.4.
    """
    return np.cbrt(_to_linear(rgb) @ _LINEAR_TO_LMS.T) @ _LMS_TO_LAB.T


def from_oklab(lab: FloatArray) -> FloatArray:
    """From OKLab to sRGB, [N, 3] 0..255, clipped to what a screen shows."""
    lms = (lab @ np.linalg.inv(_LMS_TO_LAB).T) ** 3
    linear = np.clip(lms @ np.linalg.inv(_LINEAR_TO_LMS).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def _to_linear(rgb: FloatArray) -> FloatArray:
    share = rgb / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def _walk(index: int, step: float) -> float:
    return (0.5 + index * step) % 1.0


@lru_cache(maxsize=1)
def _palette() -> tuple[Color, ...]:
    """255 colours: the hand-picked ones, then farthest points of a grid of vivid colours."""
    levels = np.arange(0, 256, 17, dtype=np.float64)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = to_oklab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    # Neither dull, nor dark, nor as glaring as the corners of the colour cube.
    usable = (lab[:, 0] > 0.48) & (lab[:, 0] < 0.9) & (chroma > 0.06) & (chroma < 0.23)
    grid, lab = grid[usable], lab[usable]
    chosen: list[Color] = list(_FIRST)
    nearest = np.full(len(grid), np.inf)
    for color in to_oklab(np.array(_FIRST, np.float64)):
        nearest = np.minimum(nearest, ((lab - color) ** 2).sum(1))
    while len(chosen) < 255:
        best = int(nearest.argmax())
        red, green, blue = grid[best].astype(int).tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, ((lab - lab[best]) ** 2).sum(1))
    return tuple(chosen)
