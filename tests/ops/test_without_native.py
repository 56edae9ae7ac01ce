"""Without the native library everything runs on ``eager`` and says why (about 4 s)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import r21d_ops
from r21d_ops import native

_SCRIPT = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s", force=True)
import torch, r21d_ops
from r21d_ops import native
print("file", r21d_ops.__file__)
print("reason", native.load_error)
print("info", native.build_info())
for row in r21d_ops.backends():
    print("backend", row.name, row.available, row.reason)
x = torch.randn(2, 3, 4, 8, 8)
module = r21d_ops.Conv2Plus1D(3, 4)
module(x).sum().backward()
module.eval()
with torch.no_grad():
    print("agrees", torch.allclose(module(x), torch.nn.Sequential(*module)(x), atol=1e-5))
print("fused", r21d_ops.fuse_report(module)[0].fused)
try:
    operands = dict(running_mean=torch.zeros(4), running_var=torch.ones(4), backend="cpu")
    r21d_ops.conv2plus1d(x, torch.ones(4, 3, 1, 3, 3), torch.ones(4, 4, 3, 1, 1), **operands)
except RuntimeError as error:
    print("forced", error)
"""


def _run_copy(folder: Path, library: bytes | None) -> str:
    """The script's output, with a copy of the package whose library is ``library`` or missing."""
    package = Path(r21d_ops.__file__).parent
    ignored = shutil.ignore_patterns("_native.*", "__pycache__")
    shutil.copytree(package, folder / "r21d_ops", ignore=ignored)
    if library is not None:
        (folder / "r21d_ops" / "_native.so").write_bytes(library)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("R21D_")}
    environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, cwd=folder, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"file {folder}" in done.stdout
    return done.stdout + done.stderr


@pytest.mark.skipif(
    os.environ.get("R21D_NATIVE") != "1", reason="R21D_NATIVE=1 does not ask for the library here"
)
def test_library_that_the_environment_demands_is_there() -> None:
    """Without it, its tests would only be left out, and nobody would notice."""
    assert native.load_error is None, native.load_error
    (row,) = [row for row in r21d_ops.backends() if row.name == "cpu"]
    assert row.available, row.reason


@pytest.mark.parametrize(
    ("library", "reason"),
    [(None, "the native library is not built"), (b"no library", "_native.so does not load")],
    ids=["missing", "broken"],
)
def test_eager_serves_and_says_why(library: bytes | None, reason: str, tmp_path: Path) -> None:
    output = _run_copy(tmp_path, library)
    lines = output.splitlines()
    assert any(line.startswith("reason") and reason in line for line in lines), output
    assert "info {}" in lines
    assert any(line.startswith("backend cpu False") and reason in line for line in lines), output
    assert any(line.startswith("backend eager True") for line in lines)
    assert "agrees True" in lines and "fused True" in lines
    forced = [line for line in lines if line.startswith("forced")]
    assert len(forced) == 1 and "'cpu' was asked for" in forced[0] and reason in forced[0]
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 1 and "'cpu'" in warnings[0] and reason in warnings[0], output
