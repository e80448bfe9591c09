"""Two systems whose right answers are known, for tests of everything around a network.

`Threshold` labels bright pixels 1. `Islands` finds every connected bright island; a reddish one is
of class "red", any other of class "grey"; its score is its brightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pixelwise import checkpoint
from pixelwise.ops import rle
from pixelwise.ops.components import connected_components
from pixelwise.ops.resize import logits_to_prediction, resize
from pixelwise.predict import Segmenter
from pixelwise.spec import InputSpec, ResizeRule
from pixelwise.systems import SYSTEMS, Entry
from pixelwise.types import ImageSize, InstancePrediction

PLAIN = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3)


@dataclass(frozen=True, kw_only=True)
class StandInConfig:
    """Nothing to set but the number of classes."""

    num_classes: int = 2


class Maps(NamedTuple):
    """[B, C, H, W]."""

    maps: Tensor


class Threshold(nn.Module):
    """Semantic: dark is 0, bright is 1."""

    def __init__(self, cfg: StandInConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg or StandInConfig()
        self.gain = nn.Parameter(torch.tensor(20.0))
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Maps:
        self.batches.append(len(images))
        bright = (images.mean(1) - 0.5) * self.gain
        return Maps(torch.stack([-bright, bright], 1))

    def decode(self, raw: Maps, sizes: Any, *, with_probs: bool = False) -> list[Any]:
        return [
            logits_to_prediction(m, s, align_corners=False, with_probs=with_probs)
            for m, s in zip(raw.maps, sizes, strict=True)
        ]


class Islands(nn.Module):
    """Instance: islands of brightness above 0.3."""

    def __init__(self, cfg: StandInConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg or StandInConfig()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Maps:
        return Maps(images * self.weight)

    def decode(self, raw: Maps, sizes: Any) -> list[InstancePrediction]:
        return [_islands(m, s) for m, s in zip(raw.maps, sizes, strict=True)]


def _islands(image: Tensor, size: ImageSize) -> InstancePrediction:
    content = image[None, :, : size.content[0], : size.content[1]]
    colors = resize(content, size.original)[0].detach().cpu().numpy()  # [3, H, W]
    labels = connected_components(colors.max(0) > 0.3)
    masks = np.stack([labels == i for i in range(1, labels.max() + 1)] or [labels > 0])
    masks = masks[masks.any((1, 2))]
    runs = rle.encode(masks.reshape(-1, *size.original))
    means = [colors[:, m].mean(1) for m in masks]
    scores = torch.tensor([float(m.max()) for m in means])
    order = scores.argsort(descending=True, stable=True)
    found = InstancePrediction(
        boxes=torch.as_tensor(rle.tight_boxes(runs)),
        labels=torch.tensor([int(m[0] <= 2 * m[1]) for m in means], dtype=torch.int64),
        scores=scores,
        masks=runs,
    )
    return found.select(order)


def threshold(**options: Any) -> Segmenter:
    about: dict[str, Any] = {"input": PLAIN, "classes": ("dark", "bright"), "device": "cpu"}
    return Segmenter(Threshold(), name="threshold", task="semantic", **{**about, **options})


def islands(**options: Any) -> Segmenter:
    about: dict[str, Any] = {"input": PLAIN, "classes": ("red", "grey"), "device": "cpu"}
    return Segmenter(Islands(), name="islands", task="instance", **{**about, **options})


def scene(height: int = 60, width: int = 80) -> np.ndarray:
    """Black, with a red square at (10, 8)-(25, 20) xyxy, a grey ring and a faint square."""
    image = np.zeros((height, width, 3), np.uint8)
    image[8:20, 10:25] = (250, 20, 20)
    image[30:50, 40:60] = 200
    image[36:44, 46:54] = 0  # the hole
    image[5:10, 60:70] = 100
    return image


def write_scene(path: Path, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(**size)).save(path)
    return path


def stand_in_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Rows of the table for both systems, in this process, and a checkpoint of each by task."""
    paths: dict[str, str] = {}
    for name, system, task, classes in (
        ("threshold", Threshold, "semantic", ["dark", "bright"]),
        ("islands", Islands, "instance", ["red", "grey"]),
    ):
        entry = Entry(system=system, config=StandInConfig(), input=PLAIN, task=task)
        monkeypatch.setitem(SYSTEMS, name, entry)
        path = folder / f"{name}.safetensors"
        checkpoint.save(path, system(StandInConfig()), name=name, classes=classes, input=PLAIN)
        paths[task] = str(path)
    return paths


FIXED = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, resize=ResizeRule(fixed=(48, 64)))
