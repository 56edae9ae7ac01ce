"""Values in eval: every shape, dtype, epilogue, memory layout and instruction set (about 10 s)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from accuracy import Draw, assert_accurate_over_draws, one_ulp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ops.chosen_backend import Backend
from ops.extended_reference import extended_reference
from ops.problems import (
    CASES,
    FEW_CASES,
    Case,
    Operands,
    case_named,
    exact,
    fused,
    make_operands,
    prepare,
    reference,
    stock,
    with_epilogue,
)
from torch import Tensor

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.interpreted,
    pytest.mark.simulated,
]


Epilogue = tuple[bool, ...]
_NO_EPILOGUE: Epilogue = (False, False, False, False)


def _draws(
    case: Case, dtype: torch.dtype, backend: Backend, seed: int, epilogue: Epilogue = _NO_EPILOGUE
) -> Callable[[], Draw]:
    """Draws of ``case`` that are the same for every backend."""
    seeds = itertools.count(seed)

    def draw() -> Draw:
        prepared = prepare(case, dtype, next(seeds), epilogue)
        return fused(prepared.operands, backend), prepared.exact, prepared.stock

    return draw


def _draw(operands: Operands, backend: Backend) -> Draw:
    return fused(operands, backend), exact(operands), stock(operands)


@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_reference_agrees_with_a_second_definition(case: Case, generator: torch.Generator) -> None:
    operands = make_operands(case, generator, torch.float64)
    operands = with_epilogue(operands, generator, True, True, True, True)
    second = extended_reference(operands)
    difference = (reference(operands) - second).abs().max().item()
    # Far above what rounding in float64 does, far below any mistake in the definition.
    assert difference <= one_ulp(second, torch.float32)


#: Those that differ most for the Triton kernels; test_triton_kernels.py has more.
_INTERPRETED = (
    "one-frame", "one-column", "one-pixel", "one-channel", "paper-stem", "mixed", "no-padding",
    "only-padding-outside", "frames-in-padding", "long-temporal-kernel",
)  # fmt: skip


@pytest.mark.every_isa
@pytest.mark.interpreted(case=_INTERPRETED, dtype=[torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_shape(case: Case, backend: Backend, dtype: torch.dtype, seed: int) -> None:
    assert_accurate_over_draws(_draws(case, dtype, backend, seed))


_EPILOGUES = list(itertools.product((False, True), repeat=4))


@pytest.mark.every_isa
# None, each part alone, all but one: any two parts in all four combinations.
@pytest.mark.interpreted(
    dtype=[torch.float16], epilogue=[e for e in _EPILOGUES if sum(e) in (0, 1, 3)]
)
@pytest.mark.parametrize("epilogue", _EPILOGUES, ids=str)
def test_every_combination_of_the_epilogue(
    epilogue: Epilogue, backend: Backend, dtype: torch.dtype, seed: int
) -> None:
    assert_accurate_over_draws(_draws(case_named("primes"), dtype, backend, seed, epilogue))


@pytest.mark.every_isa
@pytest.mark.interpreted(name=["mixed", "four-vectors-and-one"])
@pytest.mark.parametrize("name", ["mixed", "sliced-m-strided", "four-vectors-and-one"])
def test_whole_epilogue(name: str, backend: Backend, dtype: torch.dtype, seed: int) -> None:
    assert_accurate_over_draws(_draws(case_named(name), dtype, backend, seed, (True,) * 4))


def _sliced(t: Tensor) -> Tensor:
    """``t`` as every second element along each axis of a larger tensor, with an offset."""
    larger = t.new_full([2 * size + 1 for size in t.shape], float("nan"))
    view = larger[tuple(slice(1, None, 2) for _ in t.shape)]
    return view.copy_(t)


#: Ways to hold the same values; those that share elements change the values first.
_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "NCDHW": lambda t: t.contiguous(),
    "NDHWC": lambda t: t.contiguous(memory_format=torch.channels_last_3d),
    "transposed": lambda t: t.transpose(3, 4).contiguous().transpose(3, 4),
    "batch innermost": lambda t: t.transpose(0, 4).contiguous().transpose(0, 4),
    "sliced": _sliced,
    "expanded batch": lambda t: t[:1].expand_as(t),
    "expanded channels": lambda t: t[:, :1].expand_as(t),
    "expanded frames": lambda t: t[:, :, :1].expand_as(t),
    "one value": lambda t: t[:1, :1, :1, :1, :1].expand_as(t),
}


@pytest.mark.interpreted(dtype=[torch.float16])
@pytest.mark.parametrize("layout", _LAYOUTS)
def test_any_strided_input(
    layout: str, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    def draw() -> Draw:
        operands = make_operands(case_named("mixed"), generator, dtype)
        operands = with_epilogue(operands, generator, True, True, True, False)
        assert operands.residual is not None
        strided = replace(
            operands, x=_LAYOUTS[layout](operands.x), residual=_LAYOUTS[layout](operands.residual)
        )
        return _draw(strided, backend)

    assert_accurate_over_draws(draw)


@pytest.mark.parametrize("layout", ["NDHWC", "transposed", "sliced", "one value"])
def test_any_strided_weight(layout: str, backend: Backend, generator: torch.Generator) -> None:
    def draw() -> Draw:
        operands = make_operands(case_named("kernel-7"), generator, backend.dtypes[0])
        change = _LAYOUTS[layout]
        return _draw(
            replace(
                operands,
                spatial_weight=change(operands.spatial_weight),
                temporal_weight=change(operands.temporal_weight),
            ),
            backend,
        )

    assert_accurate_over_draws(draw)


def test_strided_vectors(backend: Backend, generator: torch.Generator) -> None:
    operands = make_operands(case_named("primes"), generator, backend.dtypes[0])
    operands = with_epilogue(operands, generator, True, True, False, False)
    names = ("running_mean", "running_var", "bn_weight", "bn_bias", "out_scale", "out_shift")
    strided = replace(operands, **{n: _sliced(getattr(operands, n)) for n in names})
    assert torch.equal(fused(strided, backend), fused(operands, backend))


@pytest.mark.parametrize("absent", ["bn_weight", "bn_bias"])
def test_absent_vectors(absent: str, backend: Backend, generator: torch.Generator) -> None:
    def draw() -> Draw:
        operands = make_operands(case_named("primes"), generator, backend.dtypes[0])
        return _draw(replace(operands, **{absent: None}), backend)

    assert_accurate_over_draws(draw)


@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_output_is_ndhwc_of_the_dtype_of_x(
    case: Case, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    y = fused(make_operands(case, generator, dtype), backend)
    assert y.shape == (case.n, case.o, *case.out_size)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_empty_batch(backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    case = case_named("mixed", n=0)
    operands = make_operands(case, generator, dtype)
    y = fused(with_epilogue(operands, generator, True, True, True, True), backend)
    assert y.shape == (0, case.o, *case.out_size)
    assert y.dtype == dtype


@pytest.mark.every_isa
@pytest.mark.interpreted(dtype=[torch.float16])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_special_values_in_the_input(
    special: float, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """NaN and infinity come out where the definition has them, and nowhere else."""
    case = case_named("primes", size=(9, 7, 11))

    def draw() -> Draw:
        operands = make_operands(case, generator, dtype)
        operands = with_epilogue(operands, generator, True, True, True, True)
        operands.x[0, 3, 2, 4, 5] = special
        operands.x[1, 0, 0, 0, 0] = special
        expected = reference(operands.to(torch.float64))
        assert expected.isfinite().any() and not expected.isfinite().all()
        return fused(operands, backend), expected, stock(operands)

    if backend.name == "eager" and dtype == torch.bfloat16:
        # oneDNN's bfloat16 convolutions spread NaN to pixels that do not see it: stock PyTorch's
        # fault, so that here nothing may be lost, but more may come.
        y, expected, _ = draw()
        assert not y[~expected.isfinite()].isfinite().any()
    elif dtype == torch.float64:
        y, expected, _ = draw()
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.isposinf(), expected.isposinf())
    else:
        assert_accurate_over_draws(draw)


@pytest.mark.every_isa
@pytest.mark.interpreted(name=["paper-downsample"], dtype=[torch.float32])
@pytest.mark.parametrize("name", ["paper-downsample", "sliced-m", "many-frames", "wide-rows"])
def test_same_result_twice(
    name: str, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    operands = make_operands(case_named(name), generator, dtype)
    assert torch.equal(fused(operands, backend), fused(operands, backend))


@pytest.mark.every_isa
@pytest.mark.interpreted(name=["paper-downsample"], dtype=[torch.float32])
@pytest.mark.parametrize("name", ["paper-downsample", "sliced-m", "many-frames", "wide-rows"])
def test_number_of_threads_changes_nothing(
    name: str, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    if backend.name == "eager":
        pytest.skip("stock PyTorch's convolutions sum in another order for other thread counts")
    operands = make_operands(case_named(name), generator, dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    several = fused(operands, backend)
    torch.set_num_threads(1)
    alone = fused(operands, backend)
    torch.set_num_threads(threads)
    assert torch.equal(alone, several)


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    """Any small problem whose output has at least one pixel."""
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(3))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(3))
    least = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    case = Case(
        "random",
        c=draw(st.integers(1, 19)),
        m=draw(st.integers(1, 40)),
        o=draw(st.integers(1, 40)),
        size=tuple(draw(st.integers(low, low + 9)) for low in least),
        kernel=kernel,
        stride=tuple(draw(st.integers(1, 3)) for _ in range(3)),
        padding=padding,
    )
    # Errors of a handful of outputs are luck, good or bad: enough clips for 400 of them.
    return replace(case, n=1 + 400 // (case.o * math.prod(case.out_size)))


@pytest.mark.interpreted(dtype=[torch.float16])
@pytest.mark.every_isa
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=_cases(), number=st.integers(0, 2**31), epilogue=st.tuples(*[st.booleans()] * 4))
def test_any_problem(
    backend: Backend, dtype: torch.dtype, case: Case, number: int, epilogue: Epilogue
) -> None:
    assert_accurate_over_draws(_draws(case, dtype, backend, number, epilogue))
