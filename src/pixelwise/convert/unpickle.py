"""A reader of pickles that builds plain values and calls nothing that a file names.

A pickle is a program. Python's own reader runs it: `GLOBAL` imports any function by name and
`REDUCE` calls it, so that opening a stranger's checkpoint can do whatever its author wants. Here
the program is interpreted by a machine of ours, on the decoding of the standard library's
`pickletools`, which only disassembles.

What a hostile file may try, and what stands against it:

* *To run code.* Nothing is ever imported. A name is looked up in a table of ours (`Names`), whose
  entries build tensors' descriptions and plain containers. Any other class, of mmengine, argparse
  or detectron2, becomes a `Foreign`: a record of its name, arguments and state. A name that only
  an attack needs (`builtins.eval`, `os.system`, `torch.os.system`) refuses the whole file.
* *To use up memory.* A length that a file declares is compared with the bytes that are left before
  anything is allocated. Memo and stack are a dict and lists, so a forged index costs nothing. The
  number of instructions is bounded, and building a container from another counts its elements, so
  that a small file cannot copy a large list many times.
* *To use up time.* The bound on instructions, and one on the length of text lines.
* *To overflow the C stack.* The machine does not recurse, and keys of dictionaries and elements of
  sets are plain values or flat tuples, since Python hashes nested tuples recursively.
* *To reach beyond a buffer.* Tensors are described, not built, while a pickle is read; their bounds
  are checked when the description is turned into a tensor (`pixelwise.convert.pickled`).

What is left to the caller: a file can still hold weights that make a network useless.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO, Protocol, cast, runtime_checkable

# From a name ("collections.OrderedDict") to what stands for it: a function of ours that takes the
# arguments of that class, or a value.
Names = Mapping[str, Any]

MAX_STEPS = 1_000_000  # of one pickle; checkpoints have tens of thousands
_MAX_LINE = 1 << 20  # bytes of a line of text, as protocol 0 has it
_MAX_INTEGER = 1 << 62  # of a key; larger ones are forged to have one hash


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules of which no checkpoint needs a name, and what of the builtins is only data.
_HOSTILE = _words("""
    _io _pickle _posixsubprocess _operator _thread asyncio bdb builtins __builtin__ cProfile
    cloudpickle code codeop commands ctypes dill importlib inspect io joblib marshal multiprocessing
    nt operator os pdb pickle pip pkgutil platform popen2 posix posixpath profile pty pydoc runpy
    shelve shutil signal site smtplib socket sqlite3 ssl subprocess sys tempfile threading timeit
    trace turtle types urllib urllib2 venv webbrowser zipfile zipimport
""")
_HOSTILE_PARTS = _words("builtins __builtin__ os posix nt sys subprocess")
_PLAIN_NAMES = frozenset(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in _words("bool complex dict float int list long object range slice str tuple unicode")
) | _words("types.SimpleNamespace copyreg.__newobj__ copy_reg.__newobj__")
_DUNDER = re.compile(r"__\w+__$")
_DUNDER_MODULES = frozenset(["__main__", "__builtin__", "__torch__"])

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = _words("""
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING
    BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
""")
_FORMAT_MARKS = frozenset(["PROTO", "FRAME", "STOP"])
_REFUSED = {
    "EXT1": "an extension registry",
    "EXT2": "an extension registry",
    "EXT4": "an extension registry",
    "NEXT_BUFFER": "buffers outside the file",
    "READONLY_BUFFER": "buffers outside the file",
}


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle that asks for something which no checkpoint needs."""


@dataclass(eq=False)
class Foreign:
    """What stands for an object, or a class, that we do not build.

    Args:
        name:  its class, with the module.
        args:  what its constructor would have received; None for the class itself.
        state: what its attributes would have become.
        items: what would have been stored in it, if it was a kind of dict.
    """

    name: str
    args: tuple[Any, ...] | None = None
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def __repr__(self) -> str:
        return f"<{self.name}>"  # its parts may be nested deeply, or in a circle

    def attributes(self) -> dict[Any, Any]:
        """Its state as far as it is a plain dict."""
        return self.state if isinstance(self.state, dict) else {}


@runtime_checkable
class _WithState(Protocol):
    def set_state(self, state: Any) -> None: ...


class Bounded:
    """A part of a file, which never yields more than is there.

    Args:
        file: positioned at the start of the part.
        size: of the part, bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.left = size

    def read(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            pickle.UnpicklingError: fewer are left.
        """
        if not 0 <= count <= self.left:
            raise pickle.UnpicklingError(
                f"truncated or forged: {count} bytes are declared where {self.left} are left"
            )
        data = self._file.read(count)
        if len(data) != count:
            raise pickle.UnpicklingError("truncated: the file ends too early")
        self.left -= count
        return data

    def readline(self) -> bytes:
        """The bytes up to and with the next end of a line."""
        line = self._file.readline(min(self.left, _MAX_LINE))
        if len(line) == _MAX_LINE:
            raise pickle.UnpicklingError(f"a line of more than {_MAX_LINE} bytes")
        self.left -= len(line)
        return line


def load_pickle(
    source: Bounded,
    names: Names,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value that one pickle describes; the source stands behind it afterwards.

    Args:
        source:     where it begins.
        names:      what each known name stands for.
        persistent: what a persistent id stands for (a storage, in torch's files).

    Raises:
        UnsafePickleError: it asks for what no checkpoint needs.
        pickle.UnpicklingError: it is no pickle, damaged, or larger than any checkpoint.
    """
    machine = _Machine(names, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", source)):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0][:200]
        raise pickle.UnpicklingError(f"damaged pickle: {reason}") from error


class _Machine:
    """Stack, marks and memo of the pickle language; one method per family of instructions."""

    def __init__(self, names: Names, persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the marks
        self.memo: dict[int, Any] = {}
        self.steps = 0
        self.names = names
        self.persistent = persistent

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        self.charge(1)
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _REFUSED:
            raise UnsafePickleError(f"it asks for {_REFUSED[name]}, which no checkpoint needs")
        elif name not in _FORMAT_MARKS:
            _OPERATIONS[name](self, argument)

    def charge(self, steps: int) -> None:
        """Count work, and stop where it is more than any checkpoint needs."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise pickle.UnpicklingError(f"more than {MAX_STEPS:,} instructions")

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    # Stack and memo.

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def pop_mark(self, _: Any) -> None:
        self.marked()

    def dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    # Containers.

    def empty_list(self, _: Any) -> None:
        self.stack.append([])

    def empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def empty_set(self, _: Any) -> None:
        self.stack.append(set())

    def empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def list_(self, _: Any) -> None:
        items = self.marked()
        self.stack.append(items)

    def dict_(self, _: Any) -> None:
        items = self.marked()
        self.stack.append({})
        self._set_items(items)

    def frozenset_(self, _: Any) -> None:
        items = self.marked()
        self.stack.append(frozenset(map(hashable, items)))

    def tuple_(self, _: Any) -> None:
        items = self.marked()
        self.stack.append(tuple(items))

    def tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self.marked())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise TypeError(f"a {type(target).__name__} takes no elements")

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def set_items(self, _: Any) -> None:
        self._set_items(self.marked())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        mapping = target.items if isinstance(target, Foreign) else target
        if not isinstance(mapping, dict):
            raise TypeError(f"a {type(target).__name__} takes no items")
        for key, value in zip(items[::2], items[1::2], strict=True):
            mapping[hashable(key)] = value

    def add_items(self, _: Any) -> None:
        items, target = self.marked(), self.stack[-1]
        if isinstance(target, set):
            target.update(map(hashable, items))
        elif not isinstance(target, Foreign):
            raise TypeError(f"a {type(target).__name__} takes no elements")

    # Names and calls, none of which reaches anything outside.

    def global_(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self._look_up(module, name))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._look_up(str(module), str(name)))

    def _look_up(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.names:
            found = self.names[full]
            return _Builder(found) if callable(found) else found
        if full not in _PLAIN_NAMES and is_hostile(module, name):
            raise UnsafePickleError(
                f"it asks to call {full}, which no checkpoint needs; do not use this file"
            )
        return Foreign(full)

    def reduce(self, _: Any) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(callee, arguments))

    def new_object(self, _: Any) -> None:
        self.reduce(None)

    def new_object_ex(self, _: Any) -> None:
        self.stack.pop()  # keyword arguments
        self.reduce(None)

    def inst(self, argument: str) -> None:
        arguments = tuple(self.marked())
        self.global_(argument)
        self.stack.append(self._call(self.stack.pop(), arguments))

    def obj(self, _: Any) -> None:
        callee, *arguments = self.marked()
        self.stack.append(self._call(callee, tuple(arguments)))

    def _call(self, callee: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise TypeError("arguments that are no tuple")
        if isinstance(callee, _Builder):
            self.charge(sum(len(a) for a in arguments if isinstance(a, list | tuple | dict | set)))
            return callee.build(*arguments)
        if isinstance(callee, Foreign) and callee.args is None:
            return Foreign(callee.name, arguments)
        raise TypeError(f"{type(callee).__name__} is called, which is no class")

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Foreign):
            target.state = state
        elif isinstance(target, _WithState):
            target.set_state(state)

    def persistent_id(self, argument: Any) -> None:
        self.stack.append(argument)
        self.binary_persistent_id(None)

    def binary_persistent_id(self, _: Any) -> None:
        if self.persistent is None:
            raise pickle.UnpicklingError("it refers to storages, but is no file of torch.save")
        self.stack.append(self.persistent(self.stack.pop()))


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "EMPTY_LIST": _Machine.empty_list,
    "EMPTY_DICT": _Machine.empty_dict,
    "EMPTY_SET": _Machine.empty_set,
    "EMPTY_TUPLE": _Machine.empty_tuple,
    "LIST": _Machine.list_,
    "DICT": _Machine.dict_,
    "FROZENSET": _Machine.frozenset_,
    "TUPLE": _Machine.tuple_,
    "TUPLE1": _Machine.tuple1,
    "TUPLE2": _Machine.tuple2,
    "TUPLE3": _Machine.tuple3,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_id,
    "BINPERSID": _Machine.binary_persistent_id,
}


@dataclass(frozen=True)
class _Builder:
    """A name of the table: a function of ours, which a file can call but not otherwise reach."""

    build: Callable[..., Any]


def is_hostile(module: str, name: str) -> bool:
    """Whether only an attack asks for a name."""
    parts = f"{module}.{name}".split(".")
    return (
        parts[0] in _HOSTILE
        or any(part in _HOSTILE_PARTS for part in parts)
        or any(_DUNDER.match(part) and part not in _DUNDER_MODULES for part in parts)
    )


def hashable(value: Any) -> Any:
    """The same value, if it may be a key: plain, or a flat tuple of plain values.

    Raises:
        TypeError: anything else.
    """
    parts: Iterable[Any] = value if isinstance(value, tuple) else (value,)
    for part in parts:
        plain = isinstance(part, str | bytes | float | Foreign) or part is None
        if not plain and not (isinstance(part, int) and abs(part) < _MAX_INTEGER):
            raise TypeError(f"a {type(part).__name__} as a key")
    return value
