"""Signals that ask a run to stop, turned into a request that the loop obeys after its step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from r21d.processes import FROM_TERMINAL

_SIGNALS = (signal.SIGTERM, *FROM_TERMINAL)


class TrainingStopped(Exception):
    """A signal ended the run after ``step`` steps, whose state is saved.

    Attributes:
        signal: number of the signal.
        step: steps done.
    """

    def __init__(self, message: str, signal: int, step: int) -> None:
        super().__init__(message)
        self.signal = signal
        self.step = step


class StopRequest:
    """Remembers a SIGTERM, SIGINT or SIGHUP for as long as its ``with`` block lasts.

    ``answer`` is a line for stderr when the first one comes. A SIGINT when there is a request
    already raises KeyboardInterrupt: whoever presses Ctrl-C twice does not want to wait. Outside
    the main thread nothing is remembered, as Python runs no handlers there, and a signal that the
    process was started to ignore (nohup) stays ignored.

    Attributes:
        requested: number of the signal that came, or None.
    """

    def __init__(self, answer: str | None = None) -> None:
        self.requested: int | None = None
        self._answer = answer
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self.requested = None
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that is not Python's, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested is not None:
            raise KeyboardInterrupt
        if self.requested is None and self._answer is not None:
            # Not by print: the signal may have come amid one. And the terminal may be gone.
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.stderr.fileno(), f"{self._answer}\n".encode())
        self.requested = self.requested or number
