"""Which backend serves a problem on a GPU, and with which kernels.

By committed measurements where there are some (:mod:`~r21d_ops.dispatch.measurements`), else by
the planner's estimate (:mod:`~r21d_ops.dispatch.estimate`), else ``eager``. A backend that calls
itself unproven is chosen by measurements alone, or where it is the only one.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import torch

from r21d_ops.dispatch import measurements
from r21d_ops.dispatch.estimate import GPUS, ONE_TILE, PLANNERS, estimates
from r21d_ops.dynamo import constant_result
from r21d_ops.problem import MOST_LIVE, Problem, live_frames

#: Forces the kernels of inference: ``fused`` or ``two``. What has one way, as on a CPU, ignores it.
INFERENCE_VARIABLE = "R21D_INFERENCE"

_INFERENCE_KERNELS = ("fused", "two")
_FALL_BACK = "eager"

#: Times closer than this are equal, and the way with fewer kernels and less memory is taken.
_TIE = 1.01

#: What a field that is unknown while a graph is traced counts as: conv2_x of 32 clips.
_NOMINAL = Problem(
    "cuda", torch.bfloat16, 32, 64, 144, 64, (16, 56, 56), (3, 3, 3), (1, 1, 1), (1, 1, 1)
)

_Way = tuple[str, str]


class Candidate(NamedTuple):
    """A backend that can run a problem.

    Attributes:
        backend: its name.
        kernels: its ways of running inference, of ``fused`` and ``two``, the preferred first; empty
            where it has one way.
        unproven: whether its estimate puts it before no other backend; its measurements do.
    """

    backend: str
    kernels: tuple[str, ...] = ()
    unproven: bool = False


class Route(NamedTuple):
    """How a problem is served.

    Attributes:
        backend: its name.
        kernels: ``fused`` or ``two``; empty where the backend has one way, or decides by itself.
        source: ``measured``, ``estimated`` or ``default``.
        seconds: of a call, by ``source``; None where it does not say.
        detail: the reason, for people.
    """

    backend: str
    kernels: str
    source: str
    seconds: float | None
    detail: str


def route(problem: Problem, training: bool, gpu: str, candidates: tuple[Candidate, ...]) -> Route:
    """The one of ``candidates``, all of which can run, that serves ``problem`` on ``gpu``.

    The fastest one where ``eager`` and another were measured side by side; else the one with the
    least estimate; where the GPU or the arithmetic is unknown, ``eager``, or the first of
    ``candidates`` without it. Nothing without a figure is chosen beside what has one, and nothing
    unproven without a measurement beside what is proven.

    Args:
        problem: with plain integers.
        training: gradients or batch statistics are needed.
        gpu: as ``torch.cuda.get_device_name`` gives it; empty: unknown.
        candidates: the preferred first.

    Raises:
        ValueError: ``R21D_INFERENCE``, which inference obeys, is neither ``fused`` nor ``two``.
    """
    forced = None if training else forced_kernels()
    return _route(problem, training, gpu, candidates, forced, arithmetic(problem.dtype))


def inference_kernels(backend: str, problem: Problem, gpu: str | None = None) -> str:
    """``fused`` or ``two``: how ``backend``, which has both, runs inference of ``problem``.

    ``two`` where one kernel cannot run it; else ``R21D_INFERENCE`` decides where it is set, else
    measurements, else the estimate, else it is ``fused`` where one tile holds all of O.

    A backend of :data:`~r21d_ops.dispatch.estimate.PLANNERS` is told less where the GPU is unknown,
    or a graph is traced whose sizes are not known: nothing, for it decides at the call, unless
    ``R21D_INFERENCE`` is set; and ``fused`` then runs as ``two`` where its library finds that one
    kernel cannot run it. ``gpu`` None is this process's GPU for a CUDA problem.

    Raises:
        ValueError: ``R21D_INFERENCE`` is set to something else.
    """
    fields, known = _plain(problem)
    return _traced_kernels(backend, fields, known, gpu, forced_kernels())


def choose_backend(problem: Problem, training: bool, candidates: tuple[Candidate, ...]) -> str:
    """The name that :func:`route` gives on this process's GPU; also while a graph is traced."""
    plain = [(c.backend, c.kernels, c.unproven) for c in candidates]
    return _traced_backend(_plain(problem)[0], training, tuple(plain))


def forced_kernels() -> str | None:
    """``R21D_INFERENCE``; None where it is not set.

    Raises:
        ValueError: it is neither ``fused`` nor ``two``.
    """
    value = os.environ.get(INFERENCE_VARIABLE) or None
    if value is not None and value not in _INFERENCE_KERNELS:
        raise ValueError(f"{INFERENCE_VARIABLE} must be fused or two, got {value!r}")
    return value


def arithmetic(dtype: torch.dtype) -> str:
    """The dtype's name, or ``tf32`` for float32 where cuDNN's convolutions may use it."""
    if dtype == torch.float32:
        # torch puts this attribute there when it is imported; the checker cannot see it.
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        if convolutions.fp32_precision == "tf32":
            return "tf32"
    return str(dtype).removeprefix("torch.")


@functools.cache
def gpu_name() -> str:
    """The name of this process's current GPU; empty where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _plain(problem: Problem) -> tuple[tuple[Any, ...], bool]:
    """The problem's fields, and whether all were known; what is symbolic becomes nominal, so that
    no graph is bound to it."""
    sizes = [value if isinstance(value, tuple) else (value,) for value in problem[2:]]
    if not torch.compiler.is_compiling() and all(type(n) is int for size in sizes for n in size):
        return tuple(problem), True
    from torch.fx.experimental.symbolic_shapes import has_static_value

    fields: list[Any] = list(problem[:2])
    known = True
    for size, value, nominal in zip(sizes, problem[2:], _NOMINAL[2:], strict=True):
        static = all([has_static_value(n) for n in size])
        fields.append(value if static else nominal)
        known = known and static
    return tuple(fields), known


# A tracer would look through the caches below and into files; to it the answers are constants.
@constant_result
def _traced_backend(
    fields: tuple[Any, ...],
    training: bool,
    candidates: tuple[tuple[str, tuple[str, ...], bool], ...],
) -> str:
    able = tuple(Candidate(*candidate) for candidate in candidates)
    return route(Problem(*fields), training, gpu_name(), able).backend


@constant_result
def _traced_kernels(
    backend: str, fields: tuple[Any, ...], known: bool, gpu: str | None, forced: str | None
) -> str:
    problem = Problem(*fields)
    if backend in PLANNERS and not known:
        # Nominal sizes say nothing of what fits; a nominal kernel sums few frames.
        return "two" if forced == "fused" and _too_many_frames(backend, problem) else forced or ""
    if gpu is None:
        gpu = gpu_name() if problem.device == "cuda" else ""
    candidate = Candidate(backend, _INFERENCE_KERNELS)
    kind = arithmetic(problem.dtype)
    return _route(problem, False, gpu, (candidate,), forced, kind).kernels


@functools.lru_cache(maxsize=4096)
def _route(
    problem: Problem,
    training: bool,
    gpu: str,
    candidates: tuple[Candidate, ...],
    forced: str | None,
    kind: str,
) -> Route:
    ways = [way for c in candidates for way in _ways(c, problem, training, gpu, forced)]
    unproven = {candidate.backend for candidate in candidates if candidate.unproven}
    found = _unforced(problem, training, gpu, ways, unproven, kind)
    reason = _why_not_fused(found.backend, problem, gpu) if forced == "fused" else ""
    if found.kernels and reason:
        return found._replace(detail=f"{found.detail}; not fused: {reason}")
    return found


def _why_not_fused(backend: str, problem: Problem, gpu: str) -> str:
    """Why one kernel of ``backend`` cannot run ``problem``, or nothing."""
    reason = _too_many_frames(backend, problem)
    if not reason and backend in PLANNERS and gpu in GPUS:
        return PLANNERS[backend].ways(problem, GPUS[gpu].planned)[1]
    return reason


def _too_many_frames(backend: str, problem: Problem) -> str:
    """Why one kernel of ``backend`` cannot sum its output frames on any GPU, or nothing."""
    most = PLANNERS[backend].most_live if backend in PLANNERS else MOST_LIVE
    live = live_frames(problem.kernel[0], problem.stride[0])
    if live > most:
        return f"{live} output frames see one frame, and one kernel sums at most {most}"
    return ""


def _unforced(
    problem: Problem, training: bool, gpu: str, ways: list[_Way], unproven: set[str], kind: str
) -> Route:
    found = measurements.find(problem, training, gpu, kind, ways)
    if found:
        return _measured(problem, found)
    proven = [way for way in ways if way[0] not in unproven] or ways
    known = GPUS.get(gpu)
    model = {} if known is None else estimates(problem, training, known, kind)
    seconds = {way: model[way] for way in ways if way in model}
    if any(way in seconds for way in proven):
        way, detail = _fastest(seconds, proven)
        if min(seconds, key=seconds.__getitem__) not in proven:
            detail += f"; without measurements {', '.join(sorted(unproven))} is not chosen"
        return Route(*way, "estimated", seconds[way], detail)
    backend, kernels = next((way for way in proven if way[0] == _FALL_BACK), proven[0])
    if backend in PLANNERS and {(backend, "fused"), (backend, "two")} <= set(ways):
        kernels = ""
    elif (backend, "two") in ways and problem.out_channels > ONE_TILE:
        kernels = "two"  # one kernel would make u again for each tile of O
    unknown = f"nothing was measured on it and its rates are unknown: {gpu or 'no GPU'}"
    reason = f"the model has no rate for {kind}" if known is not None else unknown
    return Route(backend, kernels, "default", None, reason)


def _ways(
    candidate: Candidate, problem: Problem, training: bool, gpu: str, forced: str | None
) -> list[_Way]:
    """The (backend, kernels) that a backend has, the preferred first."""
    backend, kernels = candidate[:2]
    if training or not kernels:
        return [(backend, "")]
    if _why_not_fused(backend, problem, gpu):
        return [(backend, "two")]
    wanted = [name for name in kernels if forced in (None, name)]
    return [(backend, name) for name in wanted or kernels]


def _measured(problem: Problem, found: list[measurements.Measurement]) -> Route:
    rows = {(row.backend, row.kernels): row for row in found}
    seconds = {way: row.scaled(problem.batch) for way, row in rows.items()}
    way, detail = _fastest(seconds, list(seconds))
    row = rows[way]
    if row.batch != problem.batch:
        detail += f", scaled from {row.batch} clips"
    detail += f"; {row.file} at {row.commit[:10]}"
    return Route(*way, "measured", seconds[way], detail)


def _fastest(seconds: dict[_Way, float], eligible: list[_Way]) -> tuple[_Way, str]:
    """The first of the ``eligible`` that are as fast as their fastest, and its time beside all
    others'."""
    able = {way: value for way, value in seconds.items() if way in eligible}
    limit = min(able.values()) * _TIE
    way = next(way for way, value in able.items() if value <= limit)
    others = [
        f"{' '.join(filter(None, other))} {_ms(value)}"
        for other, value in seconds.items()
        if other != way
    ]
    listed = ", ".join(others)
    return way, _ms(seconds[way]) + (f" (others: {listed})" if others else "")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
