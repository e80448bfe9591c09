"""U-Net's target: objects parted by background, and a weight on what lies between them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pixelwise.data.geometry import Labels
from pixelwise.data.scene import Scene, mask_views
from pixelwise.ops.border_weights import border_weights, separate_touching
from pixelwise.types import IGNORE, InstanceTarget

Numbers = npt.NDArray[np.int32]


def weigh_borders(
    scene: Scene, *, peak: float, sigma_px: float, background: int | None
) -> tuple[Labels, npt.NDArray[np.float32]]:
    """Labels and pixel weights that make a network keep objects of one class apart.

    Args:
        scene:      with labels and objects; crowd regions count for nothing.
        peak:       w0, see `border_weights`.
        sigma_px:   sigma.
        background: label that touching objects are parted with; None leaves labels as they are.

    Returns:
        labels:  [H, W]; pixels where two objects touch have become background.
        weights: [H, W] 1 + the weight between objects. A class's weight multiplies the sum.

    Source: U-Net (arXiv:1505.04597), section 3 and eq. 2.
    Differs: eq. 2 adds the class weight instead; without class weights both are the same.
    """
    assert scene.labels is not None
    assert scene.objects is not None
    numbers = number_objects(scene.objects, scene.size)
    parted = separate_touching(numbers)
    labels = scene.labels
    if background is not None:
        cleared = (parted != numbers) & (labels != IGNORE)
        labels = np.where(cleared, np.uint8(background), labels)
    return labels, 1 + border_weights(parted, peak=peak, sigma_px=sigma_px)


def number_objects(objects: InstanceTarget, size: tuple[int, int]) -> Numbers:
    """A map of which object is where: 0 nowhere, else its position + 1, the smaller on top."""
    numbers = np.zeros(size, np.int32)
    views = mask_views(objects)
    areas = [np.count_nonzero(mask) for _, mask in views]
    solid = ~objects.crowd.numpy()
    for i in np.argsort([-area for area in areas], kind="stable").tolist():
        (left, top, right, bottom), mask = views[i]
        if solid[i]:
            numbers[top:bottom, left:right][mask != 0] = i + 1
    return numbers
