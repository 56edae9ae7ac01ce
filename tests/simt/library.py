"""The host simulator of the CUDA kernels: the module ``_simt`` that `make` builds."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import pytest

BUILD = Path(__file__).parents[2] / "build" / "simt"


@functools.cache
def simulator() -> ModuleType:
    """The module; where there is none, skips with the reason or, with ``R21D_NATIVE=1``, fails."""
    name = f"_simt.cpython-{sys.version_info.major}{sys.version_info.minor}-*.so"
    found = sorted(BUILD.glob(name))
    if not found:
        reason = f"{BUILD} holds no {name}: `make` did not build the host simulator"
        if platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
            pytest.skip(f"the host simulator cannot switch fibers on {platform.machine()}")
        if os.environ.get("R21D_NATIVE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    spec = importlib.util.spec_from_file_location("_simt", found[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
