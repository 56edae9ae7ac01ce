"""Forward-mode AD, ``torch.func`` and TorchScript: the right result or an error (about 2 s)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from accuracy import Draw, assert_accurate_over_draws
from ops.chosen_backend import Backend
from ops.modules_under_test import TinyNet, conv, run_children
from ops.problems import Operands, case_named, make_operands, reference, with_epilogue
from torch import Tensor

import r21d_ops
from r21d_ops import native
from r21d_ops.backends import BackendError

_NATIVE = pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))
_LAST = torch.channels_last_3d
_OPERANDS = (
    "x", "spatial_weight", "temporal_weight", "bn_weight", "bn_bias", "out_scale", "out_shift",
    "residual",
)  # fmt: skip

Values = tuple[Tensor, Tensor]


@pytest.fixture(params=["", "eager"], ids=["unforced", "eager"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends under which forward-mode AD is promised."""
    monkeypatch.setenv("R21D_BACKEND", request.param)


def _by_transform(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Values:
    y, dy = torch.func.jvp(function, (x,), (tangent,))
    return y.detach(), dy.detach()


def _by_dual_tensors(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Values:
    with forward_ad.dual_level():
        y, dy = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent)))
        assert dy is not None, "the tangent was lost"
        return y.detach().clone(), dy.detach().clone()


_WAYS = pytest.mark.parametrize("jvp", [_by_transform, _by_dual_tensors])
_GRADIENTS = pytest.mark.parametrize("gradients", [True, False])


@contextmanager
def _grad_mode(gradients: bool) -> Iterator[None]:
    with torch.set_grad_enabled(gradients):
        yield


@_WAYS
@_GRADIENTS
@pytest.mark.usefixtures("served")
def test_tangent_is_that_of_stock_layers(
    gradients: bool, jvp: Callable[..., Values], generator: torch.Generator
) -> None:
    """In eval, parameters requiring gradients or not; it was zero on ``cpu``."""
    module = conv(stride=(1, 2, 1)).eval()
    exact = copy.deepcopy(module).double()

    def draw(which: int) -> Draw:
        x, tangent = (torch.randn(2, 5, 4, 9, 8, generator=generator) for _ in range(2))
        stock = partial(jvp, lambda t: run_children(module, t))
        wide = jvp(lambda t: run_children(exact, t), x.double(), tangent.double())
        with _grad_mode(gradients):
            ours = jvp(module, x, tangent)
        ways = [stock(x, tangent), stock(x.contiguous(memory_format=_LAST), tangent)]
        return ours[which], wide[which], [way[which] for way in ways]

    for which, name in enumerate(("output", "tangent")):
        assert_accurate_over_draws(partial(draw, which), name)


def _with_operand(
    operands: Operands, name: str, call: Callable[[Operands], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda value: call(replace(operands, **{name: value}))


def _fused(operands: Operands) -> Tensor:
    return r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords())


def _operands(seed: int) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    operands = make_operands(case_named("primes"), generator)
    return with_epilogue(operands, generator, True, True, True, True)


@_WAYS
@_GRADIENTS
@pytest.mark.parametrize("name", _OPERANDS)
@pytest.mark.usefixtures("served")
def test_tangent_of_each_operand(
    name: str, gradients: bool, jvp: Callable[..., Values], seed: int
) -> None:
    numbers = count(seed)

    def draw() -> Draw:
        operands = _operands(next(numbers))
        value: Tensor = getattr(operands, name)
        tangent = torch.randn_like(value)

        def tangent_of(o: Operands, call: Callable[[Operands], Tensor]) -> Tensor:
            at: Tensor = getattr(o, name)
            return jvp(_with_operand(o, name, call), at, tangent.to(at.dtype))[1]

        with _grad_mode(gradients):
            ours = tangent_of(operands, _fused)
        stock = [tangent_of(o, reference) for o in (operands, operands.channels_last())]
        return ours, tangent_of(operands.to(torch.float64), reference), stock

    assert_accurate_over_draws(draw)


@_NATIVE
@_WAYS
@_GRADIENTS
@pytest.mark.parametrize("name", _OPERANDS)
def test_forced_native_backend_refuses_tangents(
    name: str, gradients: bool, jvp: Callable[..., Values], monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("R21D_BACKEND", "cpu")
    operands = _operands(seed)
    value: Tensor = getattr(operands, name)
    with (
        _grad_mode(gradients),
        pytest.raises(BackendError, match=r"'cpu'.*forward-mode AD"),
    ):
        jvp(_with_operand(operands, name, _fused), value, torch.ones_like(value))


@_WAYS
@_GRADIENTS
def test_tangent_in_training_is_an_error(
    gradients: bool, jvp: Callable[..., Values], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = conv(), torch.randn(2, 5, 4, 9, 8)
    with _grad_mode(gradients):
        for forced in (backend.name, ""):
            monkeypatch.setenv("R21D_BACKEND", forced)
            with pytest.raises(RuntimeError, match=r"forward.mode AD|in-place operation"):
                jvp(module.train(), x, torch.ones_like(x))


def test_without_a_tangent_a_dual_level_changes_nothing(backend: Backend) -> None:
    module, x = conv().eval(), torch.randn(2, 5, 4, 9, 8)
    with torch.no_grad():
        expected = module(x)
        with forward_ad.dual_level():
            assert torch.equal(module(x), expected)


@pytest.mark.parametrize("training", [True, False])
@_GRADIENTS
def test_functorch_gradients_are_an_error(
    gradients: bool, training: bool, backend: Backend
) -> None:
    """``torch.func.grad`` through the operator raises, and gives no wrong gradient."""
    module, x = conv().train(training), torch.randn(2, 5, 4, 9, 8)
    with (
        _grad_mode(gradients),
        pytest.raises(RuntimeError, match=r"functorch transforms|in-place operation"),
    ):
        torch.func.grad(lambda x: module(x).sum())(x)


@pytest.mark.parametrize("training", [True, False])
@_GRADIENTS
def test_vmap_is_an_error(gradients: bool, training: bool, backend: Backend) -> None:
    module, x = conv().train(training), torch.randn(3, 2, 5, 4, 9, 8)
    with _grad_mode(gradients), pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(module)(x)


@pytest.mark.parametrize("make", [conv, lambda: r21d_ops.fuse(TinyNet())], ids=["module", "model"])
def test_torchscript_is_an_error(make: Callable[[], torch.nn.Module]) -> None:
    with pytest.raises(RuntimeError):
        torch.jit.script(make().eval())
