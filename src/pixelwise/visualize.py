"""Predictions and ground truth drawn over their picture.

Fills keep to the pixels of a mask exactly; outlines are antialiased and centred on its edge. Line
width and text grow with the picture, so a thumbnail and a poster look alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from pixelwise.drawing.labels import Label, draw_labels, draw_legend, draw_title, text_size_px
from pixelwise.drawing.palette import Color, class_colors, vary
from pixelwise.ops import rle
from pixelwise.types import InstancePrediction, Prediction, RunLengths, SemanticPrediction

if TYPE_CHECKING:
    from torch import Tensor

    from pixelwise.data.sample import Sample

__all__ = ["class_colors", "draw", "draw_ground_truth", "side_by_side", "to_rgb"]

Picture = npt.NDArray[np.uint8]

_FILL = 0.42  # share of the class colour in an instance; the picture must stay visible below
_FILL_SEMANTIC = 0.55
_GAP_PX = 8
_CROWD = 20  # objects of a single class beyond which text hides more than it tells


def draw(
    image: npt.NDArray[Any],
    prediction: Prediction,
    classes: Sequence[str],
    *,
    colors: Sequence[Color] | None = None,
    with_text: bool = True,
    with_scores: bool = True,
    zoom: int = 1,
) -> Picture:
    """Draw a prediction over its picture.

    Instances: filled masks with outlines, small ones above large ones, and a label where there is
    room. Semantic: coloured regions with thin borders, and below the picture a legend of the
    classes that occur.

    Args:
        image:       [H, W] or [H, W, C], the original picture.
        prediction:  in the same pixels.
        classes:     class names in label order.
        colors:      one (red, green, blue) per class; default `class_colors`.
        with_text:   write labels, or the legend (which makes the result taller).
        with_scores: write scores next to the names.
        zoom:        whole factor by which the result is enlarged; useful for tiny pictures.

    Returns:
        [H * zoom (+ legend), W * zoom, 3] uint8, RGB.
    """
    canvas = Image.fromarray(to_rgb(image))
    if zoom > 1:
        size = canvas.width * zoom, canvas.height * zoom
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    colors = class_colors(len(classes)) if colors is None else colors
    if isinstance(prediction, InstancePrediction):
        tints = _tints(_values(prediction.labels), colors, spread=3.0 if len(classes) == 1 else 1.0)
        _paint_instances(canvas, prediction, tints, zoom)
        if with_text:
            scores = _values(prediction.scores) if with_scores else None
            draw_labels(canvas, _labels(prediction, classes, scores, zoom), tints)
        return np.asarray(canvas)
    labels = prediction.labels.cpu().numpy().astype(np.uint8)
    _paint_regions(canvas, labels, colors, zoom)
    return np.asarray(
        draw_legend(canvas, _shares(labels, classes), colors) if with_text else canvas
    )


def draw_ground_truth(
    sample: Sample,
    classes: Sequence[str],
    *,
    colors: Sequence[Color] | None = None,
    with_text: bool = True,
    zoom: int = 1,
) -> Picture:
    """Draw the annotation of a sample as `draw` draws a prediction; ignored pixels stay uncoloured.

    Args:
        sample:    with instances, else with labels; with neither, the bare picture is returned.
        classes:   class names in label order.
        colors:    one per class; default `class_colors`.
        with_text: write labels or the legend.
        zoom:      whole factor of enlargement.
    """
    truth = _as_prediction(sample)
    if truth is None:
        return to_rgb(sample.image)
    return draw(
        sample.image,
        truth,
        classes,
        colors=colors,
        with_text=with_text,
        with_scores=False,
        zoom=zoom,
    )


def side_by_side(pictures: Sequence[Picture], *, titles: Sequence[str] = ()) -> Picture:
    """Pictures in a row, top-aligned, each under its title.

    Args:
        pictures: [H, W, 3] uint8 each; heights may differ.
        titles:   one per picture, or none.

    Returns:
        [max H (+ title), sum of W + gaps, 3] uint8.
    """
    height = max(len(p) for p in pictures)
    width = sum(p.shape[1] for p in pictures) + _GAP_PX * (len(pictures) - 1)
    text_px = text_size_px(pictures[0].shape[:2])
    top = round(text_px * 2) if titles else 0
    sheet = Image.new("RGB", (width, height + top), (255, 255, 255))
    left = 0
    for index, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (left, top))
        if titles:
            draw_title(sheet, titles[index], (left, 0), text_px)
        left += picture.shape[1] + _GAP_PX
    return np.asarray(sheet)


def to_rgb(image: npt.NDArray[Any]) -> Picture:
    """Any picture as 8-bit RGB for the eye: grey is repeated, further channels are left out.

    Values of more than 8 bits are stretched from their 0.5th to their 99.5th percentile.

    Args:
        image: [H, W] or [H, W, C], any number type.

    Returns:
        [H, W, 3] uint8.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    image = image[:, :, :1] if image.shape[2] < 3 else image[:, :, :3]
    if image.dtype != np.uint8:
        low, high = np.percentile(image, (0.5, 99.5))
        image = np.clip((image - low) * (255 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _as_prediction(sample: Sample) -> Prediction | None:
    import torch

    if sample.instances is not None:
        truth = sample.instances
        return InstancePrediction(
            boxes=torch.as_tensor(truth.boxes),
            labels=torch.as_tensor(truth.labels),
            scores=torch.ones(len(truth.labels)),
            masks=truth.masks,
        )
    if sample.labels is not None:
        return SemanticPrediction(labels=torch.as_tensor(sample.labels))
    return None


def _values(tensor: Tensor) -> Any:
    """Plain numbers in (nested) lists."""
    return tensor.detach().cpu().numpy().tolist()


def _tints(labels: Sequence[int], colors: Sequence[Color], *, spread: float) -> list[Color]:
    """One colour per instance: its class's, varied by its position among its class."""
    seen: Counter[int] = Counter()
    tints: list[Color] = []
    for label in labels:
        tints.append(vary(colors[label], seen[label], spread=spread))
        seen[label] += 1
    return tints


# --- instances ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """One mask as a picture of its crop, and where the crop lies."""

    index: int
    left: int
    top: int
    mask: Image.Image
    area: int


def _paint_instances(
    canvas: Image.Image, prediction: InstancePrediction, tints: Sequence[Color], zoom: int
) -> None:
    width = line_width_px((canvas.height, canvas.width))
    windows = sorted(_windows(prediction.masks), key=lambda w: -w.area)
    for window in windows:
        mask = window.mask
        if zoom > 1:
            mask = mask.resize((mask.width * zoom, mask.height * zoom), Image.Resampling.NEAREST)
        place = window.left * zoom, window.top * zoom
        tint = tints[window.index]
        # An outline must not swallow a small object.
        own_width = min(width, max(1.0, 0.16 * zoom * window.area**0.5))
        canvas.paste(tint, place, mask.point(_fill_table(_FILL)))
        outline, margin = _outline(mask, own_width, smooth_px=0.45 * zoom)
        canvas.paste(tint, (place[0] - margin, place[1] - margin), outline)


def _windows(masks: RunLengths) -> Iterator[_Window]:
    crops = rle.decode_crops(masks)
    windows: list[list[int]] = _values(crops.windows)
    pixels = crops.pixels.numpy() * np.uint8(255)
    starts: list[int] = _values(crops.starts)
    for index, (x1, y1, x2, y2) in enumerate(windows):
        crop = pixels[starts[index] : starts[index + 1]]
        area = int(np.count_nonzero(crop))
        if area:
            mask = Image.fromarray(crop.reshape(y2 - y1, x2 - x1))
            yield _Window(index, x1, y1, mask, area)


def line_width_px(size: tuple[int, int]) -> float:
    """Width of outlines in a picture of (height, width): 2 px at 480 x 640."""
    return max(1.2, 2.0 * ((size[0] * size[1]) ** 0.5 / 554) ** 0.8)


def _outline(mask: Image.Image, width: float, *, smooth_px: float) -> tuple[Image.Image, int]:
    """Opacity of an antialiased line along the edge of a mask, and the margin added around it.

    A blurred binary mask is the normal distribution of the distance to its edge; undoing that with
    a table gives the distance, and the distance the coverage of a line.
    """
    sigma = max(0.8, width / 2, smooth_px)
    margin = int(np.ceil(width + 2 * sigma))
    wide = Image.new("L", (mask.width + 2 * margin, mask.height + 2 * margin))
    wide.paste(mask, (margin, margin))
    return wide.filter(ImageFilter.GaussianBlur(sigma)).point(_line_table(width, sigma)), margin


@lru_cache(maxsize=64)
def _line_table(width: float, sigma: float) -> list[int]:
    normal = NormalDist()
    distances = [abs(sigma * normal.inv_cdf(v / 255)) for v in range(1, 255)]
    coverage = [min(1.0, max(0.0, width / 2 + 0.5 - d)) for d in distances]
    return [0, *(round(255 * c) for c in coverage), 0]


@lru_cache(maxsize=4)
def _fill_table(opacity: float) -> list[int]:
    return [round(v * opacity) for v in range(256)]


def _labels(
    prediction: InstancePrediction,
    classes: Sequence[str],
    scores: Sequence[float] | None,
    zoom: int,
) -> list[Label]:
    """The text of each object, best first; the drawer leaves out what does not fit."""
    boxes: list[list[float]] = _values(prediction.boxes * zoom)
    labels: list[int] = _values(prediction.labels)
    names = [classes[label] for label in labels]
    if len(classes) == 1:  # its name says nothing, and in a crowd neither do the scores
        hidden = scores is None or len(names) > _CROWD
        names = [""] * len(names)
        scores = None if hidden else scores
    if scores is not None:
        names = [f"{n} {s:.2f}".strip() for n, s in zip(names, scores, strict=True)]
    texts = zip(names, boxes, strict=True)
    return [Label(text, (b[0], b[1], b[2], b[3])) for text, b in texts]


# --- semantic ----------------------------------------------------------------------------------


def _paint_regions(
    canvas: Image.Image, labels: Picture, colors: Sequence[Color], zoom: int
) -> None:
    """Colour every region, then lay one thin light line over all borders."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = np.array(colors, np.uint8)[:256]
    known = labels < len(colors)
    scale = canvas.width, canvas.height
    paint = Image.fromarray(table[labels]).resize(scale, Image.Resampling.NEAREST)
    opacity = (known * np.uint8(round(255 * _FILL_SEMANTIC))).astype(np.uint8)
    canvas.paste(paint, (0, 0), Image.fromarray(opacity).resize(scale, Image.Resampling.NEAREST))
    width = 0.5 * line_width_px((canvas.height, canvas.width))
    border = Image.new("L", canvas.size)
    for region, (left, top) in _regions(labels, known):
        size = region.width * zoom, region.height * zoom
        enlarged = region.resize(size, Image.Resampling.NEAREST)
        line, margin = _outline(enlarged, max(1.0, width), smooth_px=0.45 * zoom)
        _lighten(border, line, (left * zoom - margin, top * zoom - margin))
    _clear_frame(border, margin=max(1, round(width)))
    canvas.paste((255, 255, 255), (0, 0), border.point(_fill_table(0.6)))


def _regions(
    labels: Picture, known: npt.NDArray[np.bool_]
) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """The mask of every class that occurs, cropped, and its place."""
    for label in np.unique(labels[known]):
        inside = labels == label
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        top, left = int(rows[0]), int(columns[0])
        crop = inside[top : rows[-1] + 1, left : columns[-1] + 1]
        yield Image.fromarray((crop * np.uint8(255)).astype(np.uint8)), (left, top)


def _lighten(target: Image.Image, line: Image.Image, place: tuple[int, int]) -> None:
    """Keep the higher opacity of both where the line lies over the target."""
    from PIL import ImageChops

    left, top = max(0, place[0]), max(0, place[1])
    right = min(target.width, place[0] + line.width)
    bottom = min(target.height, place[1] + line.height)
    part = line.crop((left - place[0], top - place[1], right - place[0], bottom - place[1]))
    target.paste(ImageChops.lighter(target.crop((left, top, right, bottom)), part), (left, top))


def _clear_frame(border: Image.Image, margin: int) -> None:
    """The picture's own frame is no border between regions."""
    pen = ImageDraw.Draw(border)
    pen.rectangle((0, 0, border.width - 1, border.height - 1), outline=0, width=margin)


def _shares(labels: Picture, classes: Sequence[str]) -> list[tuple[int, str, float]]:
    """(label, name, share of the picture) of the classes that occur, largest first."""
    counts = np.bincount(labels.ravel(), minlength=256)[: len(classes)]
    order = np.argsort(-counts, kind="stable")
    return [
        (int(i), classes[int(i)], float(counts[i]) / labels.size) for i in order if counts[i] > 0
    ]
