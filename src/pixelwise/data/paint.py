"""From objects to one label per pixel, and from labels to objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pixelwise.data.readers.pixels import encode_objects, make_instances
from pixelwise.data.sample import Instances
from pixelwise.ops import rle
from pixelwise.ops.components import connected_components
from pixelwise.types import IGNORE, IntArray


def paint_instances(instances: Instances, *, fill: int = IGNORE) -> npt.NDArray[np.uint8]:
    """One label per pixel from objects that may overlap.

    Crowd regions lie at the bottom; among the others the smaller object is on top, since a large
    one drawn over it would hide it while the reverse leaves both visible. Equal areas keep the
    order of the file, later on top.

    Args:
        instances: the objects of one picture, labels 0..K-1.
        fill:      label of pixels without an object.

    Returns:
        [H, W] uint8.
    """
    areas = rle.areas(instances.masks)
    order = np.lexsort((np.arange(len(instances)), -areas, ~instances.crowd))
    painted = rle.paint(instances.masks.select(order), instances.labels[order], fill=fill)
    return painted.astype(np.uint8)


def split_components(labels: npt.NDArray[np.uint8], things: tuple[int, ...]) -> Instances:
    """Objects as the connected pieces of the classes in `things`, in reading order per class.

    Args:
        labels: [H, W] uint8.
        things: classes to split.

    Returns:
        The objects; touching objects of one class come as one.
    """
    objects = np.zeros(labels.shape, np.int32)
    classes: list[IntArray] = []
    count = 0
    for label in things:
        pieces = connected_components(labels == label)
        found = int(pieces.max(initial=0))
        objects[pieces > 0] = pieces[pieces > 0] + count
        classes.append(np.full(found, label, np.int64))
        count += found
    masks = encode_objects(objects, range(1, count + 1))
    return make_instances(masks, np.concatenate([np.zeros(0, np.int64), *classes]))
