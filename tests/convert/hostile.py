"""Checkpoint files that an attacker or an accident may make, and what is said of each.

Pickles are assembled from instructions, since no honest writer makes them.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.zeros(3)}


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module: str, name: str, argument: str = "touch owned") -> bytes:
    """A whole pickle: {"model": module.name(argument)}."""
    inner = f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R"
    return b"\x80\x02}" + text("model") + inner + b"s."


def stack_call(module: str, name: str) -> bytes:
    """The same, with the name on the stack, as protocol 4 has it."""
    return b"\x80\x04}" + text("model") + text(module) + text(name) + b"\x93)Rs."


def torch_zip(program: bytes, storages: dict[str, bytes] | None = None, **entries: bytes) -> bytes:
    """A file of torch.save with this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def tensor(
    size: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    *,
    offset: int = 0,
    numel: int = 2,
    key: str = "0",
    names: tuple[str, ...] = ("a",),
) -> bytes:
    """A pickle of {name: tensor, ...}, all of one storage."""

    def number(value: int) -> bytes:
        data = pickle.encode_long(value)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    program = b"\x80\x02}"
    for name in names:
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
        storage += number(numel) + b"tQ"
        view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size)
        view += numbers(stride) + b"\x89" + b"ccollections\nOrderedDict\n)R" + b"tR"
        program += text(name) + view + b"s"
    return program + b"."


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def legacy(content: Any) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def old_tar(*, offset: int = 0, dimensions: int = 2) -> bytes:
    """torch's first format: storages, tensors and the pickle in a tar archive."""
    storages = pickle.dumps(1, 2) + b"\x80\x02" + text("7") + text("cpu")
    storages += b"ctorch\nFloatStorage\n\x87." + struct.pack("<q", 6)
    storages += np.arange(6, dtype="<f4").tobytes() + pickle.dumps([], 2)
    tensors = pickle.dumps(1, 2) + b"\x80\x02" + text("9") + text("7")
    tensors += b"ctorch\nFloatTensor\n\x87." + struct.pack("<ii", dimensions, 0)
    tensors += struct.pack("<qq", 2, 3) + struct.pack("<qq", 3, 1) + struct.pack("<q", offset)
    program = b"\x80\x02}" + text("a") + text("9") + b"Qs."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        parts = {"sys_info": pickle.dumps({}, 2), "storages": storages, "tensors": tensors}
        for name, data in {**parts, "pickle": program}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def npz(arrays: dict[str, np.ndarray], *, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy_header(shape: str) -> bytes:
    """An .npz whose one array declares this shape and has no data."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", data)
    return file.getvalue()


def zip_bomb() -> bytes:
    """A torch archive whose one storage is 128 MB of zeros, compressed a thousand times."""
    file = io.BytesIO()
    count = 1 << 25
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", tensor((count,), numel=count))
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(128):
                entry.write(bytes(1 << 20))
    return file.getvalue()


def overlapping_entries() -> bytes:
    """A zip whose directory lists the same megabyte a thousand times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", tensor(numel=1 << 18))
        archive.writestr("archive/data/0", bytes(1 << 20))
        entry = archive.infolist()[-1]
        for i in range(1, 1000):
            copy = zipfile.ZipInfo(f"archive/data/{i}")
            copy.header_offset, copy.file_size = entry.header_offset, entry.file_size
            copy.compress_size, copy.CRC = entry.compress_size, entry.CRC
            archive.filelist.append(copy)
    return file.getvalue()


def array(kind: bytes, shape: tuple[int, ...], data: bytes) -> bytes:
    """A plain pickle of one numpy array with this state."""
    program = b"\x80\x02}" + text("a") + b"cnumpy.core.multiarray\n_reconstruct\n"
    program += b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + pickle.dumps(shape, 2)[2:-1]
    program += b"cnumpy\ndtype\n" + text(kind.decode()) + b"K\x00K\x01\x87R"
    program += b"\x89T" + struct.pack("<i", len(data)) + data + b"tbs."
    return program


def copied_list() -> bytes:
    """A list of 100,000 numbers that a hundred thousand dictionaries would be made from."""
    pairs = b"](" + b"K\x00K\x01\x86" * 100_000 + b"eq\x00"
    return b"\x80\x02" + pairs + b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 100_000 + b"l."


def nested(opening: bytes, depth: int, closing: bytes) -> bytes:
    return b"\x80\x02" + opening * depth + closing


# name → bytes and a regular expression of what is said about it.
UNSAFE: dict[str, tuple[Callable[[], bytes], str]] = {
    "os.system": (lambda: call("os", "system"), r"asks to call os\.system"),
    "posix.system": (lambda: call("posix", "system"), r"asks to call posix\.system"),
    "eval": (lambda: call("builtins", "eval"), r"asks to call builtins\.eval"),
    "eval of Python 2": (lambda: call("__builtin__", "eval"), r"asks to call __builtin__\.eval"),
    "getattr": (lambda: call("builtins", "getattr"), r"builtins\.getattr"),
    "import": (lambda: call("builtins", "__import__"), r"builtins\.__import__"),
    "subprocess": (lambda: call("subprocess", "Popen"), r"subprocess\.Popen"),
    "runpy": (lambda: call("runpy", "run_path"), r"runpy\.run_path"),
    "nested unpickling": (lambda: call("pickle", "loads"), r"pickle\.loads"),
    "a module's module": (lambda: stack_call("torch", "os.system"), r"torch\.os\.system"),
    "dunder attribute": (lambda: stack_call("torch", "Tensor.__class__"), r"__class__"),
    "on the stack": (lambda: stack_call("os", "system"), r"asks to call os\.system"),
    "INST": (lambda: b"(X\x02\x00\x00\x00idios\nsystem\n.", r"os\.system"),
    "OBJ": (lambda: b"(cos\nsystem\nX\x02\x00\x00\x00ido.", r"os\.system"),
    "extension registry": (lambda: b"\x80\x02\x82\x01.", "extension registry"),
    "in a zip of torch": (lambda: torch_zip(call("os", "system")), r"os\.system"),
    "in torch's legacy format": (
        lambda: legacy({"model": STATE, "x": Calls(exec, "1")}),
        r"builtins\.exec|__builtin__\.exec",
    ),
    "beside a good state dict": (lambda: saved({"model": STATE, "x": Calls(eval, "1")}), r"eval"),
    "as a storage": (
        lambda: torch_zip(b"\x80\x02}X\x01\x00\x00\x00a(cos\nsystem\nX\x01\x00\x00\x000tQs."),
        r"os\.system",
    ),
}
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "no state dict": (lambda: pickle.dumps([1, 2, 3]), "not a state dict"),
    "no tensors": (lambda: pickle.dumps({"model": {"a": 1}}), "no tensors"),
    "wraps itself": (lambda: b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.", "no tensors"),
    "huge bytes": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".", "declared"),
    "huge text": (lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".", "declared"),
    "huge bytearray": (lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "declared"),
    "huge number": (lambda: b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b".", "declared"),
    "huge frame": (lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.", "no|not"),
    "memo index": (lambda: b"\x80\x02Nr" + struct.pack("<I", 0xFFFFFFF0) + b".", "not a state"),
    "stack underflow": (lambda: b"\x80\x020.", "damaged"),
    "no mark": (lambda: b"\x80\x02e.", "damaged"),
    "unknown memo": (lambda: b"\x80\x02h\x07.", "damaged"),
    "call of a number": (lambda: b"\x80\x02K\x01)R.", "damaged"),
    "call of a made object": (lambda: b"\x80\x02ca\nb\n)R)R.", "damaged"),
    "many instructions": (lambda: b"\x80\x02" + b"N0" * 600_000 + b"N.", "instructions"),
    "many objects": (lambda: b"\x80\x02(" + b"\x8f" * 1_000_001 + b"l.", "instructions"),
    "copied list": (copied_list, "instructions"),
    "long line": (lambda: b"I" + b"1" * 5_000_000 + b"\n.", "seems to be text"),
    "many digits": (lambda: b"L" + b"1" * 900_000 + b"L\n.", "seems to be text"),
    "deep list": (lambda: nested(b"(", 200_000, b"l" * 200_000 + b"."), "not a state dict"),
    "deep key": (lambda: nested(b")", 1, b"\x85" * 100_000 + b"q\x00}h\x00Ns."), "as a key"),
    "deep wrapping": (
        lambda: b"\x80\x02" + b"}X\x05\x00\x00\x00model" * 1000 + b"}" + b"s" * 1000 + b".",
        "no tensors",
    ),
    "keys of one hash": (
        lambda: b"\x80\x02}\x8a\x09" + ((1 << 61) - 1 << 4).to_bytes(9, "little") + b"Ns.",
        "as a key",
    ),
    "no storage": (lambda: torch_zip(tensor()), "lacks the storage"),
    "path as a storage": (
        lambda: torch_zip(tensor(key="../../../../etc/passwd")),
        "lacks the storage",
    ),
    "storage too small": (lambda: torch_zip(tensor(numel=9), {"0": bytes(8)}), "forged"),
    "huge storage": (lambda: torch_zip(tensor(numel=1 << 60), {"0": bytes(8)}), "forged"),
    "negative storage": (lambda: torch_zip(tensor(numel=-1), {"0": bytes(8)}), "unknown type or"),
    "beyond its storage": (lambda: torch_zip(tensor((3,)), {"0": bytes(8)}), "beyond"),
    "offset": (lambda: torch_zip(tensor(offset=1), {"0": bytes(8)}), "beyond"),
    "stride": (lambda: torch_zip(tensor(stride=(1 << 40,)), {"0": bytes(8)}), "beyond"),
    "negative offset": (lambda: torch_zip(tensor(offset=-1), {"0": bytes(8)}), "impossible"),
    "negative stride": (lambda: torch_zip(tensor(stride=(-1,)), {"0": bytes(8)}), "impossible"),
    "negative size": (lambda: torch_zip(tensor((-2,)), {"0": bytes(8)}), "impossible"),
    "other dimensions": (lambda: torch_zip(tensor((1, 2)), {"0": bytes(8)}), "impossible"),
    "expanded": (
        lambda: torch_zip(tensor((1 << 30, 1 << 30), (0, 0)), {"0": bytes(8)}),
        "more numbers",
    ),
    "shared a thousand times": (
        lambda: torch_zip(
            tensor((1 << 18,), numel=1 << 18, names=tuple(f"t{i}" for i in range(1000))),
            {"0": bytes(1 << 20)},
        ),
        "look at",
    ),
    "big-endian": (lambda: torch_zip(tensor(), {"0": bytes(8)}, byteorder=b"big"), "byte order"),
    "TorchScript": (lambda: torch_zip(tensor(), {"0": bytes(8)}, **{"constants.pkl": b""}), "jit"),
    "zip bomb": (zip_bomb, "unpacks to"),
    "overlapping entries": (overlapping_entries, "unpacks to|Overlapped|forged"),
    "other zip": (lambda: torch_zip(b"")[:0] + npz({}), "archive|zip"),
    "truncated zip": (lambda: saved(STATE)[:-200], "zip"),
    "truncated legacy": (lambda: legacy(STATE)[:-20], "truncated"),
    "legacy of another version": (
        lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(7, 2),
        "version",
    ),
    "legacy, big-endian": (
        lambda: b"".join(
            pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False})
        ),
        "byte order",
    ),
    "legacy, other size": (
        lambda: legacy(STATE).replace(struct.pack("<q", 12), struct.pack("<q", 13)),
        "not of the size|truncated",
    ),
    "tar without parts": (lambda: old_tar().replace(b"tensors\0", b"nothing\0"), "tar"),
    "tar, beyond its storage": (lambda: old_tar(offset=1), "beyond"),
    "tar, many dimensions": (lambda: old_tar(dimensions=1 << 20), "declared"),
    "array too small": (lambda: array(b"f4", (100,), bytes(8)), "declared"),
    "huge array": (lambda: array(b"f4", (1 << 40,), bytes(8)), "declared"),
    "huge array of nothing": (lambda: array(b"f4", (0, 1 << 60), b""), "impossible|declared"),
    "npz of another size": (lambda: npy_header("(1099511627776,)"), "declared"),
    "npz with code": (lambda: npy_header("__import__('os').system('id')"), "can be read"),
    "npz of objects": (lambda: npz({"a": np.array([{}], dtype=object)}), "no tensors"),
    "npz bomb": (lambda: npz({"a": np.zeros(1 << 21)}, compressed=True), "unpacks to"),
    "safetensors, forged": (lambda: struct.pack("<Q", 1 << 50) + b"{}", "can be read"),
    "safetensors, truncated": (
        lambda: struct.pack("<Q", 200) + b'{"a":{"dtype":"F32"',
        "can be read",
    ),
}
