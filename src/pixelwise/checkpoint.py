"""Checkpoints: safetensors whose header says everything that is needed to use the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, Required, TypedDict, Unpack, cast

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pixelwise import __version__, atomic
from pixelwise.errors import ModelError, UsageError
from pixelwise.spec import InputSpec, Task
from pixelwise.systems import SYSTEMS, configure, create, find

FORMAT_VERSION = 1
_NAMES_SHOWN = 8  # class names listed in a message before it ends with "..."
_HEADER_LIMIT = 100 << 20  # safetensors' own bound on the JSON in front of the tensors


class Description(TypedDict):
    """What a checkpoint says about its weights.

    Args:
        name:    row of `SYSTEMS`.
        classes: class names in label order.
        input:   how pictures are fed.
        metrics: measured numbers by name.
        licence: of the weights.
        recipe:  how they were trained, plain values.
        colors:  one (r, g, b) per class, 0..255.
        source:  where converted weights came from: project, address, sha256; plain values.
    """

    name: Required[str]
    classes: Required[Sequence[str]]
    input: Required[InputSpec]
    metrics: NotRequired[Mapping[str, float] | None]
    licence: NotRequired[str]
    recipe: NotRequired[Mapping[str, Any] | None]
    colors: NotRequired[Sequence[tuple[int, int, int]] | None]
    source: NotRequired[Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A system with its weights and what its file says about them.

    Args:
        system:  the module, in eval mode.
        name:    row of `SYSTEMS`.
        classes: class names in label order.
        input:   how pictures are fed.
        task:    "semantic" or "instance".
        metrics: measured numbers by name.
        header:  everything the file says, colours, licence and recipe included.
    """

    system: nn.Module
    name: str
    classes: tuple[str, ...]
    input: InputSpec
    task: Task
    metrics: dict[str, float]
    header: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A checkpoint as a file holds it.

    Args:
        label:   what to call it in an error: its path.
        header:  everything it says about its weights.
        tensors: the state dict.
    """

    label: str
    header: dict[str, Any]
    tensors: dict[str, Tensor]


def save(
    path: str | Path, system: nn.Module, *, half: bool = False, **about: Unpack[Description]
) -> None:
    """Write a system to one safetensors file, all or nothing.

    Args:
        path:   file to write; its folder exists.
        system: built from `SYSTEMS`; its config is stored.
        half:   store floats as fp16 (half the size); values beyond its range stay fp32.
        about:  see `Description`.

    Raises:
        OSError: no permission or a full disk; a file that was there is untouched.
    """
    header = describe(system, **about)
    tensors = {
        name: _shrink(value) if half else value.detach().cpu().contiguous().clone()
        for name, value in system.state_dict().items()
    }
    metadata = {"format": "pixelwise", "header": json.dumps(header)}
    atomic.write(Path(path), safetensors.torch.save(tensors, metadata))


def read(path: str | Path) -> Stored:
    """Header and weights of a checkpoint of ours.

    Raises:
        ModelError: missing, truncated, not ours, or of a newer format.
    """
    header = read_header(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: damaged ({error}); copy or download it again") from None
    return Stored(label=str(path), header=header, tensors=tensors)


def is_foreign(path: str | Path) -> bool:
    """Whether a file is another project's checkpoint, not one of ours, damaged or not."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":
            return path.stat().st_size > 0 and path.suffix != ".safetensors"
    try:
        return _metadata(path).get("format") != "pixelwise"
    except ModelError:
        return False


def describe(system: nn.Module, **about: Unpack[Description]) -> dict[str, Any]:
    """The header of a system's checkpoint, as plain values.

    Args:
        system: built from `SYSTEMS`.
        about:  see `Description`.
    """
    return {
        "format_version": FORMAT_VERSION,
        "pixelwise": __version__,
        "system": about["name"],
        "task": find(about["name"]).task,
        "config": asdict(cast("Any", system).cfg),
        "classes": list(about["classes"]),
        "colors": [list(c) for c in about.get("colors") or []],
        "input": about["input"].to_dict(),
        "metrics": _finite(about.get("metrics") or {}),
        "licence": about.get("licence", ""),
        "recipe": about.get("recipe"),
        "source": about.get("source"),
    }


def load(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    changes: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read a checkpoint of ours; nothing in it is ever executed.

    Args:
        path:    a file written by `save`.
        device:  where the system goes.
        changes: fields of the system's config that shall differ from the stored ones and leave the
                 weights as they are, such as the output stride and the rates that go with it.

    Raises:
        ModelError: missing, truncated, not ours, of a newer format, or weights that do not fit.
        UsageError: a change that is no field, has a wrong value, or needs other weights.
    """
    return build(read(path), device=device, changes=changes)


def build(
    stored: Stored,
    *,
    device: torch.device | str = "cpu",
    changes: Mapping[str, Any] | None = None,
) -> Loaded:
    """The system that a checkpoint holds.

    Args:
        stored:  from `read`.
        device:  where the system goes.
        changes: as in `load`.

    Raises:
        ModelError: weights that do not fit.
        UsageError: a change that is no field, has a wrong value, or needs other weights.
    """
    header, tensors = stored.header, stored.tensors
    own = restore_config(header, stored.label)
    config = _changed(header, own, changes or {})
    system = create(header["system"], **config)
    problems = _misfits(system.state_dict(), tensors)
    if problems and config != own:
        names = ", ".join(f"{key}={value!r}" for key, value in (changes or {}).items())
        raise UsageError(
            f"{stored.label}: {names} asks for other weights than the stored ones: {problems}"
            "change only what leaves them as they are, such as output_stride and its rates"
        )
    if problems:
        raise ModelError(
            f"{stored.label}: the weights do not fit {header['system']}: {problems}"
            "the file is damaged or edited"
        )
    system.load_state_dict(tensors)
    return Loaded(
        system=system.eval().to(device),
        name=header["system"],
        classes=tuple(header["classes"]),
        input=InputSpec.from_dict(header["input"]),
        task=header["task"],
        metrics=header["metrics"],
        header={**header, "config": config},
    )


def _changed(
    header: Mapping[str, Any], stored: dict[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The stored config with some fields changed, of the types that its dataclass states.

    Raises:
        UsageError: no such field, or a wrong value.
    """
    if not changes:
        return stored
    name: str = header["system"]
    config = configure(name, {**stored, **changes})
    try:
        checked: Any = TypeAdapter[Any](type(config)).validate_python(asdict(config))
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else name
        raise UsageError(f"{field}={changes.get(field)!r}: {first['msg']}") from None
    return {key: getattr(checked, key) for key in {**stored, **changes}}


def _misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """What differs between a network's tensors and the stored ones; empty where nothing does."""
    shapes = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    return (
        few("missing", [key for key in own if key not in tensors])
        + few("unexpected", [key for key in tensors if key not in own])
        + few("of another shape", shapes)
    )


def read_header(path: str | Path) -> dict[str, Any]:
    """What a checkpoint of ours says about itself, without reading the weights.

    Raises:
        ModelError: missing, truncated, not ours, or of a newer format.
    """
    path = Path(path)
    metadata = _metadata(path)
    if metadata.get("format") != "pixelwise":
        raise ModelError(
            f"{path}: safetensors, but not a pixelwise checkpoint; "
            "give a file of ours, or convert another project's with `pixelwise models import`"
        )
    header = json.loads(metadata["header"])
    if header["format_version"] > FORMAT_VERSION:
        raise ModelError(
            f"{path}: written by pixelwise {header['pixelwise']}, newer than this one "
            f"({__version__}); upgrade with pip install -U pixelwise"
        )
    if header["system"] not in SYSTEMS:
        raise ModelError(
            f"{path}: holds {header['system']!r}, a system this pixelwise ({__version__}) "
            "does not have; upgrade with pip install -U pixelwise"
        )
    return header


def listed(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def few(what: str, names: Sequence[str]) -> str:
    """How many names of a kind there are and the first of them; empty for none."""
    return f"{len(names)} {what} ({listed(names)}); " if names else ""


def _metadata(path: Path) -> dict[str, str]:
    """The header's metadata of a safetensors file, or the reason why there is none."""
    if path.is_dir():
        raise ModelError(f"{path}: a folder, not a checkpoint; name the .safetensors file in it")
    if not path.exists():
        raise ModelError(f"{path}: no such checkpoint; check the path")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if size < 8:
        raise ModelError(f"{path}: {size} bytes, truncated or empty; copy or download it again")
    if start[8:] != b"{" or length > _HEADER_LIMIT:  # every safetensors header is a JSON object
        raise ModelError(
            f"{path}: not a pixelwise checkpoint; give a file of ours, or convert another "
            "project's with `pixelwise models import`"
        )
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            return file.metadata() or {}
    except SafetensorError as error:
        if "nvalidHeader" in str(error) and length + 8 <= size:
            raise ModelError(f"{path}: not a pixelwise checkpoint ({error})") from None
        raise ModelError(f"{path}: truncated ({error}); copy or download it again") from None


def restore_config(header: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The stored config with the types of its fields (JSON knows no tuples)."""
    config: type[Any] = type(find(header["system"]).config)
    try:
        checked: Any = TypeAdapter[Any](config).validate_python(header["config"])
    except (ValidationError, ValueError, UsageError) as error:
        raise ModelError(
            f"{path}: its config does not fit {header['system']} of this pixelwise "
            f"({__version__}; the file is from {header['pixelwise']}): {error}"
        ) from None
    return {name: getattr(checked, name) for name in header["config"]}


def _shrink(value: Tensor) -> Tensor:
    """Half precision where it loses no range."""
    value = value.detach().cpu().contiguous().clone()
    if not value.is_floating_point():
        return value
    half = value.half()
    return half if bool(half.isfinite().all()) else value


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as JSON numbers: undefined ones are left out."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
