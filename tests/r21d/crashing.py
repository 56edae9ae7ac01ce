"""Functions for worker processes, which find them by name; most of them end the process."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

from r21d.video.examine import examine
from r21d.video.index import IndexRow
from r21d.video.scanning import Task


def look(task: Task) -> IndexRow:
    """Looks at a file, unless its name says that this is fatal."""
    if "crash" in task[1]:
        os.kill(os.getpid(), signal.SIGSEGV)
    return examine(*task)


def serve(connection: Connection, function: object) -> None:
    """A process that ends before it has begun."""
    os._exit(3)


def double(number: int) -> int:
    """Ends the process for 3."""
    if number == 3:
        os._exit(7)
    return 2 * number


def blocked(number: int) -> list[int]:
    """The signals that the process does not hear."""
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
