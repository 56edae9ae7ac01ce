"""Without Triton everything else works, and what is missing is named (about 5 s)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from r21d_ops.backends import triton as backend

_SCRIPT = """
import sys
from importlib.machinery import PathFinder

class WithoutTriton:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [WithoutTriton() if finder is PathFinder else finder for finder in sys.meta_path]
import torch, r21d_ops
from r21d.cli import main
from r21d_ops.triton import tuning
for row in r21d_ops.backends():
    print("backend", row.name, row.available, row.reason)
x = torch.randn(2, 3, 4, 8, 8)
module = r21d_ops.Conv2Plus1D(3, 4)
module(x).sum().backward()
module = module.eval()
with torch.no_grad():
    print("agrees", torch.allclose(module(x), torch.nn.Sequential(*module)(x), atol=1e-5))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    print("compiled agrees", torch.allclose(compiled(x), module(x), atol=1e-5))
operands = dict(running_mean=torch.zeros(4), running_var=torch.ones(4), backend="triton")
try:
    r21d_ops.conv2plus1d(x, torch.ones(4, 3, 1, 3, 3), torch.ones(4, 4, 3, 1, 1), **operands)
except RuntimeError as error:
    print("forced", error)
print("cache", tuning.cache_files())
print("doctor", main(["doctor"]))
assert "triton" not in sys.modules
"""


def test_the_package_says_what_is_missing() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("R21D_BACKEND",)}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    missing = "Triton is not installed; `pip install triton` brings it on Linux"
    assert f"backend triton False {missing}" in done.stdout
    assert "backend eager True" in done.stdout
    assert "agrees True" in done.stdout and "compiled agrees True" in done.stdout
    assert f"forced backend 'triton' was asked for and cannot run: {missing}" in done.stdout
    assert "cache [" in done.stdout
    assert "doctor 0" in done.stdout


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is not remembered from before, nor for later."""
    monkeypatch.setattr(backend, "_unavailable", backend._unavailable.__wrapped__)


@pytest.mark.usefixtures("fresh")
def test_triton_of_another_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds for other systems have other names: the module itself is asked."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert backend.triton_version() == triton.__version__
    monkeypatch.delattr(triton, "__version__")
    assert backend.triton_version() is None  # a folder that happens to be called so
    assert "is not installed" in str(backend.unavailable())


@pytest.mark.usefixtures("fresh")
def test_kept_from_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "is not installed" in str(backend.unavailable())


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("version", "refused"), [("3.5.1", True), ("3.6.0", False)])
def test_version(version: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "triton_version", lambda: version)
    reason = backend.unavailable()
    assert ("too old; it needs 3.6" in str(reason)) == refused


@pytest.mark.usefixtures("fresh")
def test_rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.hip", "6.4")
    assert "ROCm" in str(backend.unavailable())


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False)])
def test_compute_capability(
    capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "triton_version", lambda: "3.9.0")
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    assert (backend.unavailable() is not None) == refused
    if refused:
        assert "compute capability 7.5; it needs 8.0" in str(backend.unavailable())
