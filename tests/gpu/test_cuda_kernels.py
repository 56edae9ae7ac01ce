"""The CUDA kernels beyond what every backend is tested for: they are not compiled for each problem.

Seconds on one GPU, most of them Inductor's.
"""

from __future__ import annotations

import pytest
import torch
from accuracy import Draw, assert_accurate_over_draws
from gpu.conftest import Way
from gpu.problems import CASES, MORE_CASES, SMALL, GpuCase, Operands, draw, with_layout
from torch import Tensor

import r21d_ops
from r21d_ops import dispatch
from r21d_ops.backends import get_backend
from r21d_ops.problem import problem_of

pytestmark = pytest.mark.usefixtures("poisoned")


def _call(operands: Operands) -> Tensor:
    return r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(False, True))


def _draw(case: GpuCase, dtype: torch.dtype) -> Draw:
    operands = draw(case, dtype)
    return _call(operands), operands.to(torch.float64).reference(True), operands.stock(True)


@pytest.mark.parametrize("case", MORE_CASES, ids=str)
def test_sizes(case: GpuCase, cuda_way: Way) -> None:
    operands = draw(case, cuda_way.dtype)
    problem = problem_of(*operands.tensors(), case.stride, case.padding)
    assert dispatch.inference_kernels("cuda", problem) == cuda_way.kernels
    assert_accurate_over_draws(lambda: _draw(case, cuda_way.dtype))


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "misaligned"])
@pytest.mark.parametrize("name", ["x", "spatial_weight", "temporal_weight", "residual"])
@pytest.mark.parametrize("case", [SMALL, CASES[0], CASES[1]], ids=str)
def test_strides_change_no_bit(case: GpuCase, cuda_way: Way, name: str, layout: str) -> None:
    operands = draw(case, cuda_way.dtype)
    for key, tensor in operands.main.items():
        operands.main[key] = with_layout(tensor, "channels_last_3d")
    expected = _call(operands)
    operands.main[name] = with_layout(operands.main[name], layout)
    assert torch.equal(_call(operands), expected)


@pytest.mark.parametrize("case", MORE_CASES, ids=str)
def test_same_bits_twice(case: GpuCase, cuda_way: Way) -> None:
    operands = draw(case, cuda_way.dtype)
    assert torch.equal(_call(operands), _call(operands))


def test_compiled_by_inductor(cuda_way: Way) -> None:
    pytest.importorskip("triton", reason="Inductor needs Triton on a GPU")
    if cuda_way.dtype != torch.bfloat16:
        pytest.skip("compiling takes seconds: one dtype does")
    torch.compiler.reset()
    compiled = torch.compile(r21d_ops.conv2plus1d, fullgraph=True)

    def once() -> Draw:
        operands = draw(SMALL, cuda_way.dtype)
        y = compiled(*operands.tensors(), **operands.keywords(False, True))
        return y, operands.to(torch.float64).reference(True), operands.stock(True)

    with torch.no_grad():
        assert_accurate_over_draws(once)


def _arguments(operands: Operands) -> list[object]:
    """Of the native operator, without ``kernels``."""
    m, o = operands.case.channels[1:]
    vectors = [torch.ones(n, device="cuda") for n in (m, m, o, o)]
    x, spatial, temporal = (with_layout(t, "channels_last_3d") for t in operands.tensors())
    residual = with_layout(operands.main["residual"], "channels_last_3d")
    case = operands.case
    return [x, spatial, temporal, *vectors, residual, True, case.stride, case.padding]


def test_refusals() -> None:
    """What reaches the library without the checks of Python."""
    if (reason := get_backend("cuda").unavailable()) is not None:
        pytest.skip(reason)
    run = torch.ops.r21d.conv2plus1d
    given = _arguments(draw(SMALL, torch.bfloat16))
    assert run(*given, "two").shape == SMALL.out_shape
    with pytest.raises(RuntimeError, match="kernels must be '', 'fused' or 'two', not 'three'"):
        run(*given, "three")
    with pytest.raises(RuntimeError, match="scale must be on the device of x"):
        run(*given[:3], given[3].cpu(), *given[4:], "two")
    with pytest.raises(RuntimeError, match="x must be bfloat16 or float16"):
        run(*_arguments(draw(SMALL, torch.float32)), "two")
    many = GpuCase("many live frames", 1, (8, 16, 8), (6, 5, 5), (4, 3, 3))
    given = _arguments(draw(many, torch.bfloat16))
    for kernels in ("two", "fused"):  # two kernels serve where one cannot
        assert run(*given, kernels).shape == many.out_shape
    with pytest.raises(RuntimeError, match="one kernel cannot run this"):
        run(*given, "fused", "fused.chunk=2")
    with pytest.raises(RuntimeError, match="force must name parts of a plan"):
        run(*given, "two", "spatial.tile=3")
