"""Training: outputs, every gradient and the running statistics (about 10 s)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from accuracy import Draw, assert_accurate, assert_accurate_over_draws
from ops.chosen_backend import Backend
from ops.gradients import Results, exact_gradients, fused_gradients, stock_gradients
from ops.problems import (
    CASES,
    FEW_CASES,
    Case,
    Operands,
    case_named,
    make_operands,
    with_epilogue,
)
from torch import Tensor

import r21d_ops

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.interpreted]

#: float64 is tested by gradcheck.
_LOW = (torch.float32, torch.bfloat16, torch.float16)


def _check(
    case: Case, dtype: torch.dtype, backend: Backend, seed: int, training: bool, **options: bool
) -> None:
    """Every result of a call by the rule, each by its own votes over the same draws."""
    epilogue = options.pop("epilogue", False)
    ours: dict[int, Results] = {}

    def draw(name: str, numbers: Iterator[int]) -> Draw:
        number = next(numbers)
        prepared = _prepare(case, dtype, number, training, epilogue)
        if number not in ours:
            ours[number] = fused_gradients(
                prepared.operands, prepared.grad, backend, training, **options
            )
        assert ours[number].keys() == prepared.exact.keys()
        return ours[number][name], prepared.exact[name], prepared.stock[name]

    for name in _prepare(case, dtype, seed, training, epilogue).exact:
        draws = functools.partial(draw, name, itertools.count(seed))
        assert_accurate_over_draws(draws, name)


@dataclass(frozen=True)
class _Prepared:
    operands: Operands
    grad: Tensor
    exact: Results
    stock: dict[str, list[Tensor]]


@functools.lru_cache(maxsize=256)
def _prepare(
    case: Case, dtype: torch.dtype, seed: int, training: bool, epilogue: bool
) -> _Prepared:
    """The same problem for every backend; never changed."""
    generator = torch.Generator().manual_seed(seed)
    operands = make_operands(case, generator, dtype)
    operands = with_epilogue(operands, generator, *[epilogue] * 4)
    grad = torch.randn(case.n, case.o, *case.out_size, generator=generator).to(dtype)
    exact = exact_gradients(operands, grad, training)
    return _Prepared(operands, grad, exact, stock_gradients(operands, grad, training))


#: With enough channels that the error of a per-channel gradient is more than luck; training does
#: not slice M.
_TRAINED = tuple(
    replace(case, m=max(case.m, 13))
    for case in CASES
    if case.name not in ("one-pixel", "sliced-m", "sliced-m-strided")
)

#: Those of them that differ for the Triton kernels; test_triton_kernels.py has more.
_TRAINED_INTERPRETED = (
    "primes", "one-row", "one-channel", "paper-stem", "mixed", "stride-beyond-kernel",
    "frames-in-padding",
)  # fmt: skip

#: The simulated CUDA kernels train in one way, whatever runs inference.
_simulated = functools.partial(pytest.mark.simulated, backend=["cuda-two"])


@pytest.mark.every_isa
@pytest.mark.interpreted(case=_TRAINED_INTERPRETED, dtype=[torch.float32])
@_simulated()
@pytest.mark.parametrize("case", _TRAINED, ids=str)
def test_batch_statistics(case: Case, backend: Backend, dtype: torch.dtype, seed: int) -> None:
    if dtype not in _LOW:
        pytest.skip("gradcheck covers float64")
    _check(case, dtype, backend, seed, training=True)


@pytest.mark.interpreted(dtype=[torch.float32])
@_simulated()
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_frozen_statistics(case: Case, backend: Backend, dtype: torch.dtype, seed: int) -> None:
    if dtype not in _LOW:
        pytest.skip("gradcheck covers float64")
    _check(case, dtype, backend, seed, training=False)


@pytest.mark.parametrize("training", [True, False])
def test_epilogue_with_gradients(training: bool, backend: Backend, seed: int) -> None:
    _check(case_named("primes"), torch.float32, backend, seed, training, epilogue=True)


@pytest.mark.interpreted(case=["primes"], dtype=[torch.float16])
@_simulated()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_recompute_changes_nothing(
    case: Case, training: bool, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    operands = make_operands(case, generator, dtype)
    grad = torch.randn(case.n, case.o, *case.out_size, generator=generator).to(dtype)
    kept = fused_gradients(operands, grad, backend, training)
    again = fused_gradients(operands, grad, backend, training, recompute=True)
    for name, value in kept.items():
        assert torch.equal(again[name], value), name


@pytest.mark.interpreted(training=[True], wanted=["x", "spatial_weight"])
@pytest.mark.parametrize(
    "wanted", ["x", "spatial_weight", "temporal_weight", "bn_weight", "bn_bias"]
)
@pytest.mark.parametrize("training", [True, False])
def test_one_gradient_alone(
    wanted: str, training: bool, backend: Backend, generator: torch.Generator
) -> None:
    operands = make_operands(case_named("mixed"), generator)
    grad = torch.randn(2, 7, *case_named("mixed").out_size, generator=generator)
    everything = fused_gradients(operands, grad, backend, training)
    copy = operands.to(torch.float32).on(backend.device)
    leaf = getattr(copy, wanted).requires_grad_()
    y = r21d_ops.conv2plus1d(*copy.tensors(), **copy.keywords(), training=training)
    (alone,) = torch.autograd.grad(y, leaf, grad.to(backend.device))
    torch.testing.assert_close(
        alone.cpu(), everything[f"gradient of {wanted}"], rtol=0, atol=0, msg=wanted
    )


def test_strided_frozen_statistics(backend: Backend, generator: torch.Generator) -> None:
    operands = make_operands(case_named("primes"), generator)
    grad = torch.randn(2, 7, *case_named("primes").out_size, generator=generator)
    vectors = ("running_mean", "running_var", "bn_weight", "bn_bias")
    strided = {n: torch.stack([v, v + 9], 1)[:, 0] for n in vectors
               if (v := getattr(operands, n)) is not None}  # fmt: skip
    assert not any(v.is_contiguous() for v in strided.values())
    plain = fused_gradients(operands, grad, backend, False)
    call = replace(operands, **strided).on(backend.device)
    leaves = [call.x.requires_grad_(), strided["bn_weight"].requires_grad_()]
    y = r21d_ops.conv2plus1d(*call.tensors(), **call.keywords())
    grads = torch.autograd.grad(y, leaves, grad.to(backend.device))
    assert torch.equal(y.detach().cpu(), plain["y"])
    assert torch.equal(grads[0].cpu(), plain["gradient of x"])
    assert torch.equal(grads[1].cpu(), plain["gradient of bn_weight"])


@pytest.mark.interpreted(layout=["expanded"])
@pytest.mark.parametrize("layout", ["NDHWC", "NCDHW", "expanded"])
def test_any_strided_gradient(layout: str, backend: Backend, generator: torch.Generator) -> None:
    case = case_named("paper-downsample", n=2)
    operands = make_operands(case, generator)
    shape = (case.n, case.o, *case.out_size)
    grad = torch.randn(shape, generator=generator)
    if layout == "NDHWC":
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
    elif layout == "expanded":
        grad = torch.ones(()).expand(shape)
    given = fused_gradients(operands, grad, backend, True)
    plain = fused_gradients(operands, grad.contiguous(), backend, True)
    for name, value in plain.items():
        assert torch.equal(given[name], value), name


@_simulated()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_empty_batch(
    training: bool, recompute: bool, backend: Backend, dtype: torch.dtype,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Nothing learnt from nothing: zero gradients, running statistics as they were."""
    case = case_named("mixed", n=0)
    operands = make_operands(case, generator, dtype)
    results = fused_gradients(
        operands, operands.x.new_zeros(0, case.o, *case.out_size), backend, training, recompute
    )
    assert results["y"].shape == (0, case.o, *case.out_size)
    assert results["gradient of x"].shape == operands.x.shape
    for name in ("spatial_weight", "temporal_weight", "bn_weight", "bn_bias"):
        assert torch.count_nonzero(results[f"gradient of {name}"]) == 0, name
        assert results[f"gradient of {name}"].shape == getattr(operands, name).shape
    if training:
        assert operands.running_mean is not None and operands.running_var is not None
        assert torch.equal(results["running_mean"], operands.running_mean)
        assert torch.equal(results["running_var"], operands.running_var)


@pytest.mark.interpreted(momentum=[0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_momentum(momentum: float, backend: Backend, seed: int) -> None:
    case = case_named("primes")
    generator = torch.Generator().manual_seed(seed)
    operands = replace(make_operands(case, generator), extra={"momentum": momentum})
    grad = torch.randn(case.n, case.o, *case.out_size, generator=generator)
    ours = fused_gradients(operands, grad, backend, True)
    exact = exact_gradients(operands, grad, True)
    stock = stock_gradients(operands, grad, True)
    for name in ("running_mean", "running_var"):
        assert_accurate(ours[name], exact[name], stock[name], name)


def test_without_running_statistics(backend: Backend, generator: torch.Generator) -> None:
    operands = make_operands(case_named("primes"), generator)
    grad = torch.randn(2, 7, *case_named("primes").out_size, generator=generator)
    kept = fused_gradients(operands, grad, backend, True)
    none = fused_gradients(
        replace(operands, running_mean=None, running_var=None), grad, backend, True
    )
    for name, value in none.items():
        assert torch.equal(kept[name], value), name


@pytest.mark.every_isa
@pytest.mark.interpreted(case=["primes"], dtype=[torch.float16])
@_simulated()
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_same_gradients_twice_and_with_one_thread(
    case: Case, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Forward only where the sums are the library's own: its backward convolutions are torch's."""
    if backend.name == "eager":
        pytest.skip("stock PyTorch's convolutions sum in another order for other thread counts")
    operands = make_operands(case, generator, dtype)
    grad = torch.randn(case.n, case.o, *case.out_size, generator=generator).to(dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    first = fused_gradients(operands, grad, backend, True)
    second = fused_gradients(operands, grad, backend, True)
    torch.set_num_threads(1)
    alone = fused_gradients(operands, grad, backend, True)
    torch.set_num_threads(threads)
    for name in ("y", "running_mean", "running_var"):
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], alone[name]), name
