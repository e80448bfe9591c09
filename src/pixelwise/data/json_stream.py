"""Read the large arrays of a JSON document one element at a time.

A COCO file of half a gigabyte becomes several gigabytes of Python objects when it is parsed at
once; here only one element and a few megabytes of text are alive.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from pixelwise.errors import DataError

_CHUNK = 1 << 22  # characters read at a time
_SPACE = " \t\r\n"


def read_json(path: Path, on_element: Mapping[str, Callable[[Any], None]]) -> dict[str, Any]:
    """Parse a JSON object; elements of some of its arrays are handed on instead of kept.

    Args:
        path:       the file, UTF-8 (a byte order mark is skipped).
        on_element: key of the top-level object → what to call with each element of its array.

    Returns:
        The other keys with their values.

    Raises:
        DataError: the file is missing, no JSON, cut off, or no object at the top.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            return _Reader(path, file).document(on_element)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path of the annotations") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: a folder where a JSON file was expected") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); is it really a JSON file?") from error


class _Reader:
    """A window of text that moves along the file."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path = path
        self._file = file
        self._text = ""
        self._at = 0
        self._passed = 0
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def document(self, on_element: Mapping[str, Callable[[Any], None]]) -> dict[str, Any]:
        rest: dict[str, Any] = {}
        self._expect("{")
        if self._peek() == "}":
            return rest
        while True:
            key = self._value()
            self._expect(":")
            if key in on_element and self._peek() == "[":
                self._elements(on_element[key])
            else:
                rest[str(key)] = self._value()
            separator = self._take()
            if separator == "}":
                return rest
            if separator != ",":
                raise self._broken(f"expected ',' or '}}', found {separator!r}")

    def _elements(self, call: Callable[[Any], None]) -> None:
        self._expect("[")
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            call(self._value())
            separator = self._take()
            if separator == "]":
                return
            if separator != ",":
                raise self._broken(f"expected ',' or ']', found {separator!r}")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._broken(error.msg) from error
            else:
                # A number at the end of the window may go on in the next one.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            self._read()

    def _peek(self) -> str:
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                raise self._broken("the file ends too early")
            self._read()

    def _take(self) -> str:
        found = self._peek()
        self._at += 1
        return found

    def _expect(self, wanted: str) -> None:
        found = self._take()
        if found != wanted:
            raise self._broken(f"expected {wanted!r}, found {found!r}")

    def _read(self) -> None:
        # What is left doubles when one value spans many chunks, so that re-parsing stays linear.
        more = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._ended = not more
        self._passed += self._at
        self._text = self._text[self._at :] + more
        self._at = 0

    def _broken(self, reason: str) -> DataError:
        return DataError(
            f"{self._path}: not valid JSON near character {self._passed + self._at} ({reason}); "
            f"it is probably cut off or edited by hand: export it again"
        )
