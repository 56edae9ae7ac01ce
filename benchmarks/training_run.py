"""What a run's training step costs with (2+1)D convolutions fused, and with torch's own layers.

    python -m benchmarks.training_run                    # this CPU, about ten minutes
    python -m benchmarks.training_run --device cuda
    python -m benchmarks.training_run --report FILE      # the table of an earlier run

A step is r21d.training's own: forward, loss, backward, gradient norm, check, SGD with Nesterov
momentum. Every way has the same weights, clips and settings:

    fused               the network as ``create_model`` builds it
    fused, recompute    the same, the middle of each convolution computed again in backward
    stock               ``r21d train --no-fused``: each convolution's layers one by one, as torch.nn
                        runs them, weights and clips NDHWC as above
    stock, NCDHW        the same in torch's default layout
    stock, in place     stock with torchvision's blocks, which add their shortcut in place

Times: all ways in interleaved rounds in one process. Memory: each way in a process of its own, the
growth during one warm step (what the step itself needs: activations, gradients, workspaces) and, of
the whole process, its peak with torch, weights and momentum in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.measure import Rounds, Sampler, interleave, quartiles
from benchmarks.results import RESULTS, provenance, write_run
from benchmarks.workloads import stock_twin
from r21d import create_model
from r21d.evaluation.distributed import current_ranks
from r21d.training import TrainConfig
from r21d.training.logs import StepTimer
from r21d.training.network import as_stock
from r21d.training.step import Learner
from r21d_ops import Conv2Plus1D

KIND = "training"
WAYS = ("fused", "fused, recompute", "stock", "stock, NCDHW", "stock, in place")
DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}
_CLASSES = 400
_NARROW = {"widths": (16, 32, 64, 128), "stem_channels": 16}
_OPTIONS: dict[str, dict[str, Any]] = {"r2plus1d_18": {}, "r2plus1d_18, width 16": _NARROW}


@dataclass(frozen=True)
class Case:
    """A network and the clips of one step: float32 (batch, 3, frames, height, width)."""

    network: str
    clips: tuple[int, int, int, int]
    """Clips, frames, height, width."""
    dtype: str

    @property
    def name(self) -> str:
        """One line for tables."""
        batch, frames, height, width = self.clips
        return f"{self.network}, {batch} clips of {frames}x{height}x{width}, {self.dtype}"


def cases(device: str) -> list[Case]:
    """What is measured on ``device``: a CPU takes fewer and smaller clips."""
    sizes = {
        "cpu": {"r2plus1d_18": (4, 8, 112, 112), "r2plus1d_18, width 16": (16, 8, 56, 70)},
        "cuda": {"r2plus1d_18": (32, 16, 112, 112), "r2plus1d_18, width 16": (32, 16, 112, 112)},
    }
    return [
        Case(network, clips, dtype)
        for network, clips in sizes[device].items()
        for dtype in DTYPES[device]
    ]


class Run:
    """A network in one of :data:`WAYS`, and everything its training step needs."""

    def __init__(self, case: Case, way: str, device: str) -> None:
        config = TrainConfig(
            batch_size=case.clips[0],
            dtype=case.dtype,
            channels_last=way != "stock, NCDHW",
            device=device,
        )
        layout = torch.channels_last_3d if config.channels_last else torch.contiguous_format
        torch.manual_seed(0)
        model = _network(case, way)
        # torch's overloads of Module.to do not list the memory format.
        model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        generator = torch.Generator().manual_seed(1)
        shape = (case.clips[0], 1, 3, *case.clips[1:])
        clips = torch.randn(shape, generator=generator).to(device)
        labels = torch.randint(_CLASSES, shape[:1], generator=generator).to(device)
        self._batches = itertools.repeat((clips, labels, None))

        def network_input(batch: Tensor) -> Tensor:
            return batch.contiguous(memory_format=layout)

        with current_ranks() as ranks:
            self._learner = Learner(model.train(), config, ranks, network_input)
            self._learner.begin()
        self._timer = StepTimer()

    def step(self) -> float:
        """One training step; its mean loss."""
        # Weights stay about where they are: each step is to cost the same.
        self._learner.step(0, 1e-6, self._batches, self._timer, lambda: None)
        # Reading it waits for the device.
        loss, _, clips = self._learner.found.tolist()
        return float(loss / clips)


def _network(case: Case, way: str) -> nn.Module:
    model = create_model("r2plus1d_18", _CLASSES, **_OPTIONS[case.network])
    if way == "stock, in place":
        return stock_twin(model)
    if way.startswith("stock"):
        return as_stock(model)
    for module in model.modules():
        if isinstance(module, Conv2Plus1D):
            module.recompute = way == "fused, recompute"
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=sorted(DTYPES), default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's own number)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the times of a case")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--report", type=Path, help="print this file and measure nothing")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if options.peak is not None:
        print(json.dumps(_peak(**json.loads(options.peak))))
        return 0
    if options.report is not None:
        print(render(json.loads(options.report.read_text(encoding="utf-8"))))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    run = measure(cases(options.device), options.device, Rounds(seconds=options.seconds))
    path = write_run(run, options.results, KIND)
    print(f"{render(run)}\n\nwritten: {path}")
    return 0


def measure(wanted: Sequence[Case], device: str, rounds: Rounds) -> dict[str, Any]:
    """Every case in every way, as JSON values."""
    load = os.getloadavg()[0]
    started = datetime.now(timezone.utc)
    results = []
    for case in wanted:
        peaks = {way: _peak_elsewhere(case, way, device) for way in WAYS}
        runs = {way: Run(case, way, device) for way in WAYS}
        # Before any weight has moved: what the ways compute is the same up to rounding.
        losses = {way: run.step() for way, run in runs.items()}
        samples = interleave({way: _sampler(run.step) for way, run in runs.items()}, rounds)
        results.append(
            {
                "name": case.name,
                **asdict(case),
                "ways": [
                    {"way": way, "loss": losses[way], "samples": samples[way], **peaks[way]}
                    for way in WAYS
                ],
            }
        )
    return {
        "schema": 1,
        "kind": KIND,
        **provenance(device, started, load),
        "settings": {"device": device, "threads": torch.get_num_threads(), **asdict(rounds)},
        "memory": memory.DEVICE_METHOD if device == "cuda" else memory.HOST_METHOD,
        "cases": results,
    }


def _sampler(step: Callable[[], float]) -> Sampler:
    """Seconds of one step, right after an untimed one that takes the caches back."""

    def sample(_: int) -> float:
        step()
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return sample


def _peak_elsewhere(case: Case, way: str, device: str) -> dict[str, int | None]:
    """:func:`_peak` in a process of its own."""
    question = json.dumps({"case": asdict(case), "way": way, "device": device})
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-m", "benchmarks.training_run", "--threads", threads]
    done = subprocess.run(
        [*command, "--peak", question],
        cwd=Path(__file__).resolve().parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer: dict[str, int | None] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _peak(case: dict[str, Any], way: str, device: str) -> dict[str, int | None]:
    """Bytes that a warm step adds, and the most that the process, or the device, ever held."""
    run = Run(Case(case["network"], tuple(case["clips"]), case["dtype"]), way, device)
    if device == "cuda":
        run.step()
        step = memory.device_peak(run.step)
        return {"step_bytes": step, "total_bytes": torch.cuda.max_memory_allocated()}
    run.step()
    step_bytes = memory.host_peak(run.step)
    # The peak of the last call, which host_peak counts anew, with all that was resident before.
    return {"step_bytes": step_bytes, "total_bytes": memory.resident_peak()}


def render(run: dict[str, Any]) -> str:
    """Tables of a run."""
    machine = run["machine"]
    lines = [
        f"{machine['gpu'] or machine['cpu']}, {run['settings']['threads']} threads; "
        f"{(run['commit'] or 'no commit')[:10]}{' and changes' if run['dirty'] else ''}; "
        f"{run['created']}; torch {run['versions']['torch']}",
    ]
    for case in run["cases"]:
        fused = next(row for row in case["ways"] if row["way"] == "fused")
        lines += [
            "",
            case["name"],
            f"  {'':<18} {'a step':>22}  {'fused is':>20}  {'a step adds':>12} {'in all':>10}"
            f"  {'first loss':>11}",
        ]
        lines += [_line(row, fused) for row in case["ways"]]
    return "\n".join(lines)


def _line(row: dict[str, Any], fused: dict[str, Any]) -> str:
    low, median, high = quartiles(row["samples"])
    ratios = [theirs / own for theirs, own in zip(row["samples"], fused["samples"], strict=True)]
    first, middle, last = quartiles(ratios)
    seconds = f"{median * 1e3:.0f} ms ({low * 1e3:.0f}-{high * 1e3:.0f})"
    ratio = f"x {middle:.2f} ({first:.2f}-{last:.2f})"
    return (
        f"  {row['way']:<18} {seconds:>22}  {ratio:>20}  {_mib(row['step_bytes']):>12} "
        f"{_mib(row['total_bytes']):>10}  {row['loss']:>11.7f}"
    )


def _mib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
