"""Stopping a run on purpose: Ctrl-C and SIGTERM let the step end, save, and leave with 130."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pixelwise.errors import PixelwiseError


class TrainingInterrupted(PixelwiseError):  # noqa: N818  (nothing went wrong)
    """A run was stopped by a signal; its state is saved."""

    exit_code = 130

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(
            f"interrupted at step {step}; go on with: pixelwise train --resume {folder}"
        )


class _StopNow(BaseException):  # no Exception: nothing on its way may swallow it
    """Raised where waiting for the end of a step would take too long."""


class StopSignal:
    """Whether SIGINT or SIGTERM arrived; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False

    @contextmanager
    def watching(self) -> Generator[None]:
        """Catch the signals inside the block (in the main thread; elsewhere none arrive)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before: list[Any] = [signal.signal(number, self._receive) for number in caught]
        try:
            yield
        finally:
            for number, handler in zip(caught, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Generator[None]:
        """A part whose work is repeated after resuming: a signal ends the block at once."""
        self._at_once = True
        try:
            yield
        except _StopNow:
            pass
        finally:
            self._at_once = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested and not self._at_once:
            raise KeyboardInterrupt  # the second time: the user will not wait
        self.requested = True
        if self._at_once:
            raise _StopNow
