"""The videos of a dataset, decoded by worker processes, in parts that fit into memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

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

    ``fresh`` workers are no copies of this process, whose other threads, those of
    torch.distributed, say, might hold a lock that a copy waits for in vain.
    """
    requests = [[r for video in group for r in _requests(dataset, video)] for group in groups]
    loader = DataLoader(
        _Parts(dataset),
        None,
        sampler=[request for own in requests for request in own],
        num_workers=workers,
        multiprocessing_context=_fresh_processes() if workers and fresh else None,
    )
    parts = iter(loader)
    for own in requests:
        yield islice(parts, len(own))


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """Tell in one line that a worker process has died, which can come out anywhere.

    Raises:
        ChildProcessError: it has, or it found no memory.
    """
    try:
        yield
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


def _fresh_processes() -> Any:
    """How to start processes that are no copies of this one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing.forkserver import ensure_running

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["r21d.video", __name__])
    # A script without its guard runs again in each: without the address it cannot join the group
    # there in this process's place, at which all would wait for ever, but fails.
    address = os.environ.pop("MASTER_ADDR", None)
    try:
        ensure_running()
    finally:
        if address is not None:
            os.environ["MASTER_ADDR"] = address
    return context


def _requests(dataset: Any, video: int) -> list[_Request]:
    parts = dataset.part_count(video) if hasattr(dataset, "part_count") else 1
    return [_Request(video, part, parts) for part in range(parts)]
