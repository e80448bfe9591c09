"""Reference outputs that travel with the package: what a converted network computes here, and must.

A reference is a small network of an origin and system. Its weights are made from the names and
shapes of the origin's own keys, so none are stored; they pass through the converter as a file's
would, and outputs on a made picture are compared with stored values. The converters are held to the
originals' outputs by the tests; a reference shows that this installation computes the same.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.systems import configure
from pixelwise.systems import find as find_system

TOLERANCE = 1e-4  # of the largest stored value
VALUES = 24  # stored of each output


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One origin and system.

    Args:
        origin:   the project.
        name:     row of `SYSTEMS` that its converter starts from.
        settings: config fields of the small network.
        shape:    [B, C, H, W] of the picture.
        seed:     of the picture.
        outputs:  name → shape and some of the values, evenly spread.
        proof:    how the converter was held to the original.
    """

    origin: str
    name: str
    settings: Mapping[str, Any]
    shape: tuple[int, ...]
    seed: int
    outputs: Mapping[str, Any]
    proof: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an output is from the stored one.

    Args:
        output: its name.
        worst:  largest difference.
        scale:  largest stored value.
    """

    output: str
    worst: float
    scale: float

    @property
    def ok(self) -> bool:
        """Whether they are equal up to rounding."""
        return self.worst <= TOLERANCE * self.scale


def references() -> dict[tuple[str, str], Reference]:
    """All that ship with the package, by origin and the first row of the system."""
    return {(r.origin, r.name): r for r in _read()}


@lru_cache(maxsize=1)
def _read() -> tuple[Reference, ...]:
    folder = resources.files("pixelwise") / "convert" / "references"
    rows: list[Reference] = []
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        content = json.loads(file.read_text(encoding="utf-8"))
        rows += [
            Reference(
                origin=content["origin"],
                name=row["name"],
                settings=row["settings"],
                shape=tuple(row["shape"]),
                seed=row["seed"],
                outputs=row["outputs"],
                proof=row["proof"],
            )
            for row in content["references"]
        ]
    return tuple(rows)


def made_weights(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values for a tensor, from its name alone: noise that keeps the size of activations.

    Args:
        name:  the origin's key.
        shape: of the tensor.

    Returns:
        float32; zero as int64 for counters.
    """
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = np.asarray(noise.standard_normal(shape, dtype=np.float32), dtype=np.float32)
    if name.endswith("running_var"):
        values = 1 + np.float32(0.1) * np.abs(values)
    elif len(shape) > 1:
        values = values * np.float32(1 / math.sqrt(math.prod(shape[1:])))
    else:
        scales = name.endswith(("weight", "scale"))
        values = np.float32(scales) + np.float32(0.1) * values
    return torch.from_numpy(np.asarray(values))


def made_picture(shape: tuple[int, ...], seed: int) -> Tensor:
    """[B, C, H, W] noise in the place of a normalised picture."""
    noise = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(noise.standard_normal(shape, dtype=np.float32))


def made_state(origin: str, name: str, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict as the origin would save the network of these settings.

    Args:
        origin:   the project.
        name:     row of `SYSTEMS`.
        settings: config fields.
    """
    shapes = shapes_of(origin, name, settings)
    return {key: made_weights(key, shape) for key, shape in shapes.items()}


def shapes_of(origin: str, name: str, settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The origin's own keys of such a network, and the shapes under them."""
    config = configure(name, settings)
    entry = origins(name)[origin]
    rules = entry.rules(config) if callable(entry.rules) else entry.rules
    with torch.device("meta"):
        ours = find_system(name).system(config).state_dict()
    empty = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in ours.items()}
    theirs = invert(rules, empty, with_zeros=True)
    return {key: tuple(value.shape) for key, value in theirs.items()}


def compute(reference: Reference) -> dict[str, Tensor]:
    """The outputs of the converted network, by name."""
    state = made_state(reference.origin, reference.name, reference.settings)
    imported = import_checkpoint(
        state, origin=reference.origin, name=reference.name, **reference.settings
    )
    return outputs_of(imported.system, made_picture(reference.shape, reference.seed))


@torch.inference_mode()
def outputs_of(system: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Every tensor of numbers in a system's raw output.

    Args:
        system: in evaluation mode.
        images: [B, C, H, W].
    """
    raw = system(images)
    found: dict[str, Tensor] = {}
    for name, value in raw._asdict().items():
        parts = value if isinstance(value, tuple | list) else (value,)
        for i, part in enumerate(cast("tuple[Any, ...]", parts)):
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
                found[name if len(parts) == 1 else f"{name}.{i}"] = part
    return found


def sampled(values: Tensor) -> list[float]:
    """`VALUES` numbers spread evenly over a tensor, the first and the last among them."""
    flat = values.flatten().double()
    places = torch.linspace(0, len(flat) - 1, min(VALUES, len(flat))).long()
    return flat[places].tolist()


def compare(reference: Reference) -> list[Difference]:
    """Run a reference here; one difference per stored output.

    An output of another shape counts as infinitely far away.
    """
    found = compute(reference)
    differences: list[Difference] = []
    for name, stored in reference.outputs.items():
        ours, wanted = found.get(name), torch.tensor(stored["values"], dtype=torch.float64)
        worst = math.inf
        if ours is not None and list(ours.shape) == stored["shape"]:
            worst = float(
                (torch.tensor(sampled(ours)).double() - wanted).abs().nan_to_num(1e30).max()
            )
        scale = float(stored["max_abs"])
        differences.append(Difference(output=name, worst=worst, scale=scale))
    return differences
