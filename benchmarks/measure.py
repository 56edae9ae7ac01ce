"""Timing: all peers of a case in interleaved rounds, on the host's clock or the device's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: Called with the round's number; returns seconds of one call.
Sampler = Callable[[int], float]


@dataclass(frozen=True)
class Rounds:
    """How long to measure a case.

    Rounds are added until ``seconds`` are spent, but at least ``least`` and at most ``most``.
    """

    least: int = 7
    most: int = 40
    seconds: float = 6.0


def host_sampler(call: Callable[[Any], Any], inputs: Sequence[Any]) -> Sampler:
    """Times one call on the host's clock, right after an untimed one.

    The untimed call gives each peer its own caches and thread pool again, which the peer before it
    in the round has taken.
    """

    def sample(number: int) -> float:
        x = inputs[number % len(inputs)]
        call(x)
        start = time.perf_counter()
        result = call(x)
        elapsed = time.perf_counter() - start
        del result
        return elapsed

    return sample


def device_sampler(call: Callable[[Any], Any], inputs: Sequence[Any]) -> tuple[Sampler, str]:
    """Times one pass over all inputs with CUDA events, as a CUDA graph where it can be captured.

    Several inputs, together larger than the L2 cache, keep the cache from serving them. Returns
    the sampler and how it times: ``"graph"``, or ``"stream: <why there is no graph>"``.
    """
    _warm_up_on_side_stream(call, inputs)
    how = "graph"
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [call(x) for x in inputs]
        run = graph.replay
    except RuntimeError as error:
        torch.cuda.synchronize()
        kept = []
        how = f"stream: {_first_line(error)}"

        def run() -> None:
            for x in inputs:
                call(x)

    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)

    def sample(number: int) -> float:
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / max(len(inputs), len(kept))

    return sample, how


def _warm_up_on_side_stream(call: Callable[[Any], Any], inputs: Sequence[Any]) -> None:
    # Capture needs every lazy allocation and autotuning to be over, on a stream of its own.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            for x in inputs:
                call(x)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()


def interleave(
    samplers: Mapping[str, Sampler],
    rounds: Rounds,
    *,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Samples of every peer, one a round: A B C, B C A, C A B, …

    Sample i of every peer comes from round i, so that ratios can be taken within a round. The
    peer that begins changes from round to round. ``warmup`` rounds before the first are not kept.
    """
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup):
        for name in names:
            samplers[name](number)
    start = clock()
    number = 0
    while names and number < rounds.most:
        if number >= rounds.least and clock() - start >= rounds.seconds:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(samplers[name](number))
        number += 1
    return samples


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile (linear interpolation between samples).

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("samples must hold at least one value, got none")
    ordered = sorted(samples)

    def at(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return at(0.25), at(0.5), at(0.75)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
