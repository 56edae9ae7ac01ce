"""Peak memory of one forward pass; the demo runs this as a process of its own.

``python -m r21d.cli.peak_memory --variant V --dtype D --seed S --threads N`` prints JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
from pathlib import Path

import torch

from r21d.cli.demo_product import CLIP, DTYPES, VARIANTS, prepare
from r21d.cli.stock_r2plus1d import build_stock


def measure_peak(variant: str, dtype: str, seed: int) -> float | None:
    """MiB by which this process's resident memory rises in its first forward pass.

    A pass over a tiny clip goes before, so that threads and libraries are in place. Linux only;
    None elsewhere.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(reset, os.W_OK):
        return None
    stock, _ = build_stock(seed)
    kind = getattr(torch, dtype)
    model, x = prepare(stock.to(kind), torch.randn(CLIP).to(kind), variant)
    del stock
    with torch.inference_mode():
        model(x[:, :, :2, :16, :16])
        _return_freed_memory()
        reset.write_text("5")  # sets VmHWM, the peak, to what is resident now
        before = _kib(status, "VmRSS")
        model(x)
    return (_kib(status, "VmHWM") - before) / 1024


def _return_freed_memory() -> None:
    """Give freed heap back to the system; reusing it would not show as a rise."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kib(status: Path, key: str) -> int:
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peak = measure_peak(args.variant, args.dtype, args.seed)
    print(json.dumps({"peak_extra_mib": peak}))


if __name__ == "__main__":
    _main()
