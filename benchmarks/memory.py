"""Peak extra memory of one call, measured.

On the host: growth of the process's peak resident memory (VmHWM after resetting it, Linux) while
the warm call runs. Every page that the call touches counts, whoever allocated it: torch, oneDNN's
scratch, a kernel's own buffers, and the output. So that freed blocks do not hide the call's needs,
free memory goes back to the system first and glibc is told to map every larger block afresh. Not
seen: memory that a peer keeps from one call to the next, such as the arenas of ONNX Runtime and
OpenVINO, for which therefore nothing is reported. Resolution: about half a megabyte, the kernel's
own counting. Chosen over torch's profiler because that one sees torch's allocator alone.

On a CUDA device: growth of the caching allocator's peak, output included.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HOST_METHOD = "resident: growth of VmHWM during one warm call, output included"
DEVICE_METHOD = "allocated: growth of torch.cuda.max_memory_allocated during one call, output incl."

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_SMALL = 64 << 10
# The largest value that glibc's own, moving threshold settles on: blocks below it are reused
# without new page faults. It stops moving once it was set, so timing sets it to this.
_SETTLED = 32 << 20


def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def settle_allocator() -> None:
    """Puts glibc's malloc in the state that a long-running process reaches; nothing elsewhere."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _SETTLED)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _SETTLED)


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def resident_peak() -> int | None:
    """The most bytes that this process has held since the last call of :func:`host_peak` began.

    None where the system cannot tell.
    """
    try:
        return _status_bytes("VmHWM")
    except OSError:
        return None


def host_peak(call: Callable[[], Any], repeats: int = 3) -> int | None:
    """Median over ``repeats`` of the peak resident bytes that ``call`` adds.

    None where the system cannot tell (not Linux with glibc, or the peak cannot be reset).
    """
    libc = _libc()
    if libc is None:
        return None
    peaks = []
    libc.mallopt(_M_MMAP_THRESHOLD, _SMALL)
    try:
        call()
        gc.collect()
        for _ in range(repeats):
            libc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = _status_bytes("VmHWM")
            result = call()
            peaks.append(_status_bytes("VmHWM") - before)
            del result
    except OSError:
        return None
    finally:
        settle_allocator()
    return int(statistics.median(peaks))


def device_peak(call: Callable[[], Any]) -> int:
    """Peak bytes that ``call`` adds in the CUDA caching allocator."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
