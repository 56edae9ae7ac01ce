"""Imported by the server that forks `r21d.processes`: the program's other processes hear signals.

multiprocessing has one server for all, which passes its blocked signals on.
"""

from __future__ import annotations

import signal
from multiprocessing import current_process, util

from r21d.processes import FROM_TERMINAL, FreshProcess


def _hear(_: object) -> None:
    if not isinstance(current_process(), FreshProcess):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_TERMINAL)


util.register_after_fork(_hear, _hear)
