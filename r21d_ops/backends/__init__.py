"""Which code serves a call.

A backend is one module of this package with

- ``NAME``;
- ``unavailable() -> str | None``: why it cannot run on this machine at all, or None;
- ``can_run(problem) -> str | None``: why it does not serve this problem, or None;
- the operators of :mod:`r21d_ops.backends.eager`, with the same signatures.

Adding a backend adds its module and its name to ``_BACKENDS``; the first that can run serves.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import NamedTuple

import torch

from r21d_ops.backends import cpu, eager
from r21d_ops.problem import Problem

_BACKENDS: dict[str, ModuleType] = {module.NAME: module for module in (cpu, eager)}
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
    reason: str | None = module.unavailable()
    return reason if reason is not None else module.can_run(problem)


def choose(problem: Problem, forced: str | None = None) -> str:
    """The name of the backend that serves ``problem``.

    ``forced``, else the environment's ``R21D_BACKEND``, names the only one allowed. Without either,
    the first that can run serves, and each reason why an earlier one could not is logged once.

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
    for candidate, module in _BACKENDS.items():
        reason = _refusal(module, problem)
        if reason is None:
            return candidate
        _warn_once(candidate, reason)
    raise BackendError(f"no backend can run {problem}")


def forced_name(forced: str | None) -> str | None:
    """The one backend allowed: ``forced``, else ``R21D_BACKEND``, else None."""
    return forced if forced is not None else os.environ.get("R21D_BACKEND") or None


def _warn_once(name: str, reason: str) -> None:
    if torch.compiler.is_compiling() or (name, reason) in _warned:
        return
    _warned.add((name, reason))
    _logger.warning("backend %r does not serve this call: %s", name, reason)
