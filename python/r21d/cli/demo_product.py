"""The demo's first part: a stock network and ``fuse`` of it, side by side."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import r21d_ops
from r21d.cli.stock_r2plus1d import build_stock
from r21d.cli.tables import print_table

VARIANTS = ("stock", "stock, channels_last_3d", "fuse(stock)")
DTYPES = ("float32", "bfloat16")
CLIP = (1, 3, 8, 112, 112)
_ROUNDS = 7
_QUICK_ROUNDS = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One network in one dtype."""

    variant: str
    dtype: str
    error: float
    """Largest error of a logit against stock layers in float64."""
    ulp: float
    """One unit in the last place of the largest logit."""
    seconds: list[float]
    peak_extra_mib: float | None
    """Memory beyond the network and the clip at the peak of a forward pass; None: not known."""
    peak_problem: str = ""
    """Why measuring it failed; empty where it did not."""


def compare(seed: int, quick: bool) -> tuple[list[Row], str]:
    """Measure every variant in every dtype; also says where the stock network comes from."""
    stock, source = build_stock(seed)
    clip = torch.randn(CLIP, generator=torch.Generator().manual_seed(seed))
    rows = []
    for dtype in DTYPES:
        network = copy.deepcopy(stock).to(getattr(torch, dtype))
        x = clip.to(getattr(torch, dtype))
        runs = {variant: prepare(network, x, variant) for variant in VARIANTS}
        with torch.inference_mode():
            exact = copy.deepcopy(network).double()(x.double())
            errors = {name: _error(model(y), exact) for name, (model, y) in runs.items()}
        ulp = _ulp(exact.abs().max(), getattr(torch, dtype))
        seconds = _interleaved(runs, _QUICK_ROUNDS if quick else _ROUNDS)
        for name in VARIANTS:
            peak, problem = (None, "") if quick else _peak_in_own_process(name, dtype, seed)
            rows.append(Row(name, dtype, errors[name], ulp, seconds[name], peak, problem))
    return rows, source


def prepare(stock: nn.Module, clip: Tensor, variant: str) -> tuple[nn.Module, Tensor]:
    """A variant's network and its input; ``stock`` is left as it is."""
    if variant == "fuse(stock)":
        return r21d_ops.fuse(stock), clip
    if variant == "stock":
        return stock, clip
    layout = torch.channels_last_3d
    model = copy.deepcopy(stock).to(memory_format=layout)  # type: ignore[call-overload]
    return model, clip.contiguous(memory_format=layout)


def show(rows: Sequence[Row], source: str) -> None:
    """Print the table."""
    size = "x".join(map(str, CLIP))
    threads = torch.get_num_threads()
    print(f"R(2+1)D-18 from {source}, clip {size}, eval, {threads} threads\n")
    cells = []
    for row in rows:
        low, median, high = _quartiles(row.seconds)
        reference = next(r for r in rows if r.dtype == row.dtype)
        ratio = _quartiles(reference.seconds)[1] / median
        peak = "n/a" if row.peak_extra_mib is None else f"{row.peak_extra_mib:.0f} MiB"
        spread = f"{1e3 * low:.0f}-{1e3 * high:.0f}"
        time_cells = (f"{1e3 * median:.0f} ms", spread, f"{ratio:.2f}x")
        cells.append((row.variant, row.dtype, *time_cells, peak, f"{row.error:.1e}"))
    headers = ("network", "dtype", "time", "quartiles", "speed", "extra memory", "logit error")
    print_table(headers, cells, right=(2, 3, 4, 5, 6))
    print(
        "\ntime: median of interleaved runs.  extra memory: how far the process's resident memory\n"
        "rose during one forward pass (VmHWM, a process of its own each).  logit error: largest\n"
        "difference from the stock layers in float64; same logits = at most twice stock's own."
    )
    for problem in dict.fromkeys(row.peak_problem for row in rows if row.peak_problem):
        print(f"n/a: measuring extra memory failed: {problem}")


def differences(rows: Sequence[Row]) -> list[str]:
    """Where ``fuse`` changed what the network computes: beyond twice the stock layers' error."""
    found = []
    for fused in (row for row in rows if row.variant == "fuse(stock)"):
        stock = next(r for r in rows if r.dtype == fused.dtype and r.variant == "stock")
        allowed = max(2 * stock.error, stock.ulp)
        # A NaN error fails the comparison, too.
        if not fused.error <= allowed:
            found.append(
                f"logits of fuse(stock) in {fused.dtype} are off by {fused.error:.2e}, allowed "
                f"are {allowed:.2e}: twice the error of the stock layers"
            )
    return found


def _error(logits: Tensor, exact: Tensor) -> float:
    return float((logits.double() - exact).abs().max())


def _ulp(value: Tensor, dtype: torch.dtype) -> float:
    return float(2.0 ** torch.floor(torch.log2(value)) * torch.finfo(dtype).eps)


def _interleaved(runs: dict[str, tuple[nn.Module, Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of ``rounds`` forward passes each, the variants taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, (model, x) in runs.items():
                start = time.perf_counter()
                model(x)
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _peak_in_own_process(variant: str, dtype: str, seed: int) -> tuple[float | None, str]:
    """MiB, or None and why measuring failed.

    In a process of its own, so that no earlier run's freed memory is there to reuse.
    """
    arguments = ["--variant", variant, "--dtype", dtype, "--seed", str(seed)]
    arguments += ["--threads", str(torch.get_num_threads())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "r21d.cli.peak_memory", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        # The last line of a traceback is the error; a killed process leaves none.
        return None, (error.stderr.strip().splitlines() or [str(error)])[-1]
    except OSError as error:
        return None, str(error)
    result: dict[str, Any] = json.loads(done.stdout)
    return result["peak_extra_mib"], ""
