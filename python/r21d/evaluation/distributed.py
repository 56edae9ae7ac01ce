"""Several processes on one evaluation: who they are, and what they tell each other."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# The others wait while the first process opens every file of a set that has no index.
_PATIENCE = datetime.timedelta(hours=6)


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
            reason = str(error).splitlines()[0]
            raise RankFailed(f"another process of the group ended early ({reason})") from error


@contextlib.contextmanager
def current_ranks() -> Iterator[Ranks]:
    """The processes of torch.distributed's default group, or this one alone where there is none."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        yield Ranks()
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
    several = dist.is_available() and dist.is_torchelastic_launched()
    started = several and not dist.is_initialized() and int(os.environ["WORLD_SIZE"]) > 1
    if started:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        with current_ranks() as ranks:
            yield ranks
    finally:
        if started:
            dist.destroy_process_group()


def local_rank() -> int:
    """The number of this process among those that torchrun started on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))
