"""Which code serves a call.

A backend is one module of this package with

- ``NAME``;
- ``DEVICES``: the device types it is meant for (None: any); on others it serves only when forced;
- ``unavailable() -> str | None``: why it cannot run on this machine at all, or None;
- ``can_run(problem) -> str | None``: why it does not serve this problem, or None;
- ``KERNELS``, if it has several ways of running inference: of ``fused`` and ``two``, the preferred
  first;
- ``UNPROVEN = True``, as long as no committed measurement shows it at work: on a GPU no estimate
  puts it before another backend, only measurements of the problem do;
- the operators of :mod:`r21d_ops.backends.eager`, with the same signatures, up to ``norm``,
  ``residual``, y's statistics and ``join``, which are for residual blocks;
- ``BLOCKS = True``, if it has these as well and a block is to train as one function on it
  (:mod:`r21d_ops.basic_block`).

Adding a backend adds its module and its name to ``_BACKENDS``. Of those that can run, the first
serves; on a GPU :mod:`r21d_ops.dispatch` decides, by measurements or an estimate, for which the
backend has rows in :mod:`r21d_ops.dispatch.estimate` (``_WAYS``, or ``PLANNERS`` where its own
library plans). Without any it is chosen by measurements, by name, or as the only one.
"""

from __future__ import annotations

import logging
import os
import re
from types import ModuleType
from typing import NamedTuple

import torch

from r21d_ops import dispatch
from r21d_ops.backends import cpu, cuda, eager, triton
from r21d_ops.problem import Problem

#: Names the one backend allowed.
BACKEND_VARIABLE = "R21D_BACKEND"

_BACKENDS: dict[str, ModuleType] = {module.NAME: module for module in (cpu, cuda, triton, eager)}
_logger = logging.getLogger(__name__)
_warned: set[tuple[str, str]] = set()


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve the call; the message says why."""


class BackendStatus(NamedTuple):
    """One row of :func:`backends`; ``reason`` is empty where the backend is available."""

    name: str
    available: bool
    reason: str


def backends() -> list[BackendStatus]:
    """Each backend, in the order in which they are asked: can it run here, and if not, why."""
    rows = []
    for name, module in _BACKENDS.items():
        reason = module.unavailable()
        rows.append(BackendStatus(name, reason is None, reason or ""))
    return rows


def get_backend(name: str) -> ModuleType:
    """The backend called ``name``.

    Raises:
        ValueError: no such backend.
    """
    try:
        return _BACKENDS[name]
    except KeyError:
        known = ", ".join(_BACKENDS)
        raise ValueError(f"backend {name!r} is not known; this version has {known}") from None


def _refusal(module: ModuleType, problem: Problem) -> str | None:
    """Why the backend does not serve the call here, or None."""
    reason: str | None = module.unavailable()
    return reason if reason is not None else _refuses(module, problem)


def _refuses(module: ModuleType, problem: Problem) -> str | None:
    """Why the backend does not serve the call, wherever it is available."""
    reason: str | None = module.can_run(problem)
    return reason


def choose(problem: Problem, forced: str | None = None, *, training: bool = False) -> str:
    """The name of the backend that serves ``problem``.

    ``forced``, else the environment's ``R21D_BACKEND``, names the only one allowed. Without either,
    those meant for the device are asked, and each kind of reason why one cannot run is logged once,
    whatever its numbers. The first that can serves; on a GPU :mod:`r21d_ops.dispatch` decides among
    all that can.

    Args:
        problem: what is to be computed.
        forced: the only backend allowed, or None.
        training: gradients or batch statistics are needed.

    Raises:
        ValueError: an unknown name.
        BackendError: the forced backend cannot run; the message says why.
    """
    name = forced_name(forced)
    if name is not None:
        reason = _refusal(get_backend(name), problem)
        if reason is not None:
            raise BackendError(f"backend {name!r} was asked for and cannot run: {reason}")
        return name
    able = []
    for candidate, module in _BACKENDS.items():
        if not _meant_for(module, problem.device):
            continue
        reason = _refusal(module, problem)
        if reason is not None:
            _warn_once(candidate, reason)
            continue
        if problem.device != "cuda":
            return candidate
        able.append(candidate)
    if not able:
        raise BackendError(f"no backend can run {problem}")
    if len(able) == 1:
        return able[0]
    return dispatch.choose_backend(problem, training, _candidates(able))


def _candidates(names: list[str]) -> tuple[dispatch.Candidate, ...]:
    found = []
    for name in names:
        module = _BACKENDS[name]
        kernels, unproven = getattr(module, "KERNELS", ()), getattr(module, "UNPROVEN", False)
        found.append(dispatch.Candidate(name, kernels, unproven))
    return tuple(found)


def route_on_gpu(problem: Problem, training: bool, gpu: str, elsewhere: bool) -> dispatch.Route:
    """How ``problem`` would be served on the GPU called ``gpu``, as the environment forces it.

    With ``elsewhere`` that GPU is another machine's: what is missing on this one does not count.

    Raises:
        ValueError: ``R21D_BACKEND`` or ``R21D_INFERENCE`` has a value that is not known.
        BackendError: no backend serves the problem, or not the one that ``R21D_BACKEND`` names.
    """
    forced = forced_name(None)
    asked = _BACKENDS if forced is None else {forced: get_backend(forced)}
    able = []
    for name, module in asked.items():
        if forced is None and not _meant_for(module, problem.device):
            continue
        asks = _refuses if elsewhere else _refusal
        reason = asks(module, problem)
        if reason is None:
            able.append(name)
        elif forced is not None:
            raise BackendError(f"backend {name!r} was asked for and cannot run: {reason}")
    if not able:
        raise BackendError(f"no backend can run {problem}")
    return dispatch.route(problem, training, gpu, _candidates(able))


def _meant_for(module: ModuleType, device: str) -> bool:
    return module.DEVICES is None or device in module.DEVICES


def forced_name(forced: str | None) -> str | None:
    """The one backend allowed: ``forced``, else ``R21D_BACKEND``, else None."""
    return forced if forced is not None else os.environ.get(BACKEND_VARIABLE) or None


def _warn_once(name: str, reason: str) -> None:
    if torch.compiler.is_compiling():
        return
    # Counts and sizes differ from batch to batch; what is wrong does not.
    kind = (name, re.sub(r"\b\d+(x\d+)*\b", "#", reason))
    if kind in _warned:
        return
    _warned.add(kind)
    _logger.warning("backend %r does not serve this call: %s", name, reason)
