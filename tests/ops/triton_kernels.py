"""Every Triton kernel as a function of the same operands, and its definition in stock PyTorch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from accuracy import Draw, assert_accurate_over_draws
from ops.problems import Case, make_operands
from torch import Tensor

from r21d_ops.shapes import padded
from r21d_ops.triton import (
    fused,
    spatial,
    spatial_dgrad,
    spatial_wgrad,
    temporal,
    temporal_dgrad,
    temporal_wgrad,
)

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kernel:
    """One way to call one kernel.

    Attributes:
        name: what differs from the kernel's other ways included.
        module: holds the kernel, its launcher and its ``tiles(dtype)``.
        define: named outputs from operands, by stock PyTorch, in the operands' dtype.
        run: the same through the launcher; takes ``tile`` and ``parts`` (``chunk`` when fused).
        describable: which channels must be a multiple of 8 for weight descriptors; empty: none may.
    """

    name: str
    module: ModuleType
    define: Callable[[Case, Tensors], Tensors]
    run: Callable[..., Tensors]
    describable: str = ""

    def __str__(self) -> str:
        return self.name


def _ndhwc(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last_3d)


def _pad(t: Tensor) -> Tensor:
    """u or g as the kernels hold it: NDHWC, M rounded up with zeros."""
    return _ndhwc(F.pad(t, (0, 0, 0, 0, 0, 0, 0, padded(t.shape[1]) - t.shape[1])))


def _cut(t: Tensor, case: Case) -> Tensor:
    """The M channels of u or g; those beyond must be zero."""
    assert t.shape[1] == padded(case.m) and torch.count_nonzero(t[:, case.m :]) == 0
    return t[:, : case.m]


def _channel(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1, 1)


def _spatial(case: Case, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x, weight, None, (1, *case.stride[1:]), (0, *case.padding[1:]))


def _temporal(case: Case, v: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(v, weight, None, (case.stride[0], 1, 1), (case.padding[0], 0, 0))


def _affine(i: Tensors, u: Tensor) -> Tensor:
    """BatchNorm in the vectors' dtype, ReLU, rounded to u's."""
    wide = u.to(i["scale"].dtype) * _channel(i["scale"]) + _channel(i["shift"])
    return F.relu(wide).to(u.dtype)


def _finish(i: Tensors, y: Tensor) -> Tensor:
    """The whole epilogue, scale and shift in the vectors' dtype."""
    wide = y.to(i["out_scale"].dtype) * _channel(i["out_scale"]) + _channel(i["out_shift"])
    return F.relu(wide.to(y.dtype) + i["residual"])


def _epilogue(i: Tensors) -> dict[str, Any]:
    return {**{name: i[name] for name in ("out_scale", "out_shift", "residual")}, "relu": True}


def make_inputs(
    case: Case, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu",
    special: float | None = None,
) -> Tensors:  # fmt: skip
    """The operands of every kernel: tensors rounded to ``dtype``, NDHWC; vectors in float32.

    ``special`` stands once in each tensor that is not a weight.
    """
    operands = make_operands(case, generator, dtype)
    normal = functools.partial(torch.randn, generator=generator)
    _, h, w = case.out_size
    mid_shape = (case.n, case.m, case.size[0], h, w)
    tensors = {
        "x": operands.x,
        "spatial_weight": operands.spatial_weight,
        "temporal_weight": operands.temporal_weight,
        "u": normal(mid_shape).to(dtype),
        "g": normal(mid_shape).to(dtype),
        "grad": normal(case.n, case.o, *case.out_size).to(dtype),
        "residual": normal(case.n, case.o, *case.out_size).to(dtype),
    }
    if special is not None:
        for name in ("x", "u", "g", "grad", "residual"):
            tensors[name][0, 1, 1, 2, 1] = special
    names = ("scale", "shift", "mean", "invstd", "a", "b", "c")
    vectors = dict(zip(names, normal(len(names), case.m), strict=True))
    out = dict(zip(("out_scale", "out_shift"), normal(2, case.o), strict=True))
    found = {name: _ndhwc(t) for name, t in tensors.items()} | vectors | out
    return {name: t.to(device) for name, t in found.items()}


def _define_statistics(case: Case, i: Tensors) -> Tensors:
    u = _spatial(case, i["x"], i["spatial_weight"])
    variance, mean = torch.var_mean(u.to(i["scale"].dtype), (0, 2, 3, 4), correction=0)
    return {"u": u, "mean": mean, "m2": variance * (u.numel() // case.m)}


def _run_statistics(case: Case, i: Tensors, **way: Any) -> Tensors:
    u, mean, m2 = spatial.spatial_convolution(
        i["x"], i["spatial_weight"], case.stride, case.padding, statistics=True, **way
    )
    return {"u": _cut(u, case), "mean": mean, "m2": m2}


def _define_norm(case: Case, i: Tensors) -> Tensors:
    return {"v": _affine(i, _spatial(case, i["x"], i["spatial_weight"]))}


def _run_norm(case: Case, i: Tensors, **way: Any) -> Tensors:
    v, _, _ = spatial.spatial_convolution(
        i["x"], i["spatial_weight"], case.stride, case.padding, i["scale"], i["shift"], **way
    )
    return {"v": _cut(v, case)}


def _define_prologue(case: Case, i: Tensors) -> Tensors:
    return {"y": _temporal(case, _affine(i, i["u"]), i["temporal_weight"])}


def _run_prologue(case: Case, i: Tensors, **way: Any) -> Tensors:
    geometry = (i["temporal_weight"], case.stride, case.padding)
    y = temporal.temporal_convolution(_pad(i["u"]), *geometry, i["scale"], i["shift"], **way)
    return {"y": y}


def _define_epilogue(case: Case, i: Tensors) -> Tensors:
    return {"y": _finish(i, _temporal(case, i["u"], i["temporal_weight"]))}


def _run_epilogue(case: Case, i: Tensors, **way: Any) -> Tensors:
    geometry = (i["temporal_weight"], case.stride, case.padding)
    y = temporal.temporal_convolution(_pad(i["u"]), *geometry, **_epilogue(i), **way)
    return {"y": y}


def _define_fused(case: Case, i: Tensors) -> Tensors:
    return {"y": _finish(i, _temporal(case, _define_norm(case, i)["v"], i["temporal_weight"]))}


def _run_fused(case: Case, i: Tensors, **way: Any) -> Tensors:
    vectors = {name: i[name] for name in ("scale", "shift")}
    y = fused.fused_inference(
        i["x"], i["spatial_weight"], i["temporal_weight"], **vectors, **_epilogue(i),
        stride=case.stride, padding=case.padding, **way,
    )  # fmt: skip
    return {"y": y}


def _define_temporal_dgrad(case: Case, i: Tensors) -> Tensors:
    v = _affine(i, i["u"]).requires_grad_()
    (grad_v,) = torch.autograd.grad(_temporal(case, v, i["temporal_weight"]), v, i["grad"])
    g = torch.ops.aten.threshold_backward(grad_v, v, 0)  # lets it through where v is NaN
    wide = g.to(i["scale"].dtype)
    normalized = (i["u"].to(wide.dtype) - _channel(i["mean"])) * _channel(i["invstd"])
    axes = (0, 2, 3, 4)
    return {
        "g": g.detach(),
        "sum of g": wide.sum(axes),
        "sum of g·x̂": (wide * normalized).sum(axes),
    }


def _run_temporal_dgrad(case: Case, i: Tensors, **way: Any) -> Tensors:
    vectors = (i[name] for name in ("scale", "shift", "mean", "invstd"))
    g, sums, normalized = temporal_dgrad.temporal_input_gradient(
        i["grad"], _pad(i["u"]), *vectors, i["temporal_weight"], case.stride, case.padding, **way
    )
    return {"g": _cut(g, case), "sum of g": sums, "sum of g·x̂": normalized}


def _define_temporal_wgrad(case: Case, i: Tensors) -> Tensors:
    weight = i["temporal_weight"].detach().requires_grad_()
    y = _temporal(case, _affine(i, i["u"]), weight)
    return {"gradient": torch.autograd.grad(y, weight, i["grad"])[0]}


def _run_temporal_wgrad(case: Case, i: Tensors, **way: Any) -> Tensors:
    gradient = temporal_wgrad.temporal_weight_gradient(
        i["grad"], _pad(i["u"]), i["scale"], i["shift"], case.kernel[0], case.stride, case.padding,
        **way,
    )  # fmt: skip
    return {"gradient": gradient}


def _grad_u(i: Tensors, frozen: bool) -> Tensor:
    grad_u = i["g"].to(i["a"].dtype) * _channel(i["a"])
    if not frozen:
        grad_u = grad_u + i["u"].to(grad_u.dtype) * _channel(i["b"]) + _channel(i["c"])
    return grad_u.to(i["g"].dtype)


def _define_spatial_grad(wanted: str, frozen: bool, case: Case, i: Tensors) -> Tensors:
    leaf = i[wanted].detach().requires_grad_()
    operands = {**i, wanted: leaf}
    u = _spatial(case, operands["x"], operands["spatial_weight"])
    return {"gradient": torch.autograd.grad(u, leaf, _grad_u(i, frozen))[0]}


def _factors(i: Tensors, frozen: bool) -> Sequence[Tensor | None]:
    return (i["a"], None, None) if frozen else (i["a"], i["b"], i["c"])


def _run_spatial_dgrad(frozen: bool, case: Case, i: Tensors, **way: Any) -> Tensors:
    gradient = spatial_dgrad.spatial_input_gradient(
        _pad(i["g"]), _pad(i["u"]), i["spatial_weight"], case.size, *_factors(i, frozen),
        case.stride, case.padding, **way,
    )  # fmt: skip
    return {"gradient": gradient}


def _run_spatial_wgrad(frozen: bool, case: Case, i: Tensors, **way: Any) -> Tensors:
    gradient = spatial_wgrad.spatial_weight_gradient(
        _pad(i["g"]), _pad(i["u"]), i["x"], (case.kernel[1], case.kernel[2]), case.m,
        *_factors(i, frozen), case.stride, case.padding, **way,
    )  # fmt: skip
    return {"gradient": gradient}


def _spatial_grads() -> Iterator[Kernel]:
    for frozen, suffix in ((False, ""), (True, ", frozen statistics")):
        for name, module, wanted, run in (
            ("spatial_dgrad", spatial_dgrad, "x", _run_spatial_dgrad),
            ("spatial_wgrad", spatial_wgrad, "spatial_weight", _run_spatial_wgrad),
        ):
            define = functools.partial(_define_spatial_grad, wanted, frozen)
            yield Kernel(name + suffix, module, define, functools.partial(run, frozen))


KERNELS = (
    Kernel("spatial, statistics", spatial, _define_statistics, _run_statistics, "c"),
    Kernel("spatial, norm", spatial, _define_norm, _run_norm, "c"),
    Kernel("temporal, norm", temporal, _define_prologue, _run_prologue, "m"),
    Kernel("temporal, epilogue", temporal, _define_epilogue, _run_epilogue, "m"),
    Kernel("fused", fused, _define_fused, _run_fused, "c"),
    Kernel("temporal_dgrad", temporal_dgrad, _define_temporal_dgrad, _run_temporal_dgrad),
    Kernel("temporal_wgrad", temporal_wgrad, _define_temporal_wgrad, _run_temporal_wgrad),
    *_spatial_grads(),
)


def check_kernel(
    kernel: Kernel, case: Case, dtype: torch.dtype, generator: torch.Generator,
    device: str = "cpu", special: float | None = None, **way: Any,
) -> None:  # fmt: skip
    """Every output of ``kernel`` by the rule of accuracy, each by its own votes."""
    drawn: list[tuple[Tensors, Tensors, list[Tensors]]] = []

    def draw_once() -> tuple[Tensors, Tensors, list[Tensors]]:
        inputs = make_inputs(case, dtype, generator, device, special)
        wide = {name: t.double() for name, t in inputs.items()}
        plain = {name: t.contiguous() for name, t in inputs.items()}
        stock = [kernel.define(case, operands) for operands in (inputs, plain)]
        return kernel.run(case, inputs, **way), kernel.define(case, wide), stock

    def draw(name: str, numbers: Iterator[int]) -> Draw:
        number = next(numbers)
        if number == len(drawn):
            drawn.append(draw_once())
        ours, exact, stock = drawn[number]
        return ours[name], exact[name], [way[name] for way in stock]

    drawn.append(draw_once())
    for name in drawn[0][0]:
        assert_accurate_over_draws(functools.partial(draw, name, itertools.count()), name)
