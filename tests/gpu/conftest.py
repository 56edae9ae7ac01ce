"""Tests that need a CUDA device; skipped with the reason where there is none."""

from __future__ import annotations

import pytest
import torch

from r21d_ops.backends import backends, get_backend
from r21d_ops.problem import Problem

#: Stands for any convolution on CUDA: what a backend answers by device and dtype.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _probe(dtype: torch.dtype) -> Problem:
    return Problem("cuda", dtype, 1, 8, 16, 8, (3, 8, 8), (3, 3, 3), (1, 1, 1), (1, 1, 1))


def _serving() -> list[tuple[str, torch.dtype]]:
    """Each available backend with each dtype that it serves on CUDA."""
    return [
        (row.name, dtype)
        for row in backends()
        for dtype in _DTYPES
        if row.available and get_backend(row.name).can_run(_probe(dtype)) is None
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``cuda_backend`` and ``cuda_dtype``: every pair that can serve."""
    if {"cuda_backend", "cuda_dtype"} <= set(metafunc.fixturenames):
        pairs = _serving()
        ids = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in pairs]
        metafunc.parametrize(("cuda_backend", "cuda_dtype"), pairs, ids=ids)
    elif "cuda_backend" in metafunc.fixturenames:
        metafunc.parametrize("cuda_backend", sorted({name for name, _ in _serving()}))


@pytest.fixture(autouse=True)
def _needs_cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this torch sees none")
    # The rule compares with stock PyTorch in the same dtype: float32, not tf32.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # Small problems, each met once: nothing to time. test_triton_tiles.py runs every configuration.
    monkeypatch.setenv("R21D_AUTOTUNE", "0")
    if "cuda_backend" in request.fixturenames:
        monkeypatch.setenv("R21D_BACKEND", request.getfixturevalue("cuda_backend"))
