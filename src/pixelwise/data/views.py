"""Which part of a picture, at which size, a training step sees."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pixelwise.data.geometry import Axis, Geometry
from pixelwise.data.sample import Instances, Sample
from pixelwise.ops.rle import decode_crops
from pixelwise.spec import AugmentSpec, Task
from pixelwise.types import IGNORE, Size

_TRIES = 10  # crops drawn for a better one; then the last is taken


def draw_view(
    sample: Sample,
    content: Size,
    augment: AugmentSpec,
    *,
    task: Task,
    rng: np.random.Generator,
    crop: Size | None,
    fill: bool = False,
) -> Geometry:
    """Draw scale, crop and flips.

    The scale is uniform in its logarithm, so halving is as likely as doubling. The crop is drawn
    again, up to ten times, until it shows something worth learning from: in semantic training no
    class may cover more than `augment.max_class_frac` of the labelled pixels, in instance training
    the box of one object at least must be inside by `augment.min_visible_frac`.

    Args:
        sample:  the picture.
        content: (height, width) at scale 1.
        augment: ranges and probabilities.
        task:    which annotation the rule is about.
        rng:     where the chance comes from.
        crop:    (height, width); a smaller picture is not cropped on that axis. None takes all.
        fill:    raise the scale until the picture fills the crop.

    Returns:
        From the picture to the view; `after` is the part of the crop that the picture covers.
    """
    factor = float(np.exp(rng.uniform(*np.log(augment.scale))))
    if fill and crop is not None:
        factor = max(factor, *((side / full) for side, full in zip(crop, content, strict=True)))
    scaled = max(1, round(content[0] * factor)), max(1, round(content[1] * factor))
    window = scaled if crop is None else (min(scaled[0], crop[0]), min(scaled[1], crop[1]))
    flips = rng.random(2) < (augment.vertical_flip, augment.flip)
    mirror = Geometry.mirror(window, vertical=bool(flips[0]), horizontal=bool(flips[1]))
    resize = Geometry.resize(sample.size, scaled)
    geometry = resize
    for _ in range(_TRIES if window != scaled else 1):
        corner = _draw_corner(scaled, window, rng)
        geometry = resize.then(Geometry.window(scaled, corner, window)).then(mirror)
        if _is_worth_it(sample, geometry, augment, task):
            break
    return geometry


def force_object(sample: Sample, geometry: Geometry, rng: np.random.Generator) -> Geometry:
    """Shift a view so that it shows a random pixel of a random object.

    Args:
        sample:   has at least one object that is no crowd region.
        geometry: from the picture to a view inside of it.
        rng:      where the chance comes from.

    Returns:
        The same scale and flips; where the picture is not larger than the view, the same view.
    """
    assert sample.instances is not None
    y, x = _pixel_of_an_object(sample.instances, rng)
    return replace(
        geometry,
        y=_shift_to(geometry.y, y, geometry.before[0], geometry.after[0], rng),
        x=_shift_to(geometry.x, x, geometry.before[1], geometry.after[1], rng),
    )


def _draw_corner(scaled: Size, window: Size, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(scaled[0] - window[0] + 1)), int(
        rng.integers(scaled[1] - window[1] + 1)
    )


def _is_worth_it(sample: Sample, geometry: Geometry, augment: AugmentSpec, task: Task) -> bool:
    if task == "semantic" and sample.labels is not None:
        counts = np.bincount(geometry.labels(sample.labels).reshape(-1), minlength=IGNORE + 1)
        counts = counts[:IGNORE]
        return 0 < counts.max() <= augment.max_class_frac * counts.sum()
    if task == "instance" and sample.instances is not None:
        solid = ~sample.instances.crowd
        return not solid.any() or _shows_a_box(
            sample.instances.boxes[solid], geometry, augment.min_visible_frac
        )
    return True


def _shows_a_box(boxes: npt.NDArray[np.float32], geometry: Geometry, min_frac: float) -> bool:
    moved = geometry.boxes(boxes)
    limit = np.array([*geometry.after[::-1]] * 2)
    inside = np.clip(moved, 0, limit)
    areas, parts = ((b[:, 2:] - b[:, :2]).prod(1) for b in (moved, inside))
    return bool(((parts > 0) & (parts >= min_frac * areas)).any())


def _pixel_of_an_object(instances: Instances, rng: np.random.Generator) -> tuple[int, int]:
    """(row, column) of a random pixel of a random object."""
    some = np.diff(instances.masks.windows[:, [0, 2]], axis=1)[:, 0] > 0
    candidates = (some & ~instances.crowd).nonzero()[0]
    if not len(candidates):
        return 0, 0
    chosen = decode_crops(instances.masks.select([int(rng.choice(candidates))]))
    left, top, right, _ = chosen.windows[0].tolist()
    place = int(rng.choice(chosen.pixels.numpy().nonzero()[0]))
    return top + place // (right - left), left + place % (right - left)


def _shift_to(axis: Axis, pixel: int, length: int, count: int, rng: np.random.Generator) -> Axis:
    """An axis with another whole offset, such that it shows this pixel and no padding."""
    scaled = int(abs(axis.scale) * length)
    # In the frame of the resized picture, before a flip: first pixel of the window.
    at = int(abs(axis.scale) * (2 * pixel + 1) / 2)
    low, high = max(0, at - count + 1), min(at, scaled - count)
    first = int(rng.integers(low, max(low, high) + 1))
    offset = -first if axis.scale > 0 else first + count
    return Axis(axis.scale, Fraction(offset))
