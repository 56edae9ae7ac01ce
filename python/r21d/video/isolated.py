"""A function run over many items by processes of its own, of which any may die."""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from r21d.processes import FROM_TERMINAL, fresh_processes

Item = TypeVar("Item")
Result = TypeVar("Result")

_READY = "ready"


@dataclass(frozen=True)
class Crash:
    """The process that worked on an item died; ``reason`` says of what."""

    reason: str


def run_isolated(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result | Crash]]:
    """Yield each item with ``function(item)``, in the order in which they are done.

    ``workers`` processes work on an item each. When one dies, by a fault in native code, say, its
    item comes with a `Crash` and another process takes its place. ``function`` is found by its
    name in its module; it must not raise, and the items and the results must be picklable.
    The processes leave SIGINT to this one, are stopped when the iterator is closed, and end by
    themselves when this process dies.

    Raises RuntimeError when the processes cannot start.
    """
    waiting = deque(items)
    team: dict[Any, _Worker[Item, Result]] = {}

    def hire() -> None:
        worker = _Worker(function)
        team[worker.connection] = worker

    try:
        for _ in range(min(workers, len(waiting))):
            hire()
        while team:
            for connection in wait(list(team)):
                worker = team[connection]
                done, outcome = worker.task, worker.outcome()
                if isinstance(outcome, Crash):
                    team.pop(connection).stop()
                    if not done:
                        raise RuntimeError(_not_started(outcome))
                    if len(waiting) > len(team):
                        hire()
                elif waiting:
                    worker.begin(waiting.popleft())
                else:
                    team.pop(connection).stop()
                if done:
                    yield done[0], outcome
    finally:
        for worker in team.values():
            worker.stop()


class _Worker(Generic[Item, Result]):
    """A process, and what it works on: ``task`` holds one item, or none before the first."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        context = fresh_processes([function.__module__])
        self.task: tuple[Item] | tuple[()] = ()
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, function), daemon=True)
        self._process.start()
        other.close()  # so that the process's death is the end of the connection

    def begin(self, item: Item) -> None:
        """Hand over an item; a process that has just died shows in `outcome`."""
        self.task = (item,)
        with contextlib.suppress(OSError):
            self.connection.send(item)

    def outcome(self) -> Any:
        """What the process sends next."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return Crash(_cause(self._process.exitcode))

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker process."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        # Of the rest a closed terminal is to end also one that hangs over a file.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_TERMINAL)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError):  # when the other side has gone
        connection.send(_READY)
        while True:
            connection.send(function(connection.recv()))


def _cause(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


def _not_started(crash: Crash) -> str:
    return (
        f"a worker process ended before its first item ({crash.reason}): a script that starts any"
        " must keep its own code under if __name__ == '__main__', or do without them (workers=0)"
    )
