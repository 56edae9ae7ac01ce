"""The options of a run, the same for ``python -m benchmarks`` and for pytest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Settings
from benchmarks.measure import Rounds


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_options(add: Callable[..., Any]) -> None:
    """Declare the options; ``add`` takes what ``ArgumentParser.add_argument`` takes."""
    add("--quick", action="store_true", help="conv2_x alone, under two minutes")
    add("--full", action="store_true", help="training of every layer on a CPU too: half an hour")
    add("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    add("--batch", type=int, help="clips in a batch (default: 1; cuda: 32)")
    add("--frames", type=int, help="frames in a clip (default: 8; cuda: 16)")
    add("--cases", type=_names, default=(), help="names, separated by commas")
    add("--peers", type=_names, default=(), help="names, separated by commas")
    add("--seconds", type=float, help="seconds of timing for each case")
    add("--threads", type=int, help="torch threads on the CPU")
    add("--shrink", type=int, default=1, help="divide sizes: a trial of the harness")
    add("--results", type=Path, help="folder for the JSON file")


def prepare(options: Any) -> Settings:
    """The settings that parsed ``options`` ask for; sets torch's threads and cuDNN's search.

    Raises:
        ValueError: ``--device cuda`` without a CUDA device.
    """
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but this torch sees no CUDA device")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # Stock PyTorch at its best: cuDNN picks its fastest algorithm for each shape.
    torch.backends.cudnn.benchmark = True
    seconds = options.seconds
    return Settings(
        device=device,
        batch=options.batch,
        frames=options.frames,
        quick=options.quick,
        full=True if options.full else None,
        cases=options.cases,
        peers=options.peers,
        shrink=options.shrink,
        rounds=None if seconds is None else Rounds(least=3, seconds=seconds),
    )
