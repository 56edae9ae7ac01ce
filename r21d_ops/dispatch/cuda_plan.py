"""How the CUDA kernels would run a problem: the answer of ``csrc/cuda/planner.h``."""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

import torch

from r21d_ops import native
from r21d_ops.problem import Problem

#: Output frames that the fused kernel sums at a time, at most: ``kMostLive`` of the planner.
MOST_LIVE = 3


class Device(NamedTuple):
    """What the planner asks of a GPU.

    Attributes:
        multiprocessors: how many there are.
        shared_block, shared_multiprocessor: bytes of shared memory that a block may have (by
            opting in), and that a multiprocessor has.
        flops: operations a second of a large matrix product in 16 bits.
        bytes_per_second: read plus written, of a large copy.
    """

    multiprocessors: int
    shared_block: int
    shared_multiprocessor: int
    flops: float
    bytes_per_second: float


def cuda_plan(problem: Problem, device: Device, force: str = "") -> dict[str, Any] | None:
    """The plan, both ways of running ``problem``; None where the native library is not loaded.

    ``refusal`` says why neither way can run, or is None; then there are ``spatial`` and
    ``temporal`` (the two convolutions) and ``fused`` with a ``refusal`` of its own, each with its
    tile, grid, ``shared_bytes``, ``flops`` (padding included), ``bytes`` and ``seconds``;
    ``kernels``, the way that is estimated to be faster; and ``training``, the six kernels of a
    step, again with a ``refusal``. Time is an estimate.

    Args:
        problem: with plain integers.
        device: the GPU.
        force: parts of the plan that are not free, such as ``"fused.mids=48 spatial.columns=64"``
            or ``"spatial_weight.parts=4"``.

    Raises:
        RuntimeError: ``force`` names no part of a plan, or the problem has an empty output.
    """
    if native.load_error is not None:
        return None
    n, c, m, o = problem[2:6]
    t, h, w = problem.size
    rates = [round(device.flops / 1e9), round(device.bytes_per_second / 1e9)]
    answer = torch.ops.r21d.cuda_plan(
        [n, c, t, h, w, m, o],
        problem.kernel,
        problem.stride,
        problem.padding,
        [*device[:3], *rates],
        force,
    )
    plan: dict[str, Any] = json.loads(answer)
    return plan


@functools.lru_cache(maxsize=4096)
def training_seconds(problem: Problem, device: Device) -> float | None:
    """Estimated seconds of a training step; None where it cannot run."""
    plan = cuda_plan(problem, device)
    if plan is None or plan["refusal"] is not None or plan["training"]["refusal"] is not None:
        return None
    seconds: float = plan["training"]["seconds"]
    return seconds


@functools.lru_cache(maxsize=4096)
def ways(problem: Problem, device: Device) -> tuple[dict[str, float], str]:
    """Estimated seconds of ``fused`` and ``two``, those that can run, and why not ``fused``."""
    plan = cuda_plan(problem, device)
    if plan is None or plan["refusal"] is not None:
        return {}, "" if plan is None else plan["refusal"]
    refusal: str = plan["fused"]["refusal"] or ""
    fused = {} if refusal else {"fused": plan["fused_seconds"]}
    return {**fused, "two": plan["two_seconds"]}, refusal
