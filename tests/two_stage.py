"""Small two-stage detectors and hand-made pictures for them."""

from typing import Any

import torch
from torch import Tensor, nn

from pixelwise.types import InstanceTarget, MaskCrops

# Of the systems on a pyramid: Mask R-CNN, PANet, Mask Scoring R-CNN.
SMALL: dict[str, Any] = {
    "num_classes": 3,
    "backbone": "resnet18",
    "backbone_norm": "batch",
    "channels": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "pre_nms": (200, 100),
    "proposals": (100, 40),
    "regions_per_image": 32,
    "detections_per_image": 12,
    "score_thresh": 0.0,
}
# Of the systems on position-sensitive maps: R-FCN, FCIS.
SMALL_MAPS: dict[str, Any] = {
    "num_classes": 3,
    "backbone": "test_resnet",
    "backbone_norm": "batch",
    "parts": 3,
    "width": 16,
    "rpn_width": 16,
    "anchor_sizes": (16, 32, 64),
    "proposals": 30,
    "regions_per_image": 16,
    "min_side_px": 2.0,
}


def make_target(
    boxes: list[list[int]],
    labels: list[int],
    size: tuple[int, int],
    crowd: list[bool] | None = None,
) -> InstanceTarget:
    """Objects that fill their boxes."""
    windows = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
    areas = (windows[:, 2:] - windows[:, :2]).prod(dim=1)
    return InstanceTarget(
        boxes=windows.float(),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=MaskCrops(size, windows, torch.ones(int(areas.sum()), dtype=torch.uint8)),
        crowd=torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
    )


def without_objects(kind: str, size: tuple[int, int]) -> InstanceTarget:
    """A target that has nothing to teach: "empty", "crowd_only" or "degenerate"."""
    height, width = size
    return {
        "empty": make_target([], [], size),
        "crowd_only": make_target([[0, 0, width, height]], [1], size, [True]),
        "degenerate": make_target([[20, 20, 20, 40]], [1], size),
    }[kind]


def batch() -> tuple[Tensor, list[InstanceTarget]]:
    """Two noisy pictures, the second with padding, and three objects."""
    size = (96, 128)
    torch.manual_seed(1)
    images = torch.randn(2, 3, *size)
    targets = [
        make_target([[10, 10, 40, 50], [60, 20, 100, 60]], [0, 2], size),
        make_target([[5, 30, 90, 80]], [1], (size[0] - 10, size[1] - 20)),
    ]
    return images, targets


def two_bright_boxes() -> tuple[Tensor, InstanceTarget]:
    """A picture [1, 3, 96, 128] that a small network can learn, with what it shows."""
    size = (96, 128)
    image = torch.randn(1, 3, *size) * 0.1
    image[0, 0, 10:50, 10:40] += 2
    image[0, 1, 20:60, 60:100] += 2
    return image, make_target([[10, 10, 40, 50], [60, 20, 100, 60]], [0, 2], size)


def learn(net: nn.Module, image: Tensor, target: InstanceTarget, *, steps: int) -> None:
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(steps):
        losses = net.loss(image, [target])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    net.eval()
