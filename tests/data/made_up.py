"""Small made-up data sets for the tests of this folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = Path(os.environ.get("PIXELWISE_DATA", "../shared/data"))
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"real data not found at {REAL}; set PIXELWISE_DATA"
)


def picture(seed, size=(24, 32)):
    """A smooth picture that differs for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return small.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def square(x, y, side=8):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def annotation(number, image, category, points, **more):
    x, y = points[0::2], points[1::2]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": [points],
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        **more,
    }


def coco_content(images=3, size=(24, 32)):
    return {
        "images": [
            {"id": 10 + i, "file_name": f"{i}.png", "height": size[0], "width": size[1]}
            for i in range(images)
        ],
        "annotations": [
            annotation(1, 10, 7, square(2, 3)),
            annotation(2, 10, 3, square(12, 5, 10)),
            annotation(3, 11, 7, square(0, 0, 4)),
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def write_coco(folder, content=None, name="instances_train.json", first_seed=0):
    """A COCO data set with three pictures; the third has no objects."""
    content = content or coco_content()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(content["images"]):
        path = folder / "images" / image["file_name"]
        if not path.exists():
            picture(first_seed + i, (image["height"], image["width"])).save(path)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def write_index(path, labels, colors=((10, 20, 30), (200, 0, 0), (0, 200, 0))):
    """A palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(labels, np.uint8))
    # All 256 entries: with fewer, Pillow stores fewer bits per pixel.
    table = [*colors, *[(0, 0, 0)] * (256 - len(colors))]
    image.putpalette([c for color in table for c in color])
    image.save(path)


def write_picture(path, seed=0, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path)


def label_map(size=(24, 32), void=255):
    labels = np.zeros(size, np.uint8)
    labels[4:12, 6:20] = 1
    labels[14:20, 2:9] = 2
    labels[0, :5] = void
    return labels


def write_masks(folder, split="train", names=("a", "b"), labels=None):
    """images/SPLIT/x.png with labels/SPLIT/x.png."""
    for i, name in enumerate(names):
        seed = i + sum(map(ord, split + name))
        write_picture(folder / "images" / split / f"{name}.png", seed)
        write_index(
            folder / "labels" / split / f"{name}.png", label_map() if labels is None else labels
        )
    return folder


def write_yaml(folder, text):
    path = folder / "data.yaml"
    path.write_text(text)
    return path
