"""The operators beneath: ``opcheck`` of each, ``gradcheck`` of the Function above (about 15 s)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.problems import Case, case_named, make_operands
from torch import Tensor

import r21d_ops
from r21d_ops import native
from r21d_ops.backends import triton as backend
from r21d_ops.shapes import padded
from r21d_ops.triton import INTERPRETED

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


def _padded(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """u or g as the Triton kernels hold it."""
    u = _u(case, dtype)
    return _ndhwc(torch.nn.functional.pad(u, (0, 0) * 3 + (0, padded(case.m) - case.m)))


def _triton_temporal(case: Case, dtype: torch.dtype) -> list[object]:
    _, *rest = _temporal(case, dtype)
    return [_padded(case, dtype), *rest]


def _y(case: Case, dtype: torch.dtype) -> Tensor:
    return _ndhwc(torch.randn(case.n, case.o, *case.out_size).to(dtype))


def _train_spatial(case: Case, dtype: torch.dtype, normed: bool) -> list[object]:
    return [*_spatial(case, dtype), *(_vectors(2, case.c) if normed else (None, None))]


def _train_temporal_backward(case: Case, dtype: torch.dtype, normed: bool) -> list[object]:
    arguments = _triton_temporal_backward(case, dtype, normed)
    of_y = [_y(case, dtype), *_vectors(3, case.o)] if normed else [None] * 4
    return [*arguments, *of_y]


def _train_spatial_backward(case: Case, dtype: torch.dtype, way: str) -> list[object]:
    needs = (way != "weight", way != "x")
    arguments = _triton_spatial_backward(case, dtype, way == "weight", *needs)
    of_x = _vectors(4, case.c) if way == "norm" else [None] * 4
    residual = torch.randn_like(arguments[2]) if way == "x" else None  # type: ignore[call-overload]
    return [*arguments, *of_x, residual]


def _triton_temporal_backward(case: Case, dtype: torch.dtype, need: bool) -> list[object]:
    weight = make_operands(case, torch.default_generator, dtype).temporal_weight
    grad = _ndhwc(torch.randn(case.n, case.o, *case.out_size).to(dtype))
    vectors = _vectors(4, case.m)
    return [grad, _padded(case, dtype), *vectors, weight, case.stride, case.padding, need]


def _triton_spatial_backward(
    case: Case, dtype: torch.dtype, frozen: bool, *needs: bool
) -> list[object]:
    o = make_operands(case, torch.default_generator, dtype)
    tensors = [_padded(case, dtype), _padded(case, dtype), _ndhwc(o.x), o.spatial_weight]
    factors = [*_vectors(1, case.m), None, None] if frozen else _vectors(3, case.m)
    return [*tensors, *factors, case.stride, case.padding, *needs]


Make = Callable[[Case, torch.dtype], list[object]]

_ARGUMENTS: dict[str, list[Make]] = {
    "r21d::conv2plus1d": [
        _fused,
        lambda c, d: [*_fused(c, d)[:5], None, None, None, False, c.stride, c.padding, "fused"],
    ],
    "r21d::spatial_forward": [_spatial, lambda c, d: _spatial(c, d, False)],
    "r21d::temporal_forward": [_temporal],
    "r21d::train_spatial": [
        lambda c, d: _train_spatial(c, d, False),
        lambda c, d: _train_spatial(c, d, True),
    ],
    "r21d::train_temporal": [lambda c, d: [*_triton_temporal(c, d), True]],
    "r21d::train_temporal_backward": [
        lambda c, d: _train_temporal_backward(c, d, False),
        lambda c, d: _train_temporal_backward(c, d, True),
    ],
    "r21d::train_spatial_backward": [
        lambda c, d: _train_spatial_backward(c, d, "norm"),
        lambda c, d: _train_spatial_backward(c, d, "x"),
        lambda c, d: _train_spatial_backward(c, d, "weight"),
    ],
    "r21d::join": [lambda c, d: [_y(c, d), *_vectors(2, c.o), _y(c, d)]],
    "r21d::join_backward": [lambda c, d: [_y(c, d), _y(c, d), _y(c, d), *_vectors(2, c.o)]],
    "r21d::norm_relu": [lambda c, d: [_u(c, d), *_vectors(2, c.m)]],
    "r21d::norm_relu_backward": [lambda c, d: [_u(c, d), _u(c, d), *_vectors(4, c.m)]],
    "r21d::norm_backward": [
        lambda c, d: [_u(c, d), _u(c, d), *_vectors(3, c.m)],
        lambda c, d: [_u(c, d), _u(c, d), *_vectors(1, c.m), None, None],
    ],
    "r21d_triton::inference": [
        _fused,
        lambda c, d: [*_fused(c, d)[:5], None, None, None, False, c.stride, c.padding],
    ],
    "r21d_triton::spatial_forward": [_spatial, lambda c, d: _spatial(c, d, False)],
    "r21d_triton::temporal_forward": [_triton_temporal],
    "r21d_triton::temporal_backward": [
        lambda c, d: _triton_temporal_backward(c, d, True),
        lambda c, d: _triton_temporal_backward(c, d, False),
    ],
    "r21d_triton::spatial_backward": [
        lambda c, d: _triton_spatial_backward(c, d, False, True, True),
        lambda c, d: _triton_spatial_backward(c, d, True, True, False),
        lambda c, d: _triton_spatial_backward(c, d, True, False, True),
    ],
}
_WITHOUT_TENSORS = {f"r21d::{n}" for n in ("build_info", "cpu_isas", "cuda_info", "cuda_plan")}
#: For tests on hardware alone, and never part of a graph.
_OF_TESTS = {"r21d::cuda_probe"}
#: Of CUDA devices alone; here simulated, in 16 bits.
_SIMULATED_OPERATORS = [
    name for name in _ARGUMENTS if name.startswith(("r21d::train_", "r21d::join"))
]
_NATIVE_OPERATORS = [
    name for name in _ARGUMENTS if name.startswith("r21d::") and name not in _SIMULATED_OPERATORS
]
_TRITON_OPERATORS = [name for name in _ARGUMENTS if name.startswith("r21d_triton::")]
_INTERPRETER = pytest.mark.skipif(
    not INTERPRETED or backend.unavailable() is not None,
    reason=f"Triton does not interpret here: {backend.unavailable()}",
)
_TINY = case_named("mixed", n=1, c=3, m=5, o=4, size=(3, 5, 6))


def _overload(name: str) -> Any:
    namespace, _, operator = name.partition("::")
    return getattr(getattr(torch.ops, namespace), operator).default


@_NATIVE
def test_every_operator_with_tensors_has_a_case() -> None:
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    ours = {name for name in names if name.startswith(("r21d::", "r21d_triton::"))}
    assert ours - _WITHOUT_TENSORS - _OF_TESTS == _ARGUMENTS.keys()


@_NATIVE
@pytest.mark.parametrize("case", _CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", _NATIVE_OPERATORS)
def test_opcheck(operator: str, dtype: torch.dtype, case: Case) -> None:
    for make in _ARGUMENTS[operator]:
        torch.library.opcheck(_overload(operator), tuple(make(case, dtype)))


@_NATIVE
@pytest.mark.parametrize("operator", _SIMULATED_OPERATORS)
def test_opcheck_of_the_cuda_operators(operator: str) -> None:
    for case in (_TINY, case_named("primes", n=0)):
        for make in _ARGUMENTS[operator]:
            torch.library.opcheck(_overload(operator), tuple(make(case, torch.bfloat16)))


@_INTERPRETER
@pytest.mark.parametrize("operator", _TRITON_OPERATORS)
def test_opcheck_of_the_triton_operators(operator: str) -> None:
    for dtype, make in zip(
        itertools.cycle((torch.float16, torch.float32)), _ARGUMENTS[operator], strict=False
    ):
        torch.library.opcheck(_overload(operator), tuple(make(_TINY, dtype)))


@_NATIVE
@pytest.mark.parametrize("operator", _NATIVE_OPERATORS)
def test_opcheck_of_an_empty_batch(operator: str) -> None:
    case = case_named("primes", n=0)
    for make in _ARGUMENTS[operator]:
        torch.library.opcheck(_overload(operator), tuple(make(case, torch.float32)))


@_INTERPRETER
@pytest.mark.parametrize("operator", _TRITON_OPERATORS)
def test_opcheck_of_an_empty_batch_in_triton(operator: str) -> None:
    case = case_named("primes", n=0)
    for make in _ARGUMENTS[operator]:
        torch.library.opcheck(_overload(operator), tuple(make(case, torch.float32)))


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
