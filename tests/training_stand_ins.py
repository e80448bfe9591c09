"""A system of a few hundred weights and a data set of coloured squares, for tests of training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pixelwise.ops.resize import logits_to_prediction
from pixelwise.spec import InputSpec
from pixelwise.systems import SYSTEMS, Entry

CLASSES = ["ground", "red", "blue"]


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Settings of the stand-in."""

    num_classes: int = 3
    width: int = 8
    dropout: float = 0.0
    class_weights: tuple[float, ...] | None = None


class TinyRaw(NamedTuple):
    """Its output."""

    logits: Tensor


class Tiny(nn.Module):
    """Follows the contract: two convolutions with a norm that does not look at the batch."""

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1}
    config: ClassVar[type] = TinyConfig
    poison: ClassVar[set[int]] = set()  # training calls of loss that give nan
    at_call: ClassVar[dict[int, Any]] = {}  # what happens during a training call of loss

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.calls = 0
        self.backbone = nn.Sequential()
        self.backbone.add_module("stem", nn.Conv2d(3, cfg.width, 3, padding=1))
        self.backbone.add_module("layer1", nn.Conv2d(cfg.width, cfg.width, 3, padding=1))
        self.norm = nn.GroupNorm(2, cfg.width)
        self.dropout = nn.Dropout(cfg.dropout)
        self.classify = nn.Conv2d(cfg.width, cfg.num_classes, 1)

    def forward(self, images: Tensor) -> TinyRaw:
        maps = self.dropout(torch.relu(self.norm(self.backbone(images))))
        return TinyRaw(self.classify(maps))

    def loss(self, images: Tensor, targets: Any) -> dict[str, Tensor]:
        labels = torch.stack([t.labels for t in targets]).long()
        logits = self.forward(images).logits.float()
        weights = self.cfg.class_weights
        each = nn.functional.cross_entropy(
            logits, labels, ignore_index=255, reduction="none",
            weight=None if weights is None else logits.new_tensor(weights),
        )  # fmt: skip
        scale = logits.new_full((256,), 1.0 if weights is None else 0.0)
        if weights is not None:
            scale[: len(weights)] = logits.new_tensor(weights)
        scale[255] = 0
        total = scale[labels].sum()
        self.calls += self.training
        if self.training and self.calls in self.at_call:
            self.at_call[self.calls]()
        poisoned = self.training and self.calls in self.poison
        pixel = each.sum() / total.clamp(min=1e-9)
        return {"pixel": pixel * float("nan") if poisoned else pixel}

    def decode(self, raw: TinyRaw, sizes: Any) -> list[Any]:
        return [
            logits_to_prediction(logits, size, align_corners=False)
            for logits, size in zip(raw.logits, sizes, strict=True)
        ]


def add_tiny_system() -> None:
    """Put the stand-in into the table of systems of this process."""
    spec = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    SYSTEMS["tiny"] = Entry(system=Tiny, config=TinyConfig(), input=spec, task="semantic")


def make_squares(folder: Path, *, train: int = 8, val: int = 3, size: int = 24) -> Path:
    """A folder of pictures with a red and a blue square each, an ignored strip in some.

    Returns:
        Its data.yaml.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for part in ("images", "labels"):
            (folder / split / part).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(90, 130, (size, size, 3)).astype(np.uint8)
            labels = np.zeros((size, size), np.uint8)
            for label, channel in ((1, 0), (2, 2)):
                y, x = rng.integers(0, size - 8, 2)
                image[y : y + 8, x : x + 8] = 30
                image[y : y + 8, x : x + 8, channel] = 220
                labels[y : y + 8, x : x + 8] = label
            labels[: i % 4] = 255
            Image.fromarray(image).save(folder / split / "images" / f"{i:02d}.png")
            Image.fromarray(labels).save(folder / split / "labels" / f"{i:02d}.png")
    config = {
        "path": ".",
        "format": "masks",
        "train": "train/images",
        "val": "val/images",
        "names": CLASSES,
    }
    path = folder / "data.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def recipe_tree(data: Path, out: Path, /, **sections: Any) -> dict[str, Any]:
    """A recipe for two epochs of the stand-in, with sections replaced key by key."""
    tree: dict[str, Any] = {
        "model": {"name": "tiny"},
        "data": {"source": str(data), "batch_size": 4, "workers": 0, "scale": [1.0, 1.0]},
        "optim": {"name": "adamw", "lr": 0.01, "schedule": "constant"},
        "run": {"epochs": 2, "device": "cpu"},
        "log": {"every_steps": 1, "pictures": 1},
        "out": str(out),
    }
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys} if isinstance(keys, dict) else keys
    return tree
