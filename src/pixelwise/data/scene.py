"""A picture and its annotation in one frame, before its colours become a network's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelwise.data.geometry import Geometry, Labels
from pixelwise.data.sample import Instances, Sample
from pixelwise.errors import DataError
from pixelwise.spec import Task
from pixelwise.types import InstanceTarget, IntArray, MaskCrops, Size


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What a training picture is while it is put together.

    Args:
        image:   [C, H, W] uint8.
        labels:  [H, W] uint8, 0..K-1 or 255, where wanted and known.
        objects: boxes and masks in this frame, where wanted and known.
    """

    image: Tensor
    labels: Labels | None = None
    objects: InstanceTarget | None = None

    @property
    def size(self) -> Size:
        """(height, width)."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])


def place(
    sample: Sample,
    geometry: Geometry,
    *,
    channels: int,
    antialias: bool = True,
    min_visible_frac: float = 0.0,
    task: Task | None = None,
) -> Scene:
    """Move a sample and everything annotated on it.

    Args:
        sample:    the annotated picture.
        geometry:  where it goes.
        channels:  the picture is brought to this number.
        antialias: smooth before shrinking.
        min_visible_frac: as for `place_objects`.
        task:      move only this task's annotation; None moves both.
    """
    objects = labels = None
    if sample.instances is not None and task != "semantic":
        objects = place_objects(sample.instances, geometry, min_visible_frac=min_visible_frac)
    if sample.labels is not None and task != "instance":
        labels = geometry.labels(sample.labels)
    return Scene(
        image=geometry.image(to_tensor(sample.image, channels), antialias=antialias),
        labels=labels,
        objects=objects,
    )


def place_objects(
    instances: Instances, geometry: Geometry, *, min_visible_frac: float = 0.0
) -> InstanceTarget:
    """Move objects; boxes become those of the moved masks, and what is out of sight is left out.

    Args:
        instances: N objects of the picture.
        geometry:  where it goes.
        min_visible_frac: an object of which a smaller share is inside is left out, crowd regions
            excepted. Where that leaves no object though parts of some are inside, the one with the
            largest share stays: a picture filled by a part of one object is not empty.

    Returns:
        The objects that remain, in order.
    """
    masks, visible = geometry.masks(instances.masks)
    seen = (masks.areas_of_windows > 0).numpy()
    keep = seen & (instances.crowd | (visible >= min_visible_frac))
    candidates = np.where(seen & ~instances.crowd, visible, -1.0)
    if not (keep & ~instances.crowd).any() and candidates.max(initial=-1.0) >= 0:
        keep[int(candidates.argmax())] = True
    return select(
        InstanceTarget(
            boxes=masks.windows.float(),  # the windows are tight
            labels=torch.from_numpy(instances.labels),
            masks=masks,
            crowd=torch.from_numpy(instances.crowd),
        ),
        keep,
    )


def select(objects: InstanceTarget, keep: npt.NDArray[np.bool_]) -> InstanceTarget:
    """The objects where True, in order."""
    chosen = torch.from_numpy(keep)
    masks = objects.masks
    pixels = masks.pixels
    if not keep.all():
        pixels = pixels[torch.repeat_interleave(chosen, masks.areas_of_windows)]
    return InstanceTarget(
        boxes=objects.boxes[chosen],
        labels=objects.labels[chosen],
        masks=MaskCrops(masks.size, masks.windows[chosen], pixels),
        crowd=objects.crowd[chosen],
    )


def join(groups: Sequence[tuple[InstanceTarget, tuple[int, int]]], size: Size) -> InstanceTarget:
    """All objects of several frames in one that contains them.

    Args:
        groups: objects, and the (top, left) of their frame in the common one.
        size:   (height, width) of the common frame.
    """
    shifts = [torch.tensor([left, top, left, top]) for _, (top, left) in groups]
    objects = [group for group, _ in groups]
    return InstanceTarget(
        boxes=torch.cat([o.boxes + s for o, s in zip(objects, shifts, strict=True)]),
        labels=torch.cat([o.labels for o in objects]),
        masks=MaskCrops(
            size,
            torch.cat([o.masks.windows + s for o, s in zip(objects, shifts, strict=True)]),
            torch.cat([o.masks.pixels for o in objects]),
        ),
        crowd=torch.cat([o.crowd for o in objects]),
    )


def mask_views(objects: InstanceTarget) -> list[tuple[list[int], Labels]]:
    """Window and pixels [h, w] of every mask; the pixels share memory with the objects."""
    masks = objects.masks
    at, pixels = masks.starts.tolist(), masks.pixels.numpy()
    return [
        (window, pixels[at[i] : at[i + 1]].reshape(window[3] - window[1], window[2] - window[0]))
        for i, window in enumerate(masks.windows.tolist())
    ]


def from_arrays(
    size: Size, corners_xy: Sequence[tuple[int, int]], pixels: Sequence[Labels]
) -> MaskCrops:
    """Masks from the top left corner and the pixels [h, w] of each window."""
    windows: IntArray = np.zeros((len(pixels), 4), np.int64)
    for i, ((left, top), mask) in enumerate(zip(corners_xy, pixels, strict=True)):
        if mask.size:
            windows[i] = left, top, left + mask.shape[1], top + mask.shape[0]
    flat = np.concatenate([np.zeros(0, np.uint8), *(mask.reshape(-1) for mask in pixels)])
    return MaskCrops(size, torch.from_numpy(windows), torch.from_numpy(flat))


def to_tensor(image: npt.NDArray[np.uint8], channels: int) -> Tensor:
    """A picture as a tensor with the number of channels a network wants.

    Grey is repeated, an alpha channel is dropped, colours become grey by BT.601; nothing else is
    guessed.

    Args:
        image:    [H, W, C] or [H, W] uint8.
        channels: wanted.

    Returns:
        [channels, H, W] uint8, laid out channels last where nothing had to be changed.

    Raises:
        DataError: the picture has another number of channels.
    """
    if image.ndim == 2:
        image = image[..., None]
    tensor = torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)
    have = tensor.shape[0]
    if have == channels:
        return tensor
    if have == 1:
        return tensor.expand(channels, -1, -1)
    if have == 4 and channels == 3:
        return tensor[:3]
    if have == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        return (tensor * weights).sum(0, keepdim=True).add_(0.5).to(torch.uint8)
    raise DataError(
        f"the picture has {have} channels, the model takes {channels}: read it with "
        f"channels={channels}, or build the model with in_channels={have}"
    )
