"""Frozen BatchNorms that people write themselves: four vectors, and an affine ``forward``.

torchvision's and detectron2's have two dimensions, and everyone has made their own for video.
They are known by what they hold and by what they compute: the class's ``forward`` runs on a twin
with operands of ours, and its values and gradients are compared with those of ``F.batch_norm`` in
float64. What depends on nothing but the class, the module's constants and the operands can be
told so; a module that holds anything else is refused. A forward that looks at the shape of its
input is told from the shapes tried, and state outside of the module goes unseen.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from r21d_ops.plain import is_constant

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_VECTORS = ("running_mean", "running_var", "weight", "bias")
#: A forward rounds some ten times, and so does ``F.batch_norm``; each time by half a unit at most.
_UNITS = 16
_SMALL = ((2, 3, 2, 4), (1, 1, 1, 1), (3, 2, 5, 1))
#: (N, T, H, W) that are long along one axis.
_LONG = ((129, 1, 1, 1), (1, 129, 1, 1), (1, 1, 129, 1), (1, 1, 1, 129))


def frozen_eps(module: nn.Module) -> float:
    """What the norm adds to its variance; those without an ``eps`` add nothing."""
    eps = getattr(module, "eps", 0.0)
    return float(eps) if isinstance(eps, (int, float)) else float("nan")


def looks_frozen(module: nn.Module) -> bool:
    """Whether ``module`` holds the four vectors of a BatchNorm and is not one of ``torch.nn``."""
    if type(module).__module__.startswith("torch.nn.") or any(True for _ in module.children()):
        return False
    held = {**module._parameters, **module._buffers}
    vectors = [held.get(name) for name in _VECTORS]
    # A lazy one has no shape to ask for.
    if any(v is None or is_lazy(v) or not v.is_floating_point() for v in vectors):
        return False
    shapes = {v.shape for v in vectors if v is not None}
    return len(shapes) == 1 and len(next(iter(shapes))) == 1


def why_not_frozen(module: nn.Module) -> str | None:
    """Why ``module``, which looks frozen, is not BatchNorm with constant statistics, or None.

    In training and eval, with and without gradients and autocast. The answer holds for as long as
    the module's class and its constants are the same.
    """
    reason = _why_no_twin(module)
    if reason is None:
        # The global sources of random numbers are the user's.
        states = _random_states()
        try:
            with torch.inference_mode(False):
                reason = _why_different(module)
            if reason is None and not _same_states(states, _random_states()):
                reason = "draws random numbers"
        finally:
            _restore(states)
    return None if reason is None else f"{type(module).__name__} {reason}"


def _why_no_twin(module: nn.Module) -> str | None:
    kind = type(module)
    if hasattr(kind, "__del__"):
        return "has a __del__, which a twin would run"
    if kind.__call__ is not nn.Module.__call__ or kind._call_impl is not nn.Module._call_impl:
        return "is called in a way of its own"
    if "forward" in module.__dict__:
        return "has a forward of its own"
    for name, value in own_attributes(module).items():
        if not is_constant(value):
            return f"holds {name}, a {type(value).__name__} that may change"
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and type(tensor) not in (Tensor, nn.Parameter):
            return f"holds {name}, a {type(tensor).__name__}"
    return None


def own_attributes(module: nn.Module) -> dict[str, object]:
    """All but what every ``nn.Module`` holds."""
    return {k: v for k, v in module.__dict__.items() if k not in _OF_EVERY_MODULE}


class _Mode(NamedTuple):
    """In which the forward is run: flags of the twin, of autograd and of what it is applied to."""

    training: bool
    gradients: bool = False
    of_input: bool = False
    of_parameters: bool = False
    autocast: bool = False


def _trials() -> Iterator[tuple[_Mode, tuple[int, ...], torch.dtype]]:
    """Modes, (N, T, H, W) and dtypes."""
    flags = (False, True)
    for training in flags:
        for size, autocast in itertools.product(_SMALL, flags):
            yield _Mode(training, autocast=autocast), size, torch.float64
            yield _Mode(training, True, True, True, autocast), size, torch.float64
        for size, *of in itertools.product(_SMALL[:2], flags, flags):
            yield _Mode(training, True, *of), size, torch.float64
        for size in _LONG:
            yield _Mode(training), size, torch.float64
        for dtype in (torch.float32, torch.bfloat16):
            yield _Mode(training, True, True, True), _SMALL[0], dtype


def _why_different(module: nn.Module) -> str | None:
    source = torch.Generator().manual_seed(0)
    kind = type(module)
    classes = {c: dict(vars(c)) for c in kind.__mro__}
    for number, (mode, size, dtype) in enumerate(_trials()):
        try:
            operands = _operands(module, size, dtype, source)
            if number % 3 == 0:
                # The format of the operator's output.
                last = torch.channels_last_3d
                operands["x"] = operands["x"].contiguous(memory_format=last)
            if not mode.gradients:
                # On some inputs infinity and NaN must not be made numbers.
                special = (float("nan"), float("inf"), float("-inf"), 0.0)[number % 4]
                operands["x"][-1, -1, -1, -1, -1] = special
            reason = _why_different_on(module, operands, mode)
        except Exception as error:
            return f"cannot be run on a tensor to see what it computes: {type(error).__name__}"
        if reason is not None:
            return reason
    for c, members in classes.items():
        now = vars(c)
        if now.keys() != members.keys() or any(now[k] is not v for k, v in members.items()):
            return "changes its class"
    return None


def _operands(
    module: nn.Module, size: tuple[int, ...], dtype: torch.dtype, source: torch.Generator
) -> dict[str, Tensor]:
    """What to put into all tensors of the module, and an input ``x``.

    Vectors of both signs, variances from 1e-8 to 1e3 and inputs from 1e-3 to 1e5; in a dtype that
    has not the digits for that, within 1e-2 to 1e2.
    """
    wide = dtype == torch.float64

    def uniform(shape: Any, low: float, high: float) -> Tensor:
        unit = torch.rand(shape, dtype=torch.float64, device="cpu", generator=source)
        return low + (high - low) * unit

    def signs(shape: Any) -> Tensor:
        return uniform(shape, -1, 1).sign()

    operands = {}
    for name, tensor in {**module._parameters, **module._buffers}.items():
        if tensor is None:
            continue
        if name == "running_var":
            value = 10 ** (uniform(tensor.shape, -8, 3) if wide else uniform(tensor.shape, -2, 2))
        else:
            # The other tensors too, which make no difference to a BatchNorm.
            value = signs(tensor.shape) * uniform(tensor.shape, 0.1, 4)
        operands[name] = value.to(dtype if tensor.is_floating_point() else tensor.dtype)
    shape = (size[0], operands["running_mean"].numel(), *size[1:])
    x = signs(shape) * 10 ** (uniform(shape, -3, 5) if wide else uniform(shape, -2, 2))
    operands["x"] = x.to(dtype)
    operands["grad"] = (signs(shape) * uniform(shape, 0.1, 4)).to(dtype)
    return operands


def _twin(module: nn.Module, operands: dict[str, Tensor]) -> nn.Module:
    """A module of the same class and constants that holds ``operands``, and no hooks.

    Made by hand: neither ``__init__`` nor a ``__deepcopy__`` of the user is run.
    """
    kind = type(module)
    twin: nn.Module = object.__new__(kind)
    twin.__dict__.update(nn.Module().__dict__)
    twin.__dict__.update(own_attributes(module))
    twin._non_persistent_buffers_set.update(module._non_persistent_buffers_set)
    for name, parameter in module._parameters.items():
        value = None if parameter is None else nn.Parameter(operands[name].clone(), False)
        twin._parameters[name] = value
    for name, buffer in module._buffers.items():
        twin._buffers[name] = None if buffer is None else operands[name].clone()
    return twin


def _why_different_on(module: nn.Module, operands: dict[str, Tensor], mode: _Mode) -> str | None:
    twin = _twin(module, operands)
    # Some classes set flags here.
    twin.train(mode.training)
    training = twin.training
    held = {**twin._parameters, **twin._buffers}
    learn = [n for n in ("weight", "bias") if isinstance(held[n], nn.Parameter)]
    x = operands["x"].clone().requires_grad_(mode.of_input)
    exact = {n: operands[n].detach().double() for n in ("x", *_VECTORS)}
    exact["x"].requires_grad_(mode.of_input)
    for name in learn:
        twin._parameters[name].requires_grad_(mode.of_parameters)  # type: ignore[union-attr]
        exact[name].requires_grad_(mode.of_parameters)
    with torch.set_grad_enabled(mode.gradients):
        # Called as nn.Module does, without anybody's global hooks.
        with torch.autocast("cpu", torch.bfloat16, enabled=mode.autocast):
            y: object = type(module).forward(twin, x)
        mean, variance, weight, bias = (exact[name] for name in _VECTORS)
        eps = frozen_eps(module)
        expected = F.batch_norm(exact["x"], mean, variance, weight, bias, eps=eps)
    if twin.training is not training or any(
        held[name].requires_grad is not mode.of_parameters  # type: ignore[union-attr]
        for name in learn
    ):
        return "changes its own flags"
    if not isinstance(y, Tensor) or y.shape != expected.shape or y.dtype != x.dtype:
        return "does not make one tensor of the shape and dtype of its input"
    bounds = _bounds({n: t.detach() for n, t in exact.items()}, operands, eps)
    if not _close(y, expected, bounds["y"]):
        return "does not compute BatchNorm with constant statistics"
    if y.requires_grad != expected.requires_grad:
        return "does not keep the gradients that BatchNorm has"
    if y.requires_grad:
        wanted = {"x": x} if mode.of_input else {}
        wanted |= {n: held[n] for n in learn if mode.of_parameters}  # type: ignore[misc]
        grad = operands["grad"]
        ours = torch.autograd.grad(y, list(wanted.values()), grad, allow_unused=True)
        theirs = torch.autograd.grad(expected, [exact[n] for n in wanted], grad.double())
        for name, a, b in zip(wanted, ours, theirs, strict=True):
            if a is None or not _close(a, b, bounds[name]):
                return f"does not make BatchNorm's gradient of {name}"
    return _why_changed(module, twin, held, operands, x)


def _bounds(exact: dict[str, Tensor], operands: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    """By how much each result may differ: some units in the last place of the terms it sums."""
    unit = _UNITS * torch.finfo(operands["x"].dtype).eps
    mean, variance, weight, bias = (exact[n].reshape(1, -1, 1, 1, 1).abs() for n in _VECTORS)
    invstd, x, grad = (variance + eps).rsqrt(), exact["x"].abs(), operands["grad"].double().abs()
    normed = (x + mean) * invstd
    dims = (0, 2, 3, 4)
    return {
        "y": unit * (normed * weight + bias),
        "x": unit * grad * weight * invstd,
        "weight": unit * (grad * normed).sum(dims),
        "bias": unit * grad.sum(dims),
    }


def _close(actual: Tensor, exact: Tensor, bound: Tensor) -> bool:
    """Within ``bound``, with infinity and NaN in the same places."""
    a, b = actual.detach().double(), exact.detach()
    same = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= bound) & b.isfinite()
    return a.shape == b.shape and bool(same.all())


def _why_changed(
    module: nn.Module,
    twin: nn.Module,
    held: dict[str, Tensor | None],
    operands: dict[str, Tensor],
    x: Tensor,
) -> str | None:
    """What the twin did beside returning a result, or None."""
    if x._version or not _equal(x, operands["x"]):
        return "changes its input"
    now = {**twin._parameters, **twin._buffers}
    if now.keys() != held.keys() or any(now[name] is not t for name, t in held.items()):
        return "changes its statistics"
    if not all(t is None or _equal(t, operands[name]) for name, t in held.items()):
        return "changes its statistics"
    before, after = own_attributes(module), own_attributes(twin)
    # Not by ==, for 1 is True, and NaN is not itself.
    if before.keys() != after.keys() or any(after[k] is not v for k, v in before.items()):
        return "changes its own attributes"
    hung_on = (v for k, v in twin.__dict__.items() if "hook" in k or k == "_modules")
    return "hangs something on itself" if any(hung_on) else None


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all())


def _numpy_random() -> Any:
    """``numpy.random`` where somebody has imported it, else None."""
    return getattr(sys.modules.get("numpy"), "random", None)


def _random_states() -> tuple[Tensor, object, Any]:
    numpy = _numpy_random()
    return torch.get_rng_state(), random.getstate(), None if numpy is None else numpy.get_state()


def _same_states(a: tuple[Tensor, object, Any], b: tuple[Tensor, object, Any]) -> bool:
    if not torch.equal(a[0], b[0]) or a[1] != b[1]:
        return False
    # A name, an array of words, and numbers.
    rest = zip(a[2] or (), b[2] or (), strict=False)
    return all(
        bool((one == other).all() if hasattr(one, "all") else one == other) for one, other in rest
    )


def _restore(states: tuple[Tensor, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    if states[2] is not None:
        _numpy_random().set_state(states[2])
