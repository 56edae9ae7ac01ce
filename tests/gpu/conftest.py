"""Tests that need a CUDA device; skipped with the reason where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from r21d_ops.backends import backends, get_backend
from r21d_ops.dispatch import INFERENCE_VARIABLE
from r21d_ops.problem import Problem

_WAYS = {"way", "first_way", "cuda_way"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Way:
    """How inference is served: a backend, ``fused`` or ``two`` (empty: its own choice), a dtype."""

    backend: str
    kernels: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return "-".join(filter(None, (self.backend, self.kernels, str(self.dtype)[6:])))


@dataclass(frozen=True)
class Trainer:
    """How training is served: a backend and a dtype."""

    backend: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.backend}-{str(self.dtype)[6:]}"


def _probe(dtype: torch.dtype) -> Problem:
    """Stands for any convolution on CUDA: what a backend answers by device and dtype."""
    return Problem("cuda", dtype, 1, 8, 16, 8, (3, 8, 8), (3, 3, 3), (1, 1, 1), (1, 1, 1))


def _available() -> Iterator[str]:
    return (row.name for row in backends() if row.available)


def _ways() -> Iterator[Way]:
    """Each available backend with each dtype that it serves on CUDA; ``cuda`` in both ways.

    Triton compiles every problem anew, which takes seconds: its ways are in test_triton_tiles.py.
    """
    for name in _available():
        module = get_backend(name)
        for kernels in module.KERNELS if name == "cuda" else ("",):
            for dtype in _DTYPES:
                if module.can_run(_probe(dtype)) is None:
                    yield Way(name, kernels, dtype)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``way``: every way of inference; ``first_way``: in the first dtype of each; ``cuda_way``:
    the CUDA kernels'; ``trainer``: every backend with each dtype that it trains in."""
    ways = list(_ways())
    found = {
        "way": ways,
        "first_way": list({(w.backend, w.kernels): w for w in reversed(ways)}.values()),
        "cuda_way": [way for way in ways if way.backend == "cuda"],
    }
    skip = pytest.mark.skip(reason=f"cuda: {get_backend('cuda').unavailable()}")
    for name in _WAYS & set(metafunc.fixturenames):
        metafunc.parametrize(name, found[name] or [pytest.param(None, marks=skip)], ids=str)
    if "trainer" in metafunc.fixturenames:
        able = [
            Trainer(name, dtype)
            for name in _available()
            for dtype in _DTYPES
            if get_backend(name).can_run(_probe(dtype)) is None
        ]
        metafunc.parametrize("trainer", able, ids=str)


@pytest.fixture(autouse=True)
def _needs_cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this torch sees none")
    # The rule compares with stock PyTorch in the same dtype: float32, not tf32.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # Small problems, each met once: nothing to time. test_triton_tiles.py runs every configuration.
    monkeypatch.setenv("R21D_AUTOTUNE", "0")
    for name in _WAYS & set(request.fixturenames):
        way = request.getfixturevalue(name)
        monkeypatch.setenv("R21D_BACKEND", way.backend)
        monkeypatch.setenv(INFERENCE_VARIABLE, way.kernels)
    if "trainer" in request.fixturenames:
        monkeypatch.setenv("R21D_BACKEND", request.getfixturevalue("trainer").backend)
