"""Tensors and arrays as pickles describe them, and the names that build such descriptions."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from pixelwise.convert.unpickle import Foreign, Names, hashable

_MAX_NUMBERS = 65  # that say where a tensor's values are: 32 sizes and strides, and an offset
_MAX_SIZE = 1 << 48
_NUMBERS = re.compile(r"[biuf]\d+|bool|u?int\d+|float\d+")  # names of numpy's types of numbers

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = sorted({str(dtype) for dtype in STORAGES.values()})


def _are_sizes(values: Any) -> bool:
    """Whether these are the sizes (and strides and offset) of something that can exist."""
    if not isinstance(values, tuple) or len(cast("tuple[Any, ...]", values)) > _MAX_NUMBERS:
        return False
    return all(isinstance(n, int) and 0 <= n < _MAX_SIZE for n in cast("tuple[Any, ...]", values))


@dataclass(frozen=True)
class StorageType:
    """The class of a storage, as a file names it."""

    dtype: torch.dtype


@dataclass(eq=False)
class Storage:
    """The bytes that one or several tensors look at, read when the first of them is built.

    Args:
        dtype: of its numbers.
        numel: how many.
        read:  gives the bytes; may check them.
    """

    dtype: torch.dtype
    numel: int
    read: Callable[[], bytearray]
    data: bytearray | None = None

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.numel * self.dtype.itemsize

    def values(self, dtype: torch.dtype) -> Tensor:
        """All its numbers, one-dimensional."""
        if self.data is None:
            self.data = self.read()
        if len(self.data) != self.nbytes:
            raise pickle.UnpicklingError(
                f"a storage of {len(self.data)} bytes is declared to have {self.nbytes}"
            )
        if not self.data:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self.data, dtype=dtype)


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """A view of a storage, checked when it is turned into a tensor.

    Args:
        storage: what it looks at.
        offset:  of its first number in the storage.
        size:    of each dimension.
        stride:  of each dimension, numbers.
        dtype:   of the numbers.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.size)

    @property
    def nbytes(self) -> int:
        """How much memory a copy takes."""
        return self.numel * self.dtype.itemsize

    def check(self) -> None:
        """Refuse a view that is not inside its storage, or sees more numbers than it holds.

        Raises:
            pickle.UnpicklingError: it is not.
        """
        numbers = (self.offset, *self.size, *self.stride)
        if len(self.size) != len(self.stride) or not _are_sizes(numbers):
            raise pickle.UnpicklingError("a tensor of impossible size or stride")
        held = self.storage.nbytes // self.dtype.itemsize
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.size, self.stride, strict=True)
        )
        if self.numel and last >= held:
            raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
        if self.numel > held:
            raise pickle.UnpicklingError("a tensor of more numbers than its storage holds")

    def tensor(self) -> Tensor:
        """The tensor, a view of the storage."""
        self.check()
        if not self.numel:
            return torch.empty(self.size, dtype=self.dtype)
        return self.storage.values(self.dtype).as_strided(self.size, self.stride, self.offset)


@dataclass(eq=False)
class PickledType:
    """A numpy dtype: a kind with its size, such as "f4", and a byte order."""

    kind: str
    order: Literal["<", ">", "="] = "="

    def set_state(self, state: Any) -> None:
        """As numpy pickles it: (version, byte order, ...)."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        self.order = order if order in ("<", ">") else "="

    def numpy(self) -> np.dtype[Any]:
        """The dtype.

        Raises:
            pickle.UnpicklingError: it is not one of numbers.
        """
        if not _NUMBERS.fullmatch(self.kind):
            raise pickle.UnpicklingError(f"an array of {self.kind!r}, which are no numbers")
        return np.dtype(self.kind).newbyteorder(self.order)


@dataclass(eq=False)
class PickledArray:
    """A numpy array, checked when it is turned into a tensor.

    Args:
        shape:   of the array.
        kind:    of its numbers.
        data:    its bytes; as text where Python 2 wrote them.
        fortran: the first dimension runs fastest.
    """

    shape: Any = (0,)
    kind: Any = None
    data: Any = b""
    fortran: Any = False

    def set_state(self, state: Any) -> None:
        """As numpy pickles it: (version, shape, dtype, fortran, bytes)."""
        if not (isinstance(state, tuple) and len(state) >= 4):
            raise TypeError("no state of an array")
        self.shape, self.kind, self.fortran, self.data = state[-4:]

    @property
    def nbytes(self) -> int:
        """How much memory a copy takes."""
        return len(self.data) if isinstance(self.data, str | bytes | bytearray) else 0

    def is_numeric(self) -> bool:
        """Whether it holds numbers, not text or objects."""
        return isinstance(self.kind, PickledType) and bool(_NUMBERS.fullmatch(self.kind.kind))

    def tensor(self) -> Tensor:
        """The array, in this machine's byte order.

        Raises:
            pickle.UnpicklingError: its bytes do not make the shape it states.
        """
        if not isinstance(self.kind, PickledType) or not _are_sizes(self.shape):
            raise pickle.UnpicklingError("an array of impossible shape or type")
        data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
        kind = self.kind.numpy()
        if not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError("an array without bytes")
        if len(data) != math.prod(self.shape) * kind.itemsize:
            raise pickle.UnpicklingError(
                f"an array of {len(data)} bytes is declared to have the shape {self.shape}"
            )
        values = np.frombuffer(data, kind).reshape(self.shape, order="F" if self.fortran else "C")
        return torch.from_numpy(np.array(values, dtype=kind.newbyteorder("="), order="C"))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> PickledTensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    return PickledTensor(storage, offset, tuple(size), tuple(stride), storage.dtype)


def _tensor_of_bytes(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> PickledTensor:
    if not (isinstance(storage, Storage) and isinstance(dtype, torch.dtype)):
        raise TypeError("a tensor without a storage")
    return PickledTensor(storage, offset, tuple(size), tuple(stride), dtype)


def _dictionary(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    items = pairs.items() if isinstance(pairs, dict) else pairs
    return {hashable(key): value for key, value in items}


def _default_dictionary(*_: Any) -> dict[Any, Any]:
    return {}


def _scalar(kind: Any, data: Any = b"", *_: Any) -> Any:
    if isinstance(data, str):
        data = data.encode("latin-1")
    if not isinstance(kind, PickledType) or not isinstance(data, bytes):
        return Foreign("numpy.scalar")
    return np.frombuffer(data, kind.numpy(), count=1)[0].item()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, *_: Any) -> PickledArray:
    return PickledArray(shape, kind, data, fortran=order == "F")


def _encode(text: Any, *_: Any) -> bytes:
    """Protocol 2 has no bytes; Python 3 writes them as text of the first 256 characters."""
    return str(text).encode("latin-1")


def _bytes(data: Any = b"", *_: Any) -> bytes:
    if isinstance(data, str):
        return _encode(data)
    if not isinstance(data, bytes | bytearray):  # a number would be a size to allocate
        raise TypeError("bytes of something else")
    return bytes(data)


def _reconstruct(kind: Any, base: Any = None, state: Any = None, *_: Any) -> Foreign:
    """An object of protocol 0 or 1; the state is that of a dict or list which it extends."""
    made = Foreign(kind.name if isinstance(kind, Foreign) else "object", ())
    if isinstance(state, dict):
        made.items = cast("dict[Any, Any]", state)
    return made


def _numpy_dtype(name: Any, *_: Any) -> PickledType:
    return PickledType(str(name))


def _empty_array(*_: Any) -> PickledArray:
    return PickledArray()


def _plain_set(items: Any = (), *_: Any) -> set[Any]:
    return {hashable(item) for item in items}


def _first(value: Any, *_: Any) -> Any:
    """A parameter is the tensor in it."""
    return value


def _device(*_: Any) -> str:
    return "cpu"


def _size(dims: Any = (), *_: Any) -> tuple[Any, ...]:
    return tuple(dims)


NAMES: Names = {
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "_codecs.encode": _encode,
    "copy_reg._reconstructor": _reconstruct,
    "copyreg._reconstructor": _reconstruct,
    **{
        f"{module}.{name}": _plain_set
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset")
    },
    **{
        f"{module}.{name}": _bytes
        for module in ("builtins", "__builtin__")
        for name in ("bytes", "bytearray")
    },
    **{
        f"numpy.{core}.{name}": build
        for core in ("core", "_core")
        for name, build in (
            ("multiarray._reconstruct", _empty_array),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _from_buffer),
        )
    },
    "numpy.dtype": _numpy_dtype,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.Size": _size,
    "torch.device": _device,
    **{
        f"{module}.{name}": StorageType(dtype)
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in STORAGES.items()
    },
    **{name: getattr(torch, name.removeprefix("torch.")) for name in _DTYPES},
}
