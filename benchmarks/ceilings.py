"""What the machine can do, measured in the run itself: arithmetic by a matrix product, and copying.

Each is the best of a few repetitions: a ceiling, not a typical value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

TF32 = "tf32"


@dataclass(frozen=True)
class Ceilings:
    """Floating-point operations a second by dtype, and bytes a second (read plus written)."""

    flops: Mapping[str, float]
    bytes_per_second: float

    def floor(self, flops: int, traffic: int, dtype: str) -> float:
        """Seconds below which direct convolution cannot go: the larger of compute and traffic."""
        return max(flops / self.flops[dtype], traffic / self.bytes_per_second)


def _best(call: Callable[[], object], device: str, repeats: int) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        if device == "cuda":
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - begin)
    return best


def _matmul(device: str, dtype: torch.dtype, size: int, repeats: int) -> float:
    # Random data: a product of zeros runs faster on some devices, for want of switching.
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _best(lambda: torch.mm(a, b, out=out), device, repeats)


def measure_ceilings(device: str, *, quick: bool = False, shrink: int = 1) -> Ceilings:
    """Matrix products in float32 and bfloat16 (tf32 too on CUDA), and a large copy."""
    size = (8192 if device == "cuda" else 2048) // shrink
    repeats = 5 if quick else 10
    flops = {
        "float32": _matmul(device, torch.float32, size, repeats),
        "bfloat16": _matmul(device, torch.bfloat16, size, repeats),
    }
    if device == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            flops[TF32] = _matmul(device, torch.float32, size, repeats)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    count = (2**30 if device == "cuda" else 2**26) // shrink
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device, repeats)
    return Ceilings(flops, 2 * count * source.element_size() / seconds)
