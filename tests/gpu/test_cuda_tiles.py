"""Every tile of the CUDA kernels computes the same function, whichever the planner would choose.

Another GPU or another estimate may choose a tile that nothing else has run. The problems are small,
but a block makes several frames and its ring of stages goes around, and there are several tiles of
pixels and of O, slices of M and chunks of T (seconds on one GPU).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import Draw, assert_accurate_over_draws
from gpu.problems import GpuCase, Operands, draw
from torch import Tensor

from r21d_ops.autograd import fold_norm
from r21d_ops.backends import get_backend
from r21d_ops.dispatch.cuda_plan import Device, cuda_plan
from r21d_ops.problem import Problem
from r21d_ops.shapes import ndhwc

#: Frames by how many output frames see one, at strides of 4 less that: three or four come out.
_FRAMES = {3: 4, 2: 5, 1: 7}
_DTYPES = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in (torch.bfloat16, torch.float16)]


def _case(channels: int, mid: int, out: int, live: int = 3) -> GpuCase:
    """Of 11 x 13 pixels, by a temporal kernel of 3; few channels come in the stem's way."""
    stride, kernel, size, padding = 1, 3, (11, 13), 1
    if channels < 8:
        stride, kernel, size, padding = 2, 7, (21, 25), 3
    return GpuCase(
        f"{channels} channels", 2, (channels, mid, out), (_FRAMES[live], *size),
        (3, kernel, kernel), (4 - live, stride, stride), (1, padding, padding),
    )  # fmt: skip


def _plan(case: GpuCase, device: Device, force: str = "") -> dict[str, Any] | None:
    sizes = (case.batch, *case.channels, case.size)
    return cuda_plan(
        Problem("cuda", torch.bfloat16, *sizes, case.kernel, case.stride, case.padding),
        device,
        force,
    )


def _tiles(kind: str) -> list[Any]:
    """Of the planner; none where the native library is not loaded."""
    plan = _plan(_case(24, 24, 24), Device(1, 2**18, 2**18, 1e15, 1e12))
    tiles = [] if plan is None else plan["tiles"][kind]
    return [pytest.param(tuple(tile), id="x".join(map(str, tile))) for tile in tiles]


def _planned(case: GpuCase, force: str) -> dict[str, Any]:
    """The plan of this GPU; skips where it has too little shared memory for what is forced."""
    gpu = torch.cuda.get_device_properties()
    shared = gpu.shared_memory_per_block_optin, gpu.shared_memory_per_multiprocessor
    # Times decide nothing that matters here.
    plan = _plan(case, Device(gpu.multi_processor_count, *shared, 1e15, 1e12), force)
    assert plan is not None and plan["refusal"] is None
    if force.startswith("fused") and (reason := plan["fused"]["refusal"]) is not None:
        assert "shared memory" in reason
        pytest.skip(reason)
    return plan


def _run(operands: Operands, kernels: str, force: str) -> Tensor:
    vectors, (x, spatial, temporal) = operands.vectors, operands.tensors()
    norm = (vectors[k] for k in ("running_mean", "running_var", "bn_weight", "bn_bias"))
    scale, shift = fold_norm(*norm, 1e-5, x.dtype)
    y: Tensor = torch.ops.r21d.conv2plus1d(
        ndhwc(x), spatial, temporal, scale, shift, vectors["out_scale"], vectors["out_shift"],
        ndhwc(operands.main["residual"]), True, operands.case.stride, operands.case.padding,
        kernels, force,
    )  # fmt: skip
    return y


def _check(case: GpuCase, dtype: torch.dtype, kernels: str, force: str) -> None:
    """As accurate as stock PyTorch, with the same bits twice."""

    def once() -> Draw:
        operands = draw(case, dtype)
        y = _run(operands, kernels, force)
        assert torch.equal(_run(operands, kernels, force), y)
        return y, operands.to(torch.float64).reference(True), operands.stock(True)

    assert_accurate_over_draws(once)


@pytest.fixture(autouse=True)
def _needs_the_kernels(poisoned: None) -> None:
    if (reason := get_backend("cuda").unavailable()) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("feed", ["one_band", "two_bands", "narrow"])
@pytest.mark.parametrize("tile", _tiles("fused"))
def test_fused_tile(tile: tuple[int, int, int], feed: str, dtype: torch.dtype) -> None:
    warps, mids, live = tile
    case = _case(3 if feed == "narrow" else 24, mids + 7, 70, live)
    bands = 2 if feed == "two_bands" else 1
    force = f"fused.pixel_warps={warps} fused.mids={mids} fused.bands={bands} fused.chunk=2"
    plan = _planned(case, force)
    assert plan["narrow"] == (feed == "narrow")
    fused = plan["fused"]
    assert [fused[k] for k in ("pixel_warps", "mids", "live", "bands")] == [*tile, bands]
    assert min(fused[k] for k in ("chunk", "chunks", "slices", "tiles", "column_tiles")) > 1
    _check(case, dtype, "fused", force)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("feed", ["wide", "narrow"])
@pytest.mark.parametrize("tile", _tiles("conv"))
def test_conv_tile(tile: tuple[int, int], feed: str, dtype: torch.dtype) -> None:
    """As the spatial and as the temporal one."""
    case = _case(3 if feed == "narrow" else 24, 151, 150)
    names = ("pixel_warps", "columns")
    convs = ("spatial", "temporal")
    force = " ".join(f"{c}.{name}={n}" for c in convs for name, n in zip(names, tile, strict=True))
    plan = _planned(case, force)
    assert plan["narrow"] == (feed == "narrow")
    for conv in (plan[c] for c in convs):
        assert [conv[name] for name in names] == [*tile]
        assert min(conv["grid_x"], conv["grid_y"]) > 1 and conv["depth"] > 32 * conv["stages"]
    _check(case, dtype, "two", force)
