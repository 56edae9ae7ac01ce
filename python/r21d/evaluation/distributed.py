"""Several processes on one evaluation or training: who they are, and what they tell each other."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# The others wait while the first process opens every file of a set that has no index.
_PATIENCE = datetime.timedelta(hours=6)
# Seconds until all processes have started: some may have to read Python from a slow disk.
_ARRIVAL = 600
# What `Ranks.agree` marks errors with that it has told the other processes of.
_TOLD = "_r21d_told"
# The patient group of the processes that `launched_ranks` tied together.
_talk: Any = None


class RankFailed(RuntimeError):
    """Another process of the group failed, so that this one had to stop; the message says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``world`` of them, which talk over gloo; alone by default.

    Every method is collective: all processes call it, in the same order. A process that ended
    without a word makes it raise `RankFailed`.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    def gather(self, value: T) -> list[T]:
        """Every process's ``value``, by rank, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self._others_alive():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: T | None) -> T:
        """The first process's ``value`` in every process."""
        values = [value]
        if self.world > 1:
            with self._others_alive():
                dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]  # type: ignore[return-value]

    def agree(self, error: Exception | None = None) -> None:
        """Go on where no process has an ``error``.

        Raises:
            Exception: this process's own ``error``.
            RankFailed: another has one.
        """
        if self.world == 1:
            if error is not None:
                raise error
            return
        failed = torch.tensor(int(error is not None))
        with self._others_alive():
            dist.all_reduce(failed, dist.ReduceOp.MAX, group=self.group)
        if not failed:
            return
        message = None if error is None else f"{type(error).__name__}: {error}"
        messages = [(rank, text) for rank, text in enumerate(self.gather(message)) if text]
        if error is not None:
            setattr(error, _TOLD, True)
            raise error
        told = [f"process {rank} of {self.world}: {text}" for rank, text in messages]
        raise RankFailed("; ".join(told))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes leave normally, or all by an error.

        Nothing collective may happen inside.
        """
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.agree(error)

    @contextlib.contextmanager
    def _others_alive(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ended_early(error) from error


def was_told(error: BaseException) -> bool:
    """Whether the other processes know of this one's ``error``, or of what has caused it."""
    if isinstance(error, RankFailed) or hasattr(error, _TOLD):
        return True
    return error.__cause__ is not None and was_told(error.__cause__)


def ended_early(error: RuntimeError) -> RankFailed:
    """What an error of communication means: gloo names its source files, and wishes luck."""
    reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]
    return RankFailed(f"another process of the group ended early, or hangs ({reason})")


@contextlib.contextmanager
def current_ranks() -> Iterator[Ranks]:
    """The processes of torch.distributed's default group, or this one alone where there is none."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        yield Ranks()
    elif _talk is not None:
        yield Ranks(dist.get_rank(), dist.get_world_size(), _talk)
    elif dist.get_backend() == "gloo":
        yield Ranks(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    else:
        # Scores travel as Python objects, which NCCL would take through GPU memory.
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size(), group)
        finally:
            dist.destroy_process_group(group)


@contextlib.contextmanager
def torchrun_ranks() -> Iterator[Ranks]:
    """The processes that torchrun started, tied together while this lasts; else this one alone."""
    with launched_ranks("gloo", _PATIENCE) as ranks:
        yield ranks


@contextlib.contextmanager
def launched_ranks(backend: str, timeout: datetime.timedelta) -> Iterator[Ranks]:
    """`torchrun_ranks` with a default group of that ``backend`` and ``timeout``.

    What the processes tell each other as `Ranks` goes through a group of its own, over gloo and
    with hours of patience: one of them may have to open every file of a data set.
    """
    global _talk
    several = dist.is_available() and dist.is_torchelastic_launched()
    if not several or dist.is_initialized() or int(os.environ["WORLD_SIZE"]) == 1:
        with current_ranks() as ranks:
            yield ranks
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    store = fresh_store(store, rank, world)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    try:
        _talk = dist.new_group(backend="gloo", timeout=_PATIENCE)
        with current_ranks() as ranks:
            yield ranks
    except RankFailed:
        # NCCL would wait for what it still expects of the process that is gone.
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    except BaseException:
        dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        _talk = None


def fresh_store(store: Any, rank: int, world: int) -> Any:
    """A part of ``store`` that nothing was written into; collective.

    After a restart torchrun (2.13) gives the new processes the store of those that died, in which
    they would find the addresses of the dead (pytorch#135712), and hang or fail. Nor is the number
    of restarts the same on all machines. So the first process names a part, and tells each other
    one under a name that this one has just made up; what dead ones made up is told to nobody.

    Raises:
        RankFailed: a process has not come for minutes.
    """
    own = f"r21d/{uuid.uuid4().hex}"
    if rank:
        store.set(f"r21d/{rank}", own)
        try:
            name = store.get(own).decode()
        except RuntimeError as error:
            raise ended_early(error) from error
        store.add(name, 1)
        return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    told: set[str] = set()
    deadline = time.monotonic() + _ARRIVAL
    while store.add(own, 0) < world - 1:
        for other in range(1, world):
            if store.check([f"r21d/{other}"]):
                name = store.get(f"r21d/{other}").decode()
                if name not in told:
                    store.set(name, own)
                    told.add(name)
        if time.monotonic() > deadline:
            raise RankFailed(f"not all of the {world} processes have come in {_ARRIVAL} seconds")
        time.sleep(0.01)
    return dist.PrefixStore(own, store)  # type: ignore[attr-defined]


def local_rank() -> int:
    """The number of this process among those that torchrun started on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))
