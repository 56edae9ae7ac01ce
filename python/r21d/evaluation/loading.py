"""The videos of a dataset, decoded by worker processes, in parts that fit into memory."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from r21d.processes import FROM_TERMINAL, fresh_processes

if TYPE_CHECKING:
    from r21d.evaluation.evaluate import ClipDataset


class Part(NamedTuple):
    """Some or all clips (k, 3, T, h, w) of a video, or the ``reason`` why they cannot be read."""

    video: int
    clips: Tensor
    labels: list[int]
    reason: str | None = None


class _Request(NamedTuple):
    video: int
    part: int
    of: int


class _Parts(Dataset[Part]):
    """Parts of ``dataset``'s items, where a video that fails to decode is no exception.

    An exception in a worker process would end the whole pass.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset: Any = dataset

    def __getitem__(self, request: _Request) -> Part:
        from r21d.video.reader import VideoError

        video, part, of = request
        try:
            item = self.dataset[video] if of == 1 else self.dataset.read_part(video, part)
        except VideoError as error:
            return Part(video, torch.empty(0), [], str(error))
        clips, label, _ = item
        if get_worker_info():
            # The queue would do it, but loses what finds no room in a thread that nobody watches.
            clips.share_memory_()
        several = isinstance(label, Tensor) and label.dim() == 1
        return Part(video, clips, label.nonzero().flatten().tolist() if several else [int(label)])


def group_parts(
    dataset: ClipDataset, groups: Sequence[range], workers: int, fresh: bool
) -> Iterator[Iterator[Part]]:
    """For each group of videos the parts of one after another; read each group to its end.

    ``fresh``: see `worker_options`.
    """
    requests = [[r for video in group for r in _requests(dataset, video)] for group in groups]
    loader = DataLoader(
        _Parts(dataset),
        None,
        sampler=[request for own in requests for request in own],
        **worker_options(workers, fresh),
    )
    parts = reading(loader)
    for own in requests:
        yield islice(parts, len(own))


def worker_options(workers: int, fresh: bool) -> dict[str, Any]:
    """Arguments of a DataLoader that decodes in ``workers`` processes.

    ``fresh`` workers are no copies of this process, whose other threads, those of
    torch.distributed, say, might hold a lock that a copy waits for in vain.
    """
    context = fresh_processes(["r21d.video", __name__]) if workers and fresh else None
    return {
        "num_workers": workers,
        "multiprocessing_context": context,
        "worker_init_fn": _begin,
    }


def reading(loader: DataLoader[Any]) -> Iterator[Any]:
    """``iter(loader)``, whose workers never keep this process from ending.

    multiprocessing asks them by SIGTERM as the process ends, and waits; `_begin` has them overhear
    the first one. As a rule they have ended with their iterator before, but not where an exception
    that is still being told of holds it.
    """
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    for process in set(multiprocessing.active_children()) - others:
        _started[process] = os.getpid()
    return batches


# Workers, and the process that started each: a copy of that has no say over them.
_started: WeakKeyDictionary[BaseProcess, int] = WeakKeyDictionary()


@atexit.register
def _end_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        # torch's handler would take this for an accident.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process, owner in list(_started.items()):
        if owner == os.getpid() and process.is_alive():
            process.kill()


def _begin(worker: int) -> None:
    """Let a worker outlive what asks its parent to stop, and end when the parent has ended.

    Ctrl-C, a closed terminal and torchrun reach every process of a group; the parent may still
    need clips for what it is about, and ends its workers itself. Where one hangs it has to do so
    by SIGTERM: the second of those ends the process.
    """
    for number in FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _once)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # DataLoader's workers look at the process that forked them: for a fresh one that is a server,
    # which lives on with its workers after a kill -9, and they with it.
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """Tell in one line that a worker process has died, or what it could not read.

    The former can come out anywhere.

    Raises:
        ChildProcessError: it has died, or it found no memory.
        VideoError: as in the worker, without the traceback that DataLoader makes part of it.
    """
    from r21d.video.reader import VideoError

    try:
        yield
    except VideoError as error:
        if not str(error).startswith("Caught VideoError in DataLoader worker"):
            raise
        raise VideoError(str(error).rpartition("VideoError: ")[2].strip()) from error
    except RuntimeError as error:
        lines = str(error).splitlines() or [""]
        died = lines[0].startswith("DataLoader worker")
        starved = any(text in lines[-1] for text in ("shared memory", "allocate memory"))
        if not died and not ("DataLoader worker" in lines[0] and starved):
            raise
        reason = lines[0 if died else -1].strip(" .")
        raise ChildProcessError(
            f"a decoding process failed ({reason}): as a rule for lack of memory, or of room in"
            " /dev/shm; lower workers (--workers), or give a container more (--shm-size). Several"
            ' processes also need a script\'s own code to be under if __name__ == "__main__"'
        ) from error


def _requests(dataset: Any, video: int) -> list[_Request]:
    parts = dataset.part_count(video) if hasattr(dataset, "part_count") else 1
    return [_Request(video, part, parts) for part in range(parts)]
