"""Every configuration that the Triton kernels may be tuned to computes the same function.

A configuration that is only ever timed could be wrong and win. Each is compiled here, which takes
a second or two apiece on a first run: two minutes in all.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import nn

import r21d_ops
from r21d_ops.backends import triton as backend

if (_reason := backend.unavailable()) is not None or not torch.cuda.is_available():
    pytest.skip(_reason or "needs a CUDA device", allow_module_level=True)

from ops.problems import Case
from ops.triton_kernels import KERNELS, Kernel, check_kernel, make_inputs

from r21d_ops.triton import fused, tuning

_CASE = Case("conv2_x", n=2, c=64, m=144, o=64, size=(4, 17, 15))
_STEM = Case(
    "stem", n=2, c=3, m=45, o=64, size=(4, 40, 36), kernel=(3, 7, 7), stride=(1, 2, 2),
    padding=(1, 3, 3),
)  # fmt: skip


def _configurations() -> list[Any]:
    """Every configuration in bfloat16, the planner's own in the other dtypes and on the stem."""
    found = []
    described = torch.cuda.get_device_capability() >= (9, 0)
    for kernel in KERNELS:
        may = described and kernel.describable != ""
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            tiles = [t for t in kernel.module.tiles(dtype) if may or not t.descriptors]
            for tile in tiles if dtype == torch.bfloat16 else tiles[:1]:
                found.append((kernel, _CASE, dtype, tile))
        # Few channels have no descriptors.
        (first, *_) = (t for t in kernel.module.tiles(torch.bfloat16) if not t.descriptors)
        found.append((kernel, _STEM, torch.bfloat16, first))
    return [
        pytest.param(*values, id=f"{values[0]}-{values[1]}-{str(values[2])[6:]}-{values[3].name}")
        for values in found
    ]


def _way(kernel: Kernel, tile: Any, split: bool) -> dict[str, Any]:
    if kernel.module is fused:
        return {"tile": tile, "chunk": 2 if split else None}
    return {"tile": tile, "parts": 3 if split else 1}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("kernel", "case", "dtype", "tile"), _configurations())
def test_configuration(
    kernel: Kernel, case: Case, dtype: torch.dtype, tile: Any, generator: torch.Generator
) -> None:
    check_kernel(kernel, case, dtype, generator, device="cuda", **_way(kernel, tile, False))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_split_sums_with_the_same_bits_twice(kernel: Kernel, generator: torch.Generator) -> None:
    (tile, *_) = (t for t in kernel.module.tiles(torch.bfloat16) if not t.descriptors)
    way = _way(kernel, tile, True)
    check_kernel(kernel, _CASE, torch.bfloat16, generator, device="cuda", **way)
    inputs = make_inputs(_CASE, torch.bfloat16, generator, "cuda")
    first, second = (kernel.run(_CASE, inputs, **way) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_autotuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times candidates with the GPU's own clock, remembers the winner, and gives right values."""
    monkeypatch.setenv("R21D_AUTOTUNE", "1")
    monkeypatch.setenv("R21D_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("R21D_BACKEND", "triton")
    tuning.clear_cache()
    module = r21d_ops.Conv2Plus1D(64, 64, 144).cuda().bfloat16().eval()
    x = torch.randn(2, 64, 4, 17, 15, device="cuda").bfloat16()
    with torch.no_grad():
        y = module(x)
        stock = nn.Sequential(*module.children())
        assert_accurate(y, copy.deepcopy(stock).double()(x.double()), stock(x))
        (file,) = tuning.cache_files()
        assert "-w" in file.read_text()
        assert torch.equal(module(x), y)
    tuning.clear_cache()
