"""Reading checkpoint files of other projects without running anything that is in them."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pixelwise.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "weights")
_UNKNOWN_GLOBAL = re.compile(r"Unsupported global: GLOBAL ([\w.]+)")
_HOSTILE_GLOBAL = re.compile(r"GLOBAL ([\w.]+) whose module")
_HOSTILE_MODULES = ("builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess")
_MAX_UNKNOWN = 100  # classes; a checkpoint that needs more is not one


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a file: .safetensors, .pt, .pth, .ckpt, .bin or detectron2's .pkl.

    Pickles are read with a restricted unpickler: tensors and plain containers are rebuilt, classes
    of other packages (configurations, log buffers) become empty stand-ins, and nothing is called.

    Raises:
        ModelError: no such file, or nothing in it that is a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of a checkpoint")
    try:
        if path.suffix == ".safetensors":
            content: Any = cast("Any", safetensors.torch).load_file(path)
        elif path.suffix == ".pkl":
            content = _read_plain_pickle(path)
        else:
            content = _read_torch(path)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        raise ModelError(f"{path}: {_explain(error)}") from error
    return unwrap(content, str(path))


def unwrap(content: Any, label: str = "the checkpoint") -> dict[str, Tensor]:
    """The state dict inside a checkpoint's usual wrappings, without DataParallel's "module.".

    Args:
        content: a mapping, possibly with the state dict under "state_dict", "model" and the like.
        label:   what to call it in an error.
    """
    while isinstance(content, Mapping):
        content = cast("Mapping[str, Any]", content)
        inner = next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise ModelError(f"{label} holds a {type(content).__name__}, not a state dict")
    tensors = {str(k): v for k, v in _as_tensors(cast("Mapping[Any, Any]", content)).items()}
    if not tensors:
        raise ModelError(f"{label} holds no tensors; it is not a state dict")
    while all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _as_tensors(content: Mapping[Any, Any]) -> dict[Any, Tensor]:
    result: dict[Any, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            result[key] = value
        elif isinstance(value, np.ndarray):
            result[key] = torch.as_tensor(value)
    return result


def _read_torch(path: Path) -> Any:
    """`torch.load` with weights only; each class it refuses is replaced by an empty stand-in."""
    stand_ins: list[Any] = []
    for _ in range(_MAX_UNKNOWN):
        try:
            with torch.serialization.safe_globals(stand_ins):
                return cast("Any", torch).load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = _UNKNOWN_GLOBAL.search(str(error))
            if found is None or any(name == found[1] for _, name in stand_ins):
                raise
            if "." not in found[1]:  # torch names builtins without their module
                raise pickle.UnpicklingError(f"GLOBAL builtins.{found[1]} whose module") from None
            stand_ins.append((_stand_in(found[1]), found[1]))
    raise pickle.UnpicklingError(f"more than {_MAX_UNKNOWN} unknown classes")


def _stand_in(name: str) -> type:
    """A class that takes any arguments and any state and keeps none of them."""
    module, _, qualified = name.rpartition(".")

    def make(cls: type[object], *_: Any, **__: Any) -> object:
        return object.__new__(cls)

    def ignore(*_: Any, **__: Any) -> None:
        return None

    members: dict[str, Any] = {
        "__new__": make,
        "__init__": ignore,
        "__setstate__": ignore,
        "__setitem__": ignore,
        "append": ignore,
        "extend": ignore,
        "__module__": module,
    }
    return type(qualified, (), members)


_NUMPY = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers; every other class is an empty stand-in."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in _NUMPY:
            return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
        if (module_name, global_name) == ("_codecs", "encode"):  # how protocol 2 stores bytes
            return super().find_class(module_name, global_name)
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return dict
        if module_name in _HOSTILE_MODULES and global_name not in ("set", "frozenset"):
            raise pickle.UnpicklingError(f"GLOBAL {module_name}.{global_name} whose module")
        return _stand_in(f"{module_name}.{global_name}")


def _read_plain_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        unpickler = _ArrayUnpickler(io.BytesIO(file.read()), encoding="latin1")
        return cast("Any", unpickler).load()


def _explain(error: Exception) -> str:
    if found := _HOSTILE_GLOBAL.search(str(error)):
        return (
            f"refused: it asks to call {found[1]}, which no checkpoint needs; do not use this file"
        )
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if first.startswith("Weights only load failed"):
        first = "no pickle of tensors"
    return f"not a checkpoint that can be read ({first}); download it again or give another file"
