"""Random inputs, always drawn on the CPU, so that they are the same for every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.gpu.device import leaves


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """float64, normally distributed."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=chance, dtype=torch.float64)


def drawn_boxes(count: int, *, seed: int = 0, reach: float = 96.0) -> Tensor:
    """[count, 4] float32 xyxy, with sides of a tenth to a half of `reach`; some leave the frame."""
    chance = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, generator=chance)
    corner = corner * 0.7 * reach - 0.05 * reach
    return torch.cat([corner, corner + (0.1 + 0.4 * side) * reach], dim=1)


def drawn_rois(count: int, *, seed: int = 0, reach: float = 96.0) -> Tensor:
    """[count, 5] regions in two images."""
    image = (torch.arange(count) % 2).float()[:, None]
    return torch.cat([image, drawn_boxes(count, seed=seed, reach=reach)], dim=1)


def disks(count: int) -> Tensor:
    """[count, 64, 96] uint8, disks of different sizes, some cut by the frame."""
    y, x = torch.arange(64)[:, None], torch.arange(96)
    number = torch.arange(count)[:, None, None]
    away = (y - number * 17 % 64) ** 2 + (x - number * 29 % 96) ** 2
    return (away <= (4 + number % 9 * 2) ** 2).to(torch.uint8)


def with_gradients(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """What a function returns, and the gradients of a weighted sum of it for its inputs."""
    own = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*own)
    values = [v for v in leaves(out).values() if v.requires_grad]
    sums = [(v * drawn(*v.shape, seed=9).to(v.device, v.dtype)).sum() for v in values]
    return out, torch.autograd.grad(torch.stack(sums).sum(), own)
