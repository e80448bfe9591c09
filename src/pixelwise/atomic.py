"""Writing a file so that it is either the old one or the new one, whatever happens meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def write(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file by way of a temporary neighbour, forced to disk before it takes the name.

    A process killed at any moment, or a disk that fills up, leaves the previous file whole.

    Args:
        path:    the file; its folder exists.
        content: what to write, or a function that writes to an open binary file.

    Raises:
        OSError: the folder cannot be written to or the disk is full; `filename` is set.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _named(error, path) from None
    except RuntimeError as error:
        # torch.save reports a failed write as an error of its own, raised over the real one.
        if isinstance(error.__context__, OSError):
            raise _named(error.__context__, path) from None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Add to the end of a text file.

    Raises:
        OSError: the file cannot be written to or the disk is full; `filename` is set.
    """
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise _named(error, path) from None


def _named(error: OSError, path: Path) -> OSError:
    """A failed write knows no name of its own; the user needs the one they gave."""
    return type(error)(error.errno, error.strerror or str(error), str(path))


def _sync_folder(folder: Path) -> None:
    """Force the new name to disk too; file systems without folder handles do so themselves."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
