"""Training pictures made of several: objects pasted from another picture, four pictures in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from pixelwise.data.geometry import Labels, trim
from pixelwise.data.scene import Scene, from_arrays, join, mask_views, select
from pixelwise.types import IGNORE, InstanceTarget, Size

_MOSAIC_CENTRE = (0.3, 0.7)  # range of the meeting point, as a share of the side
_PASTED_FRAC = 0.5  # probability of each object to be pasted


def copy_paste(
    scene: Scene, other: Scene, rng: np.random.Generator, *, min_visible_frac: float
) -> Scene:
    """Paste a random subset of another picture's objects, at least one, over a picture.

    What they cover is taken from the masks below; an object of which too little remains is left
    out. Crowd regions are not pasted. The outline is not blended: the paper found no gain.

    Args:
        scene: the picture below.
        other: where the objects come from, in the same frame (sizes may differ; what lies outside
            of the scene is cut).
        rng:   where the chance comes from.
        min_visible_frac: least share of an object's pixels that must remain uncovered.

    Returns:
        The picture with its own objects first; the same one where there is nothing to paste.

    Source:  Simple Copy-Paste (arXiv:2012.07177), section 3.
    """
    if scene.objects is None or other.objects is None:
        return scene
    pasted = select(other.objects, _choose(other.objects, rng))
    pasted = _clip(pasted, scene.size)
    if not len(pasted):
        return scene
    covered = np.zeros(scene.size, bool)
    for (left, top, right, bottom), mask in mask_views(pasted):
        covered[top:bottom, left:right] |= mask != 0
    image = scene.image.clone()
    height, width = (min(a, b) for a, b in zip(scene.size, other.size, strict=True))
    over = torch.from_numpy(covered[:height, :width])
    image[:, :height, :width] = torch.where(
        over, other.image[:, :height, :width], image[:, :height, :width]
    )
    below = _subtract(scene.objects, covered, min_visible_frac)
    return replace(
        scene, image=image, objects=join([(below, (0, 0)), (pasted, (0, 0))], scene.size)
    )


def mosaic(draw: Callable[[int, Size], Scene], size: Size, rng: np.random.Generator) -> Scene:
    """Join four pictures at a random point.

    Args:
        draw: called with a number 0..3 and (height, width); a picture of exactly that size.
        size: (height, width) of the result.
        rng:  where the chance comes from.

    Returns:
        Labels where all four have some, objects where all four have some.

    Source:  YOLOv4 (arXiv:2004.10934), section 3.3.
    """
    middle, centre = (min(max(1, round(s * rng.uniform(*_MOSAIC_CENTRE))), s - 1) for s in size)
    corners = [(0, 0), (0, centre), (middle, 0), (middle, centre)]
    ends = [(middle, centre), (middle, size[1]), (size[0], centre), size]
    scenes = [
        draw(k, (bottom - top, right - left))
        for k, ((top, left), (bottom, right)) in enumerate(zip(corners, ends, strict=True))
    ]
    image = scenes[0].image.new_zeros((scenes[0].image.shape[0], *size))
    labels = np.full(size, IGNORE, np.uint8)
    groups: list[tuple[InstanceTarget, tuple[int, int]]] = []
    for scene, (top, left), (bottom, right) in zip(scenes, corners, ends, strict=True):
        image[:, top:bottom, left:right] = scene.image
        if scene.labels is not None:
            labels[top:bottom, left:right] = scene.labels
        if scene.objects is not None:
            groups.append((scene.objects, (top, left)))
    return Scene(
        image=image,
        labels=labels if all(s.labels is not None for s in scenes) else None,
        objects=join(groups, size) if len(groups) == len(scenes) else None,
    )


def _choose(objects: InstanceTarget, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A random subset without crowd regions, empty only where there is nothing else."""
    solid = ~objects.crowd.numpy()
    chosen = solid & (rng.random(len(solid)) < _PASTED_FRAC)
    if solid.any() and not chosen.any():
        chosen[rng.choice(solid.nonzero()[0])] = True
    return chosen


def _clip(objects: InstanceTarget, size: Size) -> InstanceTarget:
    """The parts of objects inside a frame of this size with the same corner."""
    return _rebuild(
        objects,
        [
            mask[: max(0, size[0] - top), : max(0, size[1] - left)]
            for (left, top, _, _), mask in mask_views(objects)
        ],
        size,
        min_visible_frac=0.0,
    )


def _subtract(
    objects: InstanceTarget,
    covered: npt.NDArray[np.bool_],
    min_visible_frac: float,
) -> InstanceTarget:
    """Objects without the pixels that are covered."""
    remaining = [
        mask * ~covered[top:bottom, left:right]
        for (left, top, right, bottom), mask in mask_views(objects)
    ]
    return _rebuild(objects, remaining, objects.size, min_visible_frac=min_visible_frac)


def _rebuild(
    objects: InstanceTarget, pixels: list[Labels], size: Size, *, min_visible_frac: float
) -> InstanceTarget:
    """Objects with new pixels in their windows; tight again, and without the hidden ones."""
    views = mask_views(objects)
    corners: list[tuple[int, int]] = []
    trimmed: list[Labels] = []
    keep = np.zeros(len(views), bool)
    for i, (((left, top, _, _), before), mask) in enumerate(zip(views, pixels, strict=True)):
        tight, (down, along) = trim(mask)
        corners.append((left + along, top + down))
        trimmed.append(tight)
        share = np.count_nonzero(tight) / max(1, np.count_nonzero(before))
        keep[i] = tight.size > 0 and (share >= min_visible_frac or bool(objects.crowd[i]))
    masks = from_arrays(size, corners, trimmed)
    return select(replace(objects, boxes=masks.windows.float(), masks=masks), keep)
