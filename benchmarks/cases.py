"""The cases of the suite: which workloads, in which dtypes, against which peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.layers import LAYERS, LayerProblem
from benchmarks.measure import Rounds
from benchmarks.peers import PEERS, default_peers
from benchmarks.workloads import Workload, block_workload, layer_workload, network_workload
from r21d_ops.problem import Problem

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

#: Cases of ``--quick``: the layer that is half of the network's time, as inference and training.
QUICK = ("conv2_x/fp32", "conv2_x/bf16", "conv2_x/train/fp32")
#: Seconds of measuring a case; its preparation and its check come on top.
_SECONDS, _QUICK_SECONDS = 6.0, 4.0


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        batch, frames: clips in a batch and frames in a clip; None: 1 of 8 on the CPU, 32 of 16
            on CUDA, where less does not fill the machine.
        quick: :data:`QUICK` only, fewer rounds.
        full: training of every layer and of the network too; None: on CUDA, where that is quick.
        cases, peers: names to keep; empty keeps all (of ``quick``'s, or of ``full``'s).
        shrink: divides channels and pixels. Anything but 1 tries the harness and measures nothing.
        rounds: how long to measure each case; None: by ``quick``.
    """

    device: str = "cpu"
    batch: int | None = None
    frames: int | None = None
    quick: bool = False
    full: bool | None = None
    cases: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    shrink: int = 1
    rounds: Rounds | None = None

    @property
    def clips(self) -> tuple[int, int]:
        """(batch, frames), defaults filled in."""
        batch, frames = (32, 16) if self.device == "cuda" else (1, 8)
        return self.batch or batch, self.frames or frames

    @property
    def everything(self) -> bool:
        """``full``, default filled in."""
        return self.device == "cuda" if self.full is None else self.full

    @property
    def measuring(self) -> Rounds:
        """Rounds, default filled in."""
        if self.rounds is not None:
            return self.rounds
        return Rounds(seconds=_QUICK_SECONDS if self.quick else _SECONDS)


@dataclass(frozen=True)
class Case:
    """``build`` makes the workload; ``peers`` are names of :data:`benchmarks.peers.PEERS`.

    ``problem`` is the layer that the case consists of, None where there are several.
    """

    name: str
    dtype: torch.dtype
    shape: str
    training: bool
    peers: tuple[str, ...]
    build: Callable[[], Workload]
    problem: Problem | None = None


def _layer_case(name: str, dtype_name: str, training: bool, settings: Settings) -> Case:
    batch, frames = settings.clips
    problem = LayerProblem(LAYERS[name], batch, frames, settings.shrink)
    dtype = DTYPES[dtype_name]
    c, m, o = problem.channels
    size = "x".join(str(n) for n in problem.size)
    return Case(
        f"{name}/train/{dtype_name}" if training else f"{name}/{dtype_name}",
        dtype,
        f"{batch}x{c}x{size}, {c}→{m}→{o}",
        training,
        _peers(settings, training),
        lambda: layer_workload(problem, settings.device, dtype, training),
        problem.problem(settings.device, dtype),
    )


def _block_case(dtype_name: str, settings: Settings) -> Case:
    batch, frames = settings.clips
    problem = LayerProblem(LAYERS["conv2_x"], batch, frames, settings.shrink)
    dtype = DTYPES[dtype_name]
    c, m, o = problem.channels
    size = "x".join(str(n) for n in problem.size)
    return Case(
        f"conv2_x block/{dtype_name}",
        dtype,
        f"{batch}x{c}x{size}, 2 x ({c}→{m}→{o}), shortcut",
        False,
        _peers(settings, False),
        lambda: block_workload(problem, settings.device, dtype),
    )


def _network_case(dtype_name: str, training: bool, settings: Settings) -> Case:
    batch, frames = settings.clips
    dtype = DTYPES[dtype_name]
    side = 112 // settings.shrink
    return Case(
        f"r2plus1d_18/train/{dtype_name}" if training else f"r2plus1d_18/{dtype_name}",
        dtype,
        f"{batch}x3x{frames}x{side}x{side}",
        training,
        _peers(settings, training),
        lambda: network_workload(batch, frames, settings.shrink, settings.device, dtype, training),
    )


def _peers(settings: Settings, training: bool) -> tuple[str, ...]:
    names = default_peers(settings.device, training)
    unknown = [name for name in settings.peers if name not in PEERS]
    if unknown:
        raise ValueError(f"peers has {unknown}, which are not known; known are {list(PEERS)}")
    return tuple(n for n in names if not settings.peers or n in settings.peers)


def list_cases(settings: Settings) -> list[Case]:
    """The cases that ``settings`` ask for, in the order they are run: that of ``settings.cases``.

    Raises:
        ValueError: an unknown case or peer, or a bad number, with what is known.
    """
    for name in ("batch", "frames", "shrink"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if settings.device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {settings.device!r}")
    cases = [_layer_case(name, d, False, settings) for name in LAYERS for d in DTYPES]
    cases += [_block_case(d, settings) for d in DTYPES]
    cases += [_network_case(d, False, settings) for d in DTYPES]
    cases += [_layer_case(name, d, True, settings) for name in LAYERS for d in DTYPES]
    cases += [_network_case(d, True, settings) for d in DTYPES]
    wanted = settings.cases or _default_names(cases, settings)
    unknown = set(wanted) - {case.name for case in cases}
    if unknown:
        known = ", ".join(case.name for case in cases)
        raise ValueError(f"cases has {sorted(unknown)}, which are not known; known are {known}")
    by_name = {case.name: case for case in cases}
    return [by_name[name] for name in wanted]


def _default_names(cases: list[Case], settings: Settings) -> tuple[str, ...]:
    if settings.quick:
        return QUICK
    # One layer's step tells what training costs; on a CPU all of them take half an hour.
    return tuple(
        case.name
        for case in cases
        if settings.everything or not case.training or case.name.startswith("conv2_x/")
    )
