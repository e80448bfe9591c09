"""A small data set drawn on the spot: discs, squares and triangles, as COCO json with polygons.

For the demo and for trying out a recipe without any data at hand. Objects may touch but hardly
overlap, some pictures are empty, and the same seed always draws the same pictures.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pixelwise.types import Size

CLASSES = ("disc", "square", "triangle")

Points = npt.NDArray[np.float64]  # [P, 2] (x, y) pixels

_CORNERS = {"disc": 40, "square": 4, "triangle": 3}
_SUPERSAMPLE = 4  # outlines are drawn this much larger and shrunk, so that edges are smooth
_NOISE = 9.0  # standard deviation of the grain, in grey levels


def write_shapes(
    folder: Path, *, train: int = 48, val: int = 12, size: Size = (128, 160), seed: int = 0
) -> Path:
    """Draw a data set with two splits and write its `data.yaml`.

    Args:
        folder: where to write; images/{train,val}/*.png, annotations/{train,val}.json, data.yaml.
        train:  number of training pictures.
        val:    number of validation pictures.
        size:   (height, width) of every picture, pixels.
        seed:   of the drawing.

    Returns:
        Path of the data.yaml.
    """
    for offset, (split, count) in enumerate((("train", train), ("val", val))):
        rng = np.random.default_rng([seed, offset])
        _write_split(folder, split, count, size=size, rng=rng)
    lines = [
        "# Drawn by pixelwise: discs, squares and triangles.",
        "path: .",
        "format: coco",
        "train: {images: images/train, annotations: annotations/train.json}",
        "val: {images: images/val, annotations: annotations/val.json}",
        f"names: [{', '.join(CLASSES)}]",
    ]
    target = folder / "data.yaml"
    target.write_text("\n".join(lines) + "\n")
    return target


def _write_split(
    folder: Path, split: str, count: int, *, size: Size, rng: np.random.Generator
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, objects = draw_picture(size, rng)
        name = f"{number:04d}.png"
        picture.save(folder / "images" / split / name)
        images.append({"id": number + 1, "file_name": name, "height": size[0], "width": size[1]})
        for label, outline in objects:
            annotations.append(_annotation(len(annotations) + 1, number + 1, label, outline))
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(document))


def draw_picture(
    size: Size, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, Points]]]:
    """One picture with 0 to 6 objects.

    Returns:
        The RGB picture, and per object its label and outline [P, 2] in (x, y) pixels.
    """
    height, width = size
    ground = rng.integers(70, 186, 3)
    canvas = Image.new(
        "RGB", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), tuple(int(v) for v in ground)
    )
    pen = ImageDraw.Draw(canvas)
    objects: list[tuple[int, Points]] = []
    for _ in range(int(rng.integers(0, 7))):
        label = int(rng.integers(len(CLASSES)))
        outline = _outline(label, size, rng)
        if any(_hides(outline, other) for _, other in objects):
            continue
        color = tuple(int(v) for v in (ground + rng.choice([-1, 1]) * rng.integers(50, 110, 3)))
        # Pillow's integer coordinates are pixel centres, ours are pixel corners.
        pen.polygon([tuple(p) for p in outline * _SUPERSAMPLE - 0.5], fill=_clip(color))
        objects.append((label, outline))
    small = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32)
    noisy = small + rng.normal(0, _NOISE, small.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), objects


def _outline(label: int, size: Size, rng: np.random.Generator) -> Points:
    """[P, 2] corners (x, y) of one shape that lies inside the picture."""
    height, width = size
    radius = rng.uniform(0.1, 0.2) * min(size)
    centre = rng.uniform((radius, radius), (width - radius, height - radius))
    corners = _CORNERS[CLASSES[label]]
    angles = rng.uniform(0, math.tau) + np.arange(corners) * math.tau / corners
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _hides(outline: Points, other: Points) -> bool:
    """Whether the boxes of two shapes overlap by more than a corner."""
    (x1, y1), (x2, y2) = outline.min(0), outline.max(0)
    (u1, v1), (u2, v2) = other.min(0), other.max(0)
    width, height = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
    smaller = min((x2 - x1) * (y2 - y1), (u2 - u1) * (v2 - v1))
    return bool(width > 0 and height > 0 and width * height > 0.1 * smaller)


def _clip(color: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(255, max(0, v)) for v in color)


def _annotation(number: int, image: int, label: int, outline: Points) -> dict[str, Any]:
    x1, y1 = outline.min(0)
    x2, y2 = outline.max(0)
    x, y = outline.T
    area = 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "segmentation": [[round(float(v), 2) for v in outline.reshape(-1)]],
        "bbox": [round(float(v), 2) for v in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(area, 2),
        "iscrowd": 0,
    }
