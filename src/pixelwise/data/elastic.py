"""Elastic deformation: a picture and its annotation on a sheet of rubber."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.data.geometry import Labels, trim
from pixelwise.data.scene import Scene, from_arrays, mask_views, select
from pixelwise.types import InstanceTarget, IntArray

_GRID = 3  # control points per axis


def deform(scene: Scene, sigma_px: float, rng: np.random.Generator) -> Scene:
    """Move every pixel by a smooth random field, the same for picture, labels and masks.

    Displacements are drawn on a grid of 3 x 3 points from a normal distribution and interpolated
    bicubically between them. What comes from beyond the border is mirrored. Labels and masks take
    the nearest pixel; objects that vanish are left out.

    Args:
        scene:    the picture.
        sigma_px: standard deviation of the displacement along each axis, 10 in the paper.
        rng:      where the chance comes from.

    Source: U-Net (arXiv:1505.04597), section 3.1.
    """
    y, x = sources(scene.size, sigma_px, rng)
    rows, columns = _nearest(y, scene.size[0]), _nearest(x, scene.size[1])
    return replace(
        scene,
        image=_sample(scene.image, y, x),
        labels=None if scene.labels is None else scene.labels[rows, columns],
        objects=None if scene.objects is None else _move(scene.objects, rows, columns),
    )


def sources(
    size: tuple[int, int], sigma_px: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from: rows and columns [H, W] of pixel centres, counted from 0."""
    drawn = torch.from_numpy(rng.normal(0.0, sigma_px, (1, 2, _GRID, _GRID)))
    field = F.interpolate(drawn, size=size, mode="bicubic", align_corners=True)[0]  # [2, H, W]
    y, x = (torch.arange(n, dtype=torch.float64) for n in size)
    return field[0] + y[:, None], field[1] + x


def _sample(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """[C, H, W] uint8 at these positions, bilinear."""
    height, width = image.shape[1:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1).float()
    warped = F.grid_sample(
        image[None].float(), grid[None], padding_mode="reflection", align_corners=False
    )
    return warped[0].add_(0.5).clamp_(0, 255).to(torch.uint8)


def _nearest(position: Tensor, length: int) -> IntArray:
    """The pixel under each position, mirrored at the border as `grid_sample` does."""
    index = np.floor(position.numpy() + 0.5).astype(np.int64) % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


def _move(objects: InstanceTarget, rows: IntArray, columns: IntArray) -> InstanceTarget:
    """Masks whose pixels are looked up at these rows and columns [H, W]."""
    height, width = rows.shape
    # How far a pixel comes from at most: an object shows up no further from its window.
    down = int(np.abs(rows - np.arange(height)[:, None]).max())
    along = int(np.abs(columns - np.arange(width)).max())
    corners: list[tuple[int, int]] = []
    pixels: list[Labels] = []
    for (left, top, right, bottom), mask in mask_views(objects):
        first = max(0, top - down), max(0, left - along)
        near = slice(first[0], bottom + down), slice(first[1], right + along)
        y, x = rows[near], columns[near]
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        moved = np.zeros(y.shape, np.uint8)
        moved[inside] = mask[y[inside] - top, x[inside] - left]
        tight, (above, ahead) = trim(moved)
        corners.append((first[1] + ahead, first[0] + above))
        pixels.append(tight)
    masks = from_arrays(objects.masks.size, corners, pixels)
    warped = replace(objects, boxes=masks.windows.float(), masks=masks)
    return select(warped, np.array([mask.size > 0 for mask in pixels], bool))
