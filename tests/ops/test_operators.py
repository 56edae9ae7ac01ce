"""The operators beneath: ``opcheck`` of each, ``gradcheck`` of the Function above (about 15 s)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ops.problems import Case, case_named, make_operands
from torch import Tensor

import r21d_ops
from r21d_ops import native

_NATIVE = pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))
_CASES = [case_named(n) for n in ("primes", "mixed", "frames-in-padding")]
_GEOMETRIES = ("primes", "mixed", "paper-downsample", "stride-beyond-kernel", "frames-in-padding")


def _ndhwc(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last_3d)


def _u(case: Case, dtype: torch.dtype) -> Tensor:
    _, h, w = case.out_size
    return _ndhwc(torch.randn(case.n, case.m, case.size[0], h, w).to(dtype))


def _vectors(count: int, length: int) -> list[Tensor]:
    return [torch.randn(length) for _ in range(count)]


def _fused(case: Case, dtype: torch.dtype) -> list[object]:
    o = make_operands(case, torch.default_generator, dtype)
    residual = _ndhwc(torch.randn(case.n, case.o, *case.out_size).to(dtype))
    weights = [o.spatial_weight, o.temporal_weight]
    epilogue = [*_vectors(2, case.o), residual, True]
    geometry = [case.stride, case.padding]
    return [_ndhwc(o.x), *weights, *_vectors(2, case.m), *epilogue, *geometry]


def _spatial(case: Case, dtype: torch.dtype, statistics: bool = True) -> list[object]:
    o = make_operands(case, torch.default_generator, dtype)
    return [_ndhwc(o.x), o.spatial_weight, case.stride, case.padding, statistics]


def _temporal(case: Case, dtype: torch.dtype) -> list[object]:
    weight = make_operands(case, torch.default_generator, dtype).temporal_weight
    return [_u(case, dtype), *_vectors(2, case.m), weight, case.stride, case.padding]


_ARGUMENTS: dict[str, list[Callable[[Case, torch.dtype], list[object]]]] = {
    "conv2plus1d": [
        _fused,
        lambda c, d: [*_fused(c, d)[:5], None, None, None, False, c.stride, c.padding],
    ],
    "spatial_forward": [_spatial, lambda c, d: _spatial(c, d, False)],
    "temporal_forward": [_temporal],
    "norm_relu": [lambda c, d: [_u(c, d), *_vectors(2, c.m)]],
    "norm_relu_backward": [lambda c, d: [_u(c, d), _u(c, d), *_vectors(4, c.m)]],
    "norm_backward": [
        lambda c, d: [_u(c, d), _u(c, d), *_vectors(3, c.m)],
        lambda c, d: [_u(c, d), _u(c, d), *_vectors(1, c.m), None, None],
    ],
}


@_NATIVE
def test_every_operator_with_tensors_has_a_case() -> None:
    schemas = torch._C._jit_get_all_schemas()
    ours = {s.name.removeprefix("r21d::") for s in schemas if s.name.startswith("r21d::")}
    assert ours - {"build_info", "cpu_isas"} == _ARGUMENTS.keys()


@_NATIVE
@pytest.mark.parametrize("case", _CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", _ARGUMENTS)
def test_opcheck(operator: str, dtype: torch.dtype, case: Case) -> None:
    for make in _ARGUMENTS[operator]:
        torch.library.opcheck(getattr(torch.ops.r21d, operator).default, tuple(make(case, dtype)))


@_NATIVE
@pytest.mark.parametrize("operator", _ARGUMENTS)
def test_opcheck_of_an_empty_batch(operator: str) -> None:
    case = case_named("primes", n=0)
    for make in _ARGUMENTS[operator]:
        arguments = tuple(make(case, torch.float32))
        torch.library.opcheck(getattr(torch.ops.r21d, operator).default, arguments)


def _function(case: Case, **options: object) -> tuple[Callable[..., Tensor], list[Tensor]]:
    operands = make_operands(case, torch.default_generator, torch.float64)
    names = ("x", "spatial_weight", "temporal_weight", "bn_weight", "bn_bias")
    leaves = [getattr(operands, name).requires_grad_() for name in names]

    def call(*values: Tensor) -> Tensor:
        given = replace(operands.to(torch.float64), **dict(zip(names, values, strict=True)))
        y: Tensor = r21d_ops.conv2plus1d(
            *given.tensors(), **given.keywords(), **options, backend="eager"
        )
        return y

    return call, leaves


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", _GEOMETRIES)
def test_gradcheck(name: str, training: bool, recompute: bool) -> None:
    """First derivatives by finite differences, along random directions."""
    small = case_named(name, n=2, c=2, m=3, o=2)
    call, leaves = _function(small, training=training, recompute=recompute)
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


def test_gradcheck_of_every_derivative() -> None:
    small = Case("small", n=2, c=2, m=3, o=2, size=(2, 3, 3))
    call, leaves = _function(small, training=True)
    assert torch.autograd.gradcheck(call, leaves)
