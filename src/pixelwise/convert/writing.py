"""The way back: one of our checkpoints under another project's names, in its file format."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelwise import __version__
from pixelwise.convert import origins
from pixelwise.convert.recognise import base_rows
from pixelwise.convert.rules import invert, translate
from pixelwise.errors import ConversionError, UsageError
from pixelwise.systems import configure

# Whose own file formats are written; detectron2 has two.
FORMATS = ("detectron2", "mmdet", "mmseg", "torchvision")
_OF_TRAINING = ("class_weights", "aux_weight", "loss")  # not of the network that is written


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A network under another project's names.

    Args:
        state:    its state dict.
        zeros:    keys with rows that the project has and we do not (of a background class that it
                  never reads), filled with zeros.
        settings: what must be set there, since it differs from what the project publishes.
    """

    state: dict[str, Tensor]
    zeros: tuple[str, ...]
    settings: dict[str, Any]


def to_origin(system: nn.Module, *, name: str, origin: str) -> Foreign:
    """A system's weights as another project names them; reading them back gives the same weights.

    Args:
        system: ours.
        name:   its row of `SYSTEMS`.
        origin: the project.

    Raises:
        UsageError: no converter of this system is for this origin.
        ConversionError: the network has parts that the project's has not.
    """
    known = origins(name)
    if origin not in known:
        raise UsageError(f"{name} cannot become a checkpoint of {origin!r}; {_targets(known)}")
    entry, config = known[origin], _config(system)
    rules = entry.rules(config) if callable(entry.rules) else entry.rules
    ours = system.state_dict()
    try:
        state = invert(rules, ours, with_zeros=True)
        back = translate(rules, state, ours)
        expected = configure(base_rows()[type(system)], entry.infer(state))
    except ConversionError as error:
        raise ConversionError(
            f"this {name} has a form that {origin} does not have, so that its weights have no "
            f"place there: {error}"
        ) from None
    if any(not torch.equal(back.state[key], value) for key, value in ours.items() if value.ndim):
        raise ConversionError(f"{name}: the rules of {origin} lose values on the way there")
    return Foreign(
        state=state,
        zeros=tuple(
            theirs
            for key, theirs in back.sources.items()
            if state[theirs].numel() > ours[key].numel()
        ),
        settings={
            key: value
            for key, value in vars(config).items()
            if value != getattr(expected, key) and key not in _OF_TRAINING
        },
    )


def _targets(known: Any) -> str:
    return f"it can become one of {', '.join(known)}" if known else "it has no converter"


def _config(system: nn.Module) -> Any:
    return getattr(system, "cfg")  # noqa: B009  (an attribute of every system, not of nn.Module)


def write(path: Path, state: dict[str, Tensor], *, origin: str, classes: Sequence[str]) -> None:
    """Write a state dict as the project's own tools save one.

    Args:
        path:    .pth, or .pkl for detectron2's numpy form.
        state:   under the project's names.
        origin:  one of `FORMATS`.
        classes: names in label order, where the format holds them.

    Raises:
        UsageError: a suffix that the project does not read.
    """
    writer = _WRITERS.get(path.suffix)
    if writer is None or (path.suffix == ".pkl" and origin != "detectron2"):
        raise UsageError(f"{path}: write .pth{', or .pkl' if origin == 'detectron2' else ''}")
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    writer(path, _wrapped(tensors, origin, list(classes)))


def _wrapped(state: dict[str, Tensor], origin: str, classes: list[str]) -> dict[str, Any]:
    author = f"pixelwise {__version__}"
    if origin == "detectron2":
        return {"model": state, "__author__": author}
    if origin in ("mmdet", "mmseg"):
        names = {"CLASSES": tuple(classes), "dataset_meta": {"classes": tuple(classes)}}
        return {"meta": {"author": author, **names}, "state_dict": state}
    return dict(state)


def _write_arrays(path: Path, content: dict[str, Any]) -> None:
    arrays = {key: value.numpy() for key, value in content["model"].items()}
    path.write_bytes(pickle.dumps({**content, "model": arrays}, protocol=2))


def _write_torch(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)


_WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    ".pth": _write_torch,
    ".pkl": _write_arrays,
}
