"""The file formats of checkpoints: torch's three, plain pickles, numpy's archives, safetensors.

Which one a file has is read from its first bytes, never from its name. Nothing is unpacked to disk,
so names inside an archive are labels only, whatever path they look like.
"""

from __future__ import annotations

import io
import math
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import safetensors.torch

from pixelwise.convert.pickled import (
    NAMES,
    PickledArray,
    PickledTensor,
    PickledType,
    Storage,
    StorageType,
)
from pixelwise.convert.unpickle import Bounded, load_pickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_ENTRIES = 100_000  # of an archive: a storage each
_MAX_EXPANSION = 100  # of a compressed archive; weights shrink by a few per cent
_MAX_PICKLE = 1 << 28  # bytes of the pickle in torch's zip files, whose numbers are outside it
_WORD = 8  # bytes of torch's size fields
_VIEWS = "views of storages, as torch before 0.4 wrote them, cannot be read"
Storages = dict[str, Storage]


def read_content(path: Path) -> Any:
    """What a file holds: containers, numbers, text, and descriptions of tensors.

    Raises:
        pickle.UnpicklingError, ValueError, OSError: it cannot be read, or asks for something that
            no checkpoint needs.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(9)
        file.seek(0)
        if start[:2] == b"PK":
            return _read_zip(zipfile.ZipFile(path), size)
        if start[8:9] == b"{":
            return cast("Any", safetensors.torch).load_file(path)
        if tarfile.is_tarfile(file):
            file.seek(0)
            return _read_tar(file)
        file.seek(0)
        return _read_pickles(file, size)


# Zip archives: torch's format since 1.6, and numpy's .npz.


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    """The archive stays open as long as a storage may still be read from it."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    _check_entries(list(entries.values()), size)
    root = next((n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl")), None)
    if root is None and any(name.endswith(".npy") for name in entries):
        return {name.removesuffix(".npy"): _npy(archive, e) for name, e in entries.items()}
    if root is None:
        held = ", ".join(list(entries)[:3]) or "nothing"
        raise pickle.UnpicklingError(f"a zip archive of {held}, without weights of torch or numpy")
    if f"{root}constants.pkl" in entries:
        raise pickle.UnpicklingError(
            "a TorchScript program; load it with torch.jit.load and save its state_dict()"
        )
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big":
        raise pickle.UnpicklingError(_BIG_ENDIAN)
    return _torch_zip(archive, entries, root)


_BIG_ENDIAN = "written on a machine of the other byte order; save its weights as safetensors there"


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse archives that unpack to much more than they are."""
    compressed = any(e.compress_type != zipfile.ZIP_STORED for e in entries)
    limit = size * (_MAX_EXPANSION if compressed else 1)
    if len(entries) > _MAX_ENTRIES or sum(e.file_size for e in entries) > limit:
        raise pickle.UnpicklingError(
            f"an archive of {len(entries)} entries that unpacks to {limit / 1e6:.0f} MB and more"
        )


def _torch_zip(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], root: str) -> Any:
    storages: Storages = {}

    def persistent(identity: Any) -> Storage:
        kind, key, numel = _storage_identity(identity)
        if key not in storages:
            entry = entries.get(f"{root}data/{key}")
            if entry is None:
                raise pickle.UnpicklingError(f"truncated: the archive lacks the storage {key!r}")
            _expect_bytes(kind, numel, entry.file_size)
            storages[key] = Storage(kind.dtype, numel, _entry_reader(archive, entry))
        return storages[key]

    entry = entries[f"{root}data.pkl"]
    if entry.file_size > _MAX_PICKLE:
        raise pickle.UnpicklingError(f"a pickle of {entry.file_size / 1e6:.0f} MB")
    program = archive.read(entry)
    return load_pickle(Bounded(io.BytesIO(program), len(program)), NAMES, persistent)


def _expect_bytes(kind: StorageType, numel: int, present: int) -> None:
    if numel * kind.dtype.itemsize != present:
        raise pickle.UnpicklingError(
            f"truncated or forged: a storage of {numel} x {kind.dtype} has {present} bytes"
        )


def _storage_identity(identity: Any) -> tuple[StorageType, str, int]:
    """Class, key and size from torch's persistent id ("storage", class, key, place, size, ...)."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise pickle.UnpicklingError("it refers to something that is no storage")
    _, kind, key, _, numel = identity[:5]
    if not isinstance(kind, StorageType) or not isinstance(numel, int) or numel < 0:
        raise pickle.UnpicklingError("a storage of unknown type or size")
    return kind, str(key), numel


def _entry_reader(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], bytearray]:
    def read() -> bytearray:
        data = bytearray(entry.file_size)
        with archive.open(entry) as source:
            if cast("io.BufferedIOBase", source).readinto(data) != len(data):
                raise pickle.UnpicklingError("truncated: an entry of the archive ends too early")
        return data

    return read


def _npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    """One array of an .npz; text and objects are left out."""
    with archive.open(entry) as source:
        version = np.lib.format.read_magic(source)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise pickle.UnpicklingError(f"{entry.filename}: version {version} of numpy's format")
        shape, fortran, kind = read(source)
        if kind.kind not in "biuf":
            return None
        wanted = math.prod(shape) * kind.itemsize
        if wanted > entry.file_size:
            raise pickle.UnpicklingError(
                f"truncated or forged: {entry.filename} is declared to have {wanted} bytes"
            )
        of_numbers = PickledType(kind.str[1:])
        of_numbers.set_state((3, kind.str[0]))
        return PickledArray(shape, of_numbers, source.read(wanted), fortran)


# Plain pickles, and torch's format before 1.6: several pickles and the storages behind them.


def _read_pickles(file: BinaryIO, size: int) -> Any:
    source = Bounded(file, size)
    first = load_pickle(source, NAMES)
    if first != _LEGACY_MAGIC:
        return first
    if load_pickle(source, NAMES) != _LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("an unknown version of torch's legacy format")
    system = load_pickle(source, NAMES)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise pickle.UnpicklingError(_BIG_ENDIAN)
    storages: Storages = {}
    content = load_pickle(source, NAMES, lambda identity: _legacy_storage(identity, storages))
    keys = load_pickle(source, NAMES)
    for key in keys if isinstance(keys, list) else []:
        _fill_legacy(source, storages, str(key))
    return content


def _legacy_storage(identity: Any, storages: Storages) -> Any:
    if isinstance(identity, tuple) and identity and identity[0] == "module":
        return identity[1] if len(identity) > 1 else None  # source text of a module's class
    kind, key, numel = _storage_identity(identity)
    if len(identity) > 5 and identity[5] is not None:
        raise pickle.UnpicklingError(_VIEWS)
    if key not in storages:
        storages[key] = Storage(kind.dtype, numel, _nothing)
    return storages[key]


def _nothing() -> bytearray:
    return bytearray()


def _fill_legacy(source: Bounded, storages: Storages, key: str) -> None:
    """The next storage in the file: the number of its elements, then their bytes."""
    numel = int.from_bytes(source.read(_WORD), "little", signed=True)
    storage = storages.get(key)
    if storage is None or numel != storage.numel:
        raise pickle.UnpicklingError(f"the storage {key!r} is not of the size that is declared")
    storage.data = bytearray(source.read(storage.nbytes))


# Tar archives: torch's format before 0.1.10.


def _read_tar(file: BinaryIO) -> Any:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        parts: dict[str, bytes] = {}
        for name in ("storages", "tensors", "pickle"):
            member = next((m for m in archive if m.name.removeprefix("./") == name), None)
            opened = archive.extractfile(member) if member is not None and member.isreg() else None
            if opened is None:
                raise pickle.UnpicklingError(f"a tar archive without {name!r}, not one of torch")
            parts[name] = opened.read()
    storages = _tar_storages(_whole(parts["storages"]))
    tensors = _tar_tensors(_whole(parts["tensors"]), storages)

    # A tuple is a module's class with its source text.
    def persistent(key: Any) -> Any:
        return cast("Any", key)[0] if isinstance(key, tuple) else tensors[str(key)]

    return load_pickle(_whole(parts["pickle"]), NAMES, persistent)


def _whole(data: bytes) -> Bounded:
    return Bounded(io.BytesIO(data), len(data))


def _count(source: Bounded) -> int:
    count = load_pickle(source, NAMES)
    if not isinstance(count, int) or not 0 <= count <= _MAX_ENTRIES:
        raise pickle.UnpicklingError("an impossible number of tensors")
    return count


def _tar_storages(source: Bounded) -> Storages:
    storages: Storages = {}
    for _ in range(_count(source)):
        key, _, kind = load_pickle(source, NAMES)
        if not isinstance(kind, StorageType):
            raise pickle.UnpicklingError("a storage of unknown type")
        numel = int.from_bytes(source.read(_WORD), "little", signed=True)
        data = bytearray(source.read(numel * kind.dtype.itemsize))
        storages[str(key)] = Storage(kind.dtype, numel, _nothing, data)
    if load_pickle(source, NAMES):
        raise pickle.UnpicklingError(_VIEWS)
    return storages


def _tar_tensors(source: Bounded, storages: Storages) -> dict[str, PickledTensor]:
    tensors: dict[str, PickledTensor] = {}
    for _ in range(_count(source)):
        key, storage_key, _ = load_pickle(source, NAMES)
        dimensions = int.from_bytes(source.read(4), "little")
        source.read(4)  # unused half of a 64-bit field
        size = _numbers(source, dimensions)
        stride = _numbers(source, dimensions)
        (offset,) = _numbers(source, 1)
        storage = storages[str(storage_key)]
        tensors[str(key)] = PickledTensor(storage, offset, size, stride, storage.dtype)
    return tensors


def _numbers(source: Bounded, count: int) -> tuple[int, ...]:
    data = source.read(count * _WORD)
    return tuple(
        int.from_bytes(data[i : i + _WORD], "little", signed=True)
        for i in range(0, len(data), _WORD)
    )
