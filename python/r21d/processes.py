"""Processes that are no copies of the one that starts them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from typing import Any

FROM_TERMINAL = {
    signal.Signals[name] for name in ("SIGINT", "SIGHUP") if name in signal.Signals.__members__
}
"""Signals that a terminal sends to all processes: for Ctrl-C, and when it is closed."""

if "forkserver" in multiprocessing.get_all_start_methods():
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    class FreshProcess(ForkServerProcess):
        """A process of `fresh_processes`, which starts with `FROM_TERMINAL` blocked."""

    class _FreshContext(ForkServerContext):
        Process = FreshProcess


def fresh_processes(preload: Sequence[str]) -> Any:
    """The context to start processes with that hold none of this one's locks and threads.

    A server without threads forks them, where there is one on this system, with the modules
    ``preload`` imported: a copy of this process could hold a lock that a thread of torch or FFmpeg
    holds, and to start each afresh takes seconds of imports. They have to say themselves how they
    take the signals of `FROM_TERMINAL`: until then these may be blocked.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = _FreshContext()
    context.set_forkserver_preload([*preload, "r21d.forked"])
    _start_server()
    return context


def _start_server() -> None:
    """Start the server deaf to `FROM_TERMINAL`: it has to outlive what its children outlive.

    SIGINT would also end its imports with a traceback.

    Signals that this thread blocks stay blocked in what it starts meanwhile.
    """
    # Windows has neither.
    from multiprocessing import forkserver, resource_tracker

    # The tracker's start, a part of the server's, would unblock SIGINT before that of the rest.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FROM_TERMINAL)
    # A script without its guard runs again in each process: without the address it cannot join the
    # group there in this process's place, at which all would wait for ever, but fails.
    address = os.environ.pop("MASTER_ADDR", None)
    try:
        forkserver.ensure_running()
    finally:
        if address is not None:
            os.environ["MASTER_ADDR"] = address
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
