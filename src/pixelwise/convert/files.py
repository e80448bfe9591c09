"""Reading checkpoint files of other projects without running anything that is in them."""

from __future__ import annotations

import errno
import hashlib
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from pixelwise.convert.archives import read_content
from pixelwise.convert.mistaken import describe_folder, describe_mistake
from pixelwise.convert.pickled import PickledArray, PickledTensor
from pixelwise.convert.unpickle import Foreign
from pixelwise.errors import ModelError

# Under which names people keep a state dict, the preferred first: averaged weights come last.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "params",
    "blobs",
    "weights",
    "module",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "params_ema",
    "ema",
)
_PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
_MAX_WRAPPINGS = 8
_MAX_MODULES = 100_000  # of a pickled network, nested
_SHARING = 16  # how often, on average, tensors may look at the same bytes
_BLOB_PARTS = {"w": "weight", "b": "bias", "weights": "weight", "biases": "bias"}
_CHUNK = 1 << 20

Described = Tensor | PickledTensor | PickledArray


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """A file of another project.

    Args:
        path:    where it lies.
        state:   the state dict in it, without wrappings and prefixes.
        about:   what the file holds beside the state dict: "meta", "args", "epoch" and the like.
        wrapper: the names under which the state dict lay, outermost first.
    """

    path: Path
    state: dict[str, Tensor]
    about: dict[str, Any]
    wrapper: tuple[str, ...]


def read_checkpoint(path: Path | str) -> CheckpointFile:
    """The state dict in a file, and what the file says about it.

    Read are torch's zip, legacy and tar formats, plain pickles with numpy arrays (detectron2's
    model zoo, blobs of Caffe2), safetensors and .npz; the first bytes decide, not the name.

    Raises:
        ModelError: no such file, nothing in it that is a state dict, or something in it that no
            checkpoint needs.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path}: {describe_folder(path)}")
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of a checkpoint")
    try:
        content = read_content(path)
        inner, about, wrapper = _take_off(content)
        state = _tensors(inner, str(path))
    except (
        SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        RuntimeError,
        NotImplementedError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:
        raise ModelError(f"{path}: {_explain(error, path)}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a forged position in an archive
            raise
        raise ModelError(f"{path}: {_explain(error, path)}") from error
    return CheckpointFile(path=path, state=state, about=about, wrapper=wrapper)


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The state dict of `read_checkpoint`."""
    return read_checkpoint(path).state


def unwrap(content: Any, label: str = "the checkpoint") -> dict[str, Tensor]:
    """The state dict inside a checkpoint's usual wrappings, without DataParallel's "module.".

    Args:
        content: a mapping, possibly with the state dict under "state_dict", "model" and the like.
        label:   what to call it in an error.
    """
    return _tensors(_take_off(content)[0], label)


def sha256(path: Path) -> str:
    """The hash of a file, read in parts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _take_off(content: Any) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """The innermost wrapped mapping, what lay beside it, and the wrappers' names."""
    about: dict[str, Any] = {}
    wrapper: list[str] = []
    for _ in range(_MAX_WRAPPINGS):  # a forged file may wrap itself
        mapping = _as_mapping(content)
        if mapping is None:
            break
        name = next((k for k in _WRAPPERS if _as_mapping(mapping.get(k))), None)
        if name is None:
            return mapping, about, tuple(wrapper)
        about = {**{str(k): v for k, v in mapping.items() if k != name}, **about}
        content = mapping[name]
        wrapper.append(name)
    return content, about, tuple(wrapper)


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """A mapping, or the state dict of a network that was pickled as a whole."""
    if isinstance(value, Mapping):
        return cast("Mapping[Any, Any]", value)
    if isinstance(value, Foreign):
        return value.items or _module_state(value) or None
    return None


def _module_state(module: Foreign) -> dict[str, Any]:
    """Parameters and buffers of a pickled `nn.Module`, by the names of its state dict."""
    state: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    for _ in range(_MAX_MODULES):
        if not waiting:
            break
        prefix, part = waiting.pop()
        attributes = part.attributes() if isinstance(part, Foreign) else {}
        for kind in ("_parameters", "_buffers"):
            held = attributes.get(kind)
            named = held.items() if isinstance(held, dict) else ()
            state |= {f"{prefix}{k}": v for k, v in named if v is not None}
        children = attributes.get("_modules")
        if isinstance(children, dict):
            waiting += [(f"{prefix}{k}.", v) for k, v in reversed(children.items())]
    return state


def _tensors(content: Any, label: str) -> dict[str, Tensor]:
    mapping = _as_mapping(content)
    if mapping is None:
        single = "tensor" if _is_array(content) else type(content).__name__
        raise ModelError(f"{label}: holds a {single}, not a state dict")
    described = _named(mapping)
    _check_sharing(described.values())
    tensors = {key: _as_tensor(value) for key, value in described.items()}
    if not tensors:
        raise ModelError(f"{label}: holds no tensors; it is not a state dict")
    for prefix in _PREFIXES * 2:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _named(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Tensors and arrays by name; layers that hold two of them, as in ports of Caffe, too."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if _is_array(value):
            found[str(key)] = value
        elif isinstance(value, Mapping):
            inner = cast("Mapping[Any, Any]", value)
            found |= {
                f"{key}.{_BLOB_PARTS.get(str(part), part)}": array
                for part, array in inner.items()
                if _is_array(array)
            }
        elif isinstance(value, list | tuple) and 0 < len(value) <= 2:
            pair = cast("list[Any]", value)
            if all(map(_is_array, pair)):
                parts = ("weight", "bias")[: len(pair)]
                found |= {f"{key}.{p}": a for p, a in zip(parts, pair, strict=True)}
    return found


def _is_array(value: Any) -> bool:
    if isinstance(value, PickledArray):
        return value.is_numeric()
    if isinstance(value, np.ndarray):
        return cast("np.ndarray[Any, Any]", value).dtype.kind in "biuf"
    return isinstance(value, Tensor | PickledTensor)


def _check_sharing(values: Iterable[Any]) -> None:
    """Refuse many tensors that look at the same bytes: copied, they would fill any memory."""
    copied, held = 0, {}
    for value in values:
        if isinstance(value, PickledTensor):
            value.check()
            copied += value.nbytes
            held[id(value.storage)] = value.storage.nbytes
        elif isinstance(value, PickledArray):
            copied += value.nbytes
            held[id(value.data)] = value.nbytes
    if copied > _SHARING * sum(held.values()) + _CHUNK:
        raise pickle.UnpicklingError(
            f"tensors of {copied / 1e6:.0f} MB look at {sum(held.values()) / 1e6:.0f} MB of data"
        )


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, PickledTensor | PickledArray):
        return value.tensor()
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


def _explain(error: Exception, path: Path) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "it asks" in first:
        return f"refused: {first}"
    return describe_mistake(path) or (
        f"not a checkpoint that can be read ({first}); download it again or give another file"
    )
