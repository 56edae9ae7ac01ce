"""What goes wrong in a fused (2+1)D convolution if it is not watched, one test each (about 4 s).

SyncBN's counts are in ``test_distributed.py``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from accuracy import Draw, assert_accurate, assert_accurate_over_draws
from ops.chosen_backend import Backend
from ops.gradients import Results, exact_gradients, fused_gradients, stock_gradients
from ops.problems import case_named, exact, fused, make_operands, reference, stock, with_epilogue
from torch import Tensor

import r21d_ops

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.every_isa,
    pytest.mark.interpreted,
]


@pytest.mark.parametrize("training", [True, False])
def test_padding_applies_after_the_prologue(
    training: bool, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """With a large shift, a u filled with zeros would add relu(shift) at both ends of time."""
    case = case_named("frames-in-padding")
    operands = make_operands(case, generator, dtype)
    assert operands.bn_bias is not None
    operands = replace(operands, bn_bias=operands.bn_bias + 100, extra={"training": training})
    y = fused(operands.to(dtype), backend)
    first_seen = case.padding[0] - case.kernel[0] + 1
    assert first_seen > 0
    assert torch.count_nonzero(y[:, :, :first_seen]) == 0
    assert torch.count_nonzero(y[:, :, first_seen]) > 0
    if dtype != torch.float64:
        assert_accurate(y, exact(operands), stock(operands))


def test_nan_from_the_norm_stays_out_of_frames_in_padding(
    backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    case = case_named("frames-in-padding")
    operands = make_operands(case, generator, dtype)
    assert operands.bn_bias is not None
    operands.bn_bias[4] = float("nan")
    y = fused(operands, backend)
    expected = reference(operands.to(torch.float64))
    assert torch.equal(y.isnan(), expected.isnan())
    assert not y.isnan().all()


def test_statistics_are_of_real_pixels_only(
    backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """A constant frame without padding has variance 0; padding columns would show in it."""
    case = case_named("primes", size=(3, 7, 67), padding=(1, 0, 0))
    operands = make_operands(case, generator, dtype)
    constant = replace(
        operands,
        x=torch.ones_like(operands.x),
        spatial_weight=torch.full_like(operands.spatial_weight, 0.5),
        extra={"training": True, "momentum": 1.0},
    )
    fused(constant, backend)
    assert constant.running_mean is not None and constant.running_var is not None
    assert torch.equal(constant.running_mean, torch.full_like(constant.running_mean, 22.5))
    assert torch.count_nonzero(constant.running_var) == 0


def test_statistics_are_those_of_u_as_stored(
    backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """u = 256.5 or so is 256 or 257 in bfloat16: the mean is of what was rounded, not before."""
    if dtype != torch.bfloat16:
        pytest.skip("float32 and wider store u as computed")
    case = case_named("primes", c=2, kernel=(1, 1, 1), padding=(0, 0, 0))
    operands = make_operands(case, generator, dtype)
    # x = (256, a) and weights (1, 1): 256 + a, stored as 256 for a < 1.
    operands.x[:, 0] = 256.0
    operands.x[:, 1] = torch.rand(operands.x[:, 1].shape, generator=generator) * 0.75
    call = replace(
        operands,
        spatial_weight=torch.ones_like(operands.spatial_weight),
        extra={"training": True, "momentum": 1.0},
    )
    fused(call, backend)
    assert call.running_mean is not None and call.running_var is not None
    assert torch.equal(call.running_mean, torch.full_like(call.running_mean, 256.0))
    assert torch.count_nonzero(call.running_var) == 0


def test_large_mean_loses_no_more_than_stock(backend: Backend, seed: int) -> None:
    """A mean far above the deviation: sums of squares would cancel, Welford's do not."""
    case = case_named("primes", size=(4, 13, 17))

    @functools.cache
    def results(number: int) -> tuple[Results, Results, dict[str, list[Tensor]]]:
        generator = torch.Generator().manual_seed(number)
        operands = make_operands(case, generator)
        operands = replace(operands, x=operands.x * 0.01 + 300, extra={"momentum": 1.0})
        grad = torch.randn(case.n, case.o, *case.out_size, generator=generator)
        return (
            fused_gradients(operands, grad, backend, True),
            exact_gradients(operands, grad, True),
            stock_gradients(operands, grad, True),
        )

    def draw(name: str, numbers: Iterator[int]) -> Draw:
        ours, expected, plain = results(next(numbers))
        return ours[name], expected[name], plain[name]

    for name in ("y", "running_var", "gradient of spatial_weight", "gradient of x"):
        assert_accurate_over_draws(functools.partial(draw, name, itertools.count(seed)), name)


@pytest.mark.parametrize("training", [True, False])
def test_relu_keeps_nan(
    training: bool, backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """GradScaler finds an overflow by the NaN that reaches the loss."""
    operands = make_operands(case_named("primes"), generator, dtype)
    operands.x[0, 0, 0, 0, 0] = float("nan")
    call = replace(operands, relu=True, extra={"training": training})
    y = fused(call, backend)
    assert y[0, :, 0, 0, 0].isnan().all()
    if training:
        assert y.isnan().all()


def test_gradient_keeps_nan(
    backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    case = case_named("primes")
    operands = make_operands(case, generator, dtype)
    grad = torch.randn(case.n, case.o, *case.out_size, generator=generator).to(dtype)
    grad[0, 0, 0, 0, 0] = float("nan")
    results = fused_gradients(operands, grad, backend, True)
    for name in ("x", "spatial_weight", "temporal_weight", "bn_bias"):
        assert results[f"gradient of {name}"].isnan().any(), name


@pytest.mark.interpreted(dtype=[torch.float16])
@pytest.mark.parametrize("channels", [1, 3, 7, 8, 9, 17])
def test_any_number_of_input_channels(
    channels: int, backend: Backend, dtype: torch.dtype, seed: int
) -> None:
    case = case_named("primes", c=channels)
    numbers = iter(range(seed, seed + 3))

    def draw():  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(next(numbers))
        operands = make_operands(case, generator, dtype)
        return fused(operands, backend), exact(operands), stock(operands)

    assert_accurate_over_draws(draw)


@pytest.mark.parametrize("needed", ["x", "weight"])
def test_double_backward_raises(needed: str, backend: Backend, generator: torch.Generator) -> None:
    """A gradient penalty: silently wrong where the second derivative is just missing."""
    operands = make_operands(case_named("primes"), generator)
    leaf = (operands.x if needed == "x" else operands.spatial_weight).requires_grad_()
    y = r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(), training=True)
    # The gradient that comes in does not require grad itself.
    (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y), create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        grad.square().sum().backward()


def test_double_backward_through_the_output_gradient_raises(
    backend: Backend, generator: torch.Generator
) -> None:
    operands = make_operands(case_named("primes"), generator)
    operands.x.requires_grad_()
    y = r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords())
    (grad,) = torch.autograd.grad(y.square().sum(), operands.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        (y.mean() + grad.square().sum()).backward()


def test_norm_stays_float32_under_autocast(backend: Backend, generator: torch.Generator) -> None:
    low = torch.float16 if backend.name == "triton" else torch.bfloat16
    operands = make_operands(case_named("primes"), generator)
    leaves = [t.requires_grad_() for t in (operands.bn_weight, operands.bn_bias) if t is not None]
    with torch.autocast("cpu", low):
        y = r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(), training=True)
    assert y.dtype == low
    for grad in torch.autograd.grad(y.sum(), leaves):
        assert grad.dtype == torch.float32
    assert operands.running_mean is not None and operands.running_mean.dtype == torch.float32
    # What autocast gives is what casting by hand gives, vectors left alone.
    operands = with_epilogue(operands.to(torch.float32), generator, True, True, True, True)
    by_hand = operands.to(low)
    with torch.autocast("cpu", low):
        under_autocast = fused(operands.to(torch.float32), backend)
    assert torch.equal(under_autocast, fused(by_hand, backend))
