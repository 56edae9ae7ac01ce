"""The autotuner: which of a kernel's configurations is fastest here, found once and remembered.

A result is remembered in memory per GPU and problem, and on disk per GPU model and versions
(``cache.py``). The first of the configurations is the planner's own choice and serves wherever
nothing may be timed.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, cast

import torch

from r21d_ops.triton import INTERPRETED, cache

#: What timing one configuration may take, in milliseconds, beyond compiling it.
_BUDGET = 25.0
_FEWEST_RUNS = 5
_MOST_RUNS = 25
#: Not below the clock of any GPU in Hz, so that a pause is not shorter than asked for.
_CLOCK = 2.5e9

_logger = logging.getLogger(__name__)
_lock = threading.RLock()


class Config(Protocol):
    """Block sizes, warps, stages: a value that compares by its content."""

    @property
    def name(self) -> str:
        """Unique among the configurations of its operator, e.g. ``128x64x32-w4-s3``."""


ConfigT = TypeVar("ConfigT", bound=Config)

_winners: dict[tuple[str, int | None, tuple[Hashable, ...]], Config] = {}


def pick(
    operator: str,
    key: tuple[Hashable, ...],
    candidates: Sequence[ConfigT],
    launch: Callable[[ConfigT], object],
    device: torch.device,
) -> ConfigT:
    """The fastest of ``candidates``, or the first of them where nothing may be timed.

    That is: there is one candidate; ``device`` is not a GPU, or the kernels are interpreted;
    deterministic algorithms are asked for, since a timing must not decide the bits;
    ``R21D_AUTOTUNE=0``, read when a problem is first met; a CUDA graph is being captured and the
    problem was not met before.

    Args:
        operator: the kernel's name.
        key: all that the candidates and their times depend on, in integers, strings, booleans,
            dtypes and tuples of them.
        candidates: the configurations, the planner's choice first.
        launch: runs the kernel, and may do so any number of times: it overwrites its outputs, which
            afterwards are not those of the winner.
        device: where it runs.

    Raises:
        triton.TritonError: no candidate fits the GPU; the first one's error.
    """
    if (
        len(candidates) == 1
        or device.type != "cuda"
        or torch.are_deterministic_algorithms_enabled()
    ):
        return candidates[0]
    place = (operator, device.index, key)
    winner = _winners.get(place)
    if winner is None:
        if os.environ.get("R21D_AUTOTUNE") == "0" or _is_interpreted() or _is_capturing():
            return candidates[0]
        with _lock:
            winner = _winners.get(place)
            if winner is None:
                winner = _winners[place] = _find(operator, key, candidates, launch, device)
    return cast("ConfigT", winner)


def cache_files() -> list[Path]:
    """The files of results on this machine."""
    return cache.files()


def clear_cache() -> list[Path]:
    """Forgets every result, in memory and on disk; returns the files that were removed.

    Raises:
        OSError: a file cannot be removed.
    """
    with _lock:
        _winners.clear()
        return cache.clear()


def _find(
    operator: str,
    key: tuple[Hashable, ...],
    candidates: Sequence[ConfigT],
    launch: Callable[[ConfigT], object],
    device: torch.device,
) -> ConfigT:
    """The stored winner if it is still a candidate, else the fastest in a timing of all."""
    by_name = {config.name: config for config in candidates}
    owner = cache.machine(device)
    text = json.dumps([operator, *key], default=str)
    stored = cache.load(owner, text)
    if stored is not None and stored.winner in by_name:
        return by_name[stored.winner]
    times = _time_all(operator, candidates, launch, device)
    winner = min(times, key=times.__getitem__)
    _logger.info("tuned %s: %s is the fastest of %s ms", text, winner, _listing(times))
    cache.save(owner, text, cache.Result(winner, times))
    return by_name[winner]


def _time_all(
    operator: str,
    candidates: Sequence[ConfigT],
    launch: Callable[[ConfigT], object],
    device: torch.device,
) -> dict[str, float]:
    """Milliseconds by name, without the candidates that this GPU has no room for."""
    from triton.compiler.errors import CompileTimeAssertionFailure
    from triton.runtime.errors import OutOfResources, PTXASError

    times = {}
    refusals = []
    for config in candidates:
        try:
            times[config.name] = _time(functools.partial(launch, config), device)
        except (OutOfResources, PTXASError, CompileTimeAssertionFailure) as error:
            refusals.append(error)
            _logger.debug("%s: %s does not run here: %s", operator, config.name, error)
    if not times:
        raise refusals[0]
    return times


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of ``run`` on the GPU.

    L2 is not flushed in between: a layer's input has just been written by the layer before it.
    """
    with torch.cuda.device(device):
        run()  # compiles
        torch.cuda.synchronize()
        begin = time.perf_counter()
        estimate = _record(run)
        issue = time.perf_counter() - begin
        torch.cuda.synchronize()
        runs = int(_BUDGET / max(_elapsed(estimate), 1e-3))
        runs = max(_FEWEST_RUNS, min(_MOST_RUNS, runs))
        # A GPU that waits for the next launch would charge it to the kernel: give the host a lead.
        lead = min(issue * runs, _BUDGET * 1e-3)
        torch.cuda._sleep(int(lead * _CLOCK))
        marks = [_record(run) for _ in range(runs)]
        torch.cuda.synchronize()
        return statistics.median(map(_elapsed, marks))


_Marks = tuple[torch.cuda.Event, torch.cuda.Event]


def _record(run: Callable[[], object]) -> _Marks:
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    run()
    after.record()
    return before, after


def _elapsed(marks: _Marks) -> float:
    before, after = marks
    return before.elapsed_time(after)


def _listing(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {milliseconds:.4f}" for name, milliseconds in times.items())


def _is_interpreted() -> bool:
    return INTERPRETED


def _is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()
