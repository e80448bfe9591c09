"""Changes of a picture's colours and sharpness that leave everything where it is."""

from __future__ import annotations

from math import ceil, cos, pi, sin

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

_SPREAD = 0.5  # brightness, contrast and saturation factors lie within 1 ± this at strength 1
_HUE_TURN = 0.1  # the largest hue rotation at strength 1, in turns (the field's usual 36 degrees)
_SIGMA_PX = (0.3, 1.5)
_LUMA = (0.299, 0.587, 0.114)  # of BT.601, as Pillow and torchvision weigh grey
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def jitter_color(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue by chance.

    All four are linear in the colours (the hue is turned about the grey axis), so they are one
    3 x 3 matrix and an offset: a single pass where torchvision's chain, for its hue in HSV, takes
    thirty times as long.

    Args:
        image:    [C, H, W] float32, 0..255, RGB. One channel has brightness and contrast only;
            other channel counts have no colours and come back unchanged.
        strength: 0 (nothing) to 1 (factors 0.5 to 1.5, hue up to 36 degrees).
        rng:      where the chance comes from.

    Returns:
        [C, H, W] float32, 0..255.
    """
    brightness, contrast, saturation = (1 + strength * rng.uniform(-_SPREAD, _SPREAD, 3)).tolist()
    turn = strength * rng.uniform(-_HUE_TURN, _HUE_TURN)
    channels = image.shape[0]
    if strength <= 0 or channels not in (1, 3):
        return image
    if channels == 1:
        matrix, luma = torch.full((1, 1), brightness * contrast), torch.ones(1)
    else:
        matrix, luma = color_matrix(brightness, contrast, saturation, turn), torch.tensor(_LUMA)
    flat = image.reshape(channels, -1)
    # Contrast is about the picture's mean grey, which saturation and hue leave as it is.
    grey = brightness * float(luma @ flat.mean(1))
    offset = torch.full((channels, 1), (1 - contrast) * grey)
    return torch.addmm(offset, matrix.float(), flat).clamp_(0, 255).reshape(image.shape)


def color_matrix(brightness: float, contrast: float, saturation: float, turn: float) -> Tensor:
    """The matrix of a change of colours, without the offset that contrast needs.

    Args:
        brightness: factor.
        contrast:   factor.
        saturation: factor; 0 is grey.
        turn:       hue rotation in turns.

    Returns:
        [3, 3] float64, RGB to RGB.
    """
    to_yiq = np.array(_TO_YIQ)
    c, s = saturation * cos(2 * pi * turn), saturation * sin(2 * pi * turn)
    rotate = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return torch.from_numpy(brightness * contrast * (np.linalg.inv(to_yiq) @ rotate @ to_yiq))


def blur(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur a picture by a Gaussian of 0.3 to 1.5 pixels.

    Args:
        image: [C, H, W] float32.
        rng:   where the chance comes from.

    Returns:
        [C, H, W] float32.
    """
    sigma = float(rng.uniform(*_SIGMA_PX))
    # The kernel's half width must stay below the picture's sides, for its mirrored border.
    sides = [min(2 * ceil(2.5 * sigma) + 1, 2 * side - 1) for side in image.shape[-1:-3:-1]]
    return tv.gaussian_blur(image, sides, [sigma, sigma])
