"""Outputs, gradients and running statistics of one call, of the operator and of its definition."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from ops.chosen_backend import Backend
from ops.problems import Case, Operands, reference, reference_on_views, reversed_channels
from torch import Tensor, nn

import r21d_ops

_DIFFERENTIABLE = (
    "x", "spatial_weight", "temporal_weight", "bn_weight", "bn_bias", "out_scale", "out_shift",
    "residual",
)  # fmt: skip

Results = dict[str, Tensor]


def _evaluate(
    operands: Operands, grad: Tensor, compute: Callable[[Operands], Tensor], training: bool
) -> Results:
    """y, the gradient of each operand and the running statistics, all on the CPU."""
    given = {n: v for n in _DIFFERENTIABLE if (v := getattr(operands, n)) is not None}
    leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
    call = replace(operands, **leaves, extra={**operands.extra, "training": training})
    y = compute(call)
    grads = torch.autograd.grad(y, list(leaves.values()), grad.to(y))
    results = {"y": y.detach().cpu()}
    results |= {f"gradient of {n}": g.cpu() for n, g in zip(leaves, grads, strict=True)}
    if training and operands.running_mean is not None and operands.running_var is not None:
        results["running_mean"] = operands.running_mean.cpu()
        results["running_var"] = operands.running_var.cpu()
    return results


def fused_gradients(
    operands: Operands, grad: Tensor, backend: Backend, training: bool, recompute: bool = False
) -> Results:
    """The operator under test, on copies of ``operands``."""
    copy = operands.to(operands.x.dtype).on(backend.device)
    options = {"recompute": recompute}
    return _evaluate(
        replace(copy, extra={**copy.extra, **options}),
        grad,
        lambda call: r21d_ops.conv2plus1d(*call.tensors(), **call.keywords()),
        training,
    )


def exact_gradients(operands: Operands, grad: Tensor, training: bool) -> Results:
    """The definition in float64."""
    return _evaluate(operands.to(torch.float64), grad, reference, training)


def stock_gradients(operands: Operands, grad: Tensor, training: bool) -> dict[str, list[Tensor]]:
    """The definition in the operands' dtype, in every way that stock PyTorch offers: both memory
    formats, 2-D views (whose backward convolutions the operator calls), channels reversed.
    """
    ways: list[Callable[[Operands], Tensor]] = [
        reference,
        lambda call: reference(call.channels_last()),
        reference_on_views,
        lambda call: reference(reversed_channels(call)),
        lambda call: reference(reversed_channels(call).channels_last()),
    ]
    # The running statistics of a reversed call are updated in copies, so those ways count once.
    results = [_evaluate(operands.to(operands.x.dtype), grad, way, training) for way in ways]
    plain = {name: [r[name] for r in results[:3]] for name in results[0]}
    rest = {name: [r[name] for r in results[3:]] for name in results[0] if "running" not in name}
    return {name: plain[name] + rest.get(name, []) for name in plain}


#: What :func:`ops.modules_under_test.collect` calls the results of :func:`stock_gradients`.
_NAMES = {
    "y": "y",
    "x.grad": "gradient of x",
    "0.weight.grad": "gradient of spatial_weight",
    "1.weight.grad": "gradient of bn_weight",
    "1.bias.grad": "gradient of bn_bias",
    "3.weight.grad": "gradient of temporal_weight",
    "1.running_mean": "running_mean",
    "1.running_var": "running_var",
}


def stock_step(module: nn.Sequential, x: Tensor, grad: Tensor) -> dict[str, list[Tensor]]:
    """:func:`stock_gradients` of a training step of the four layers of ``module``."""
    spatial, norm, _, temporal = (copy.deepcopy(child) for child in module)
    axes = {
        name: (getattr(temporal, name)[0], *getattr(spatial, name)[1:])
        for name in ("stride", "padding")
    }
    n, c, *size = x.shape
    kernel = (temporal.kernel_size[0], *spatial.kernel_size[1:])
    case = Case(
        "module", n, c, spatial.out_channels, temporal.out_channels, tuple(size), kernel, **axes
    )
    operands = Operands(
        case,
        x=x,
        spatial_weight=spatial.weight,
        temporal_weight=temporal.weight,
        running_mean=norm.running_mean,
        running_var=norm.running_var,
        bn_weight=norm.weight,
        bn_bias=norm.bias,
    )
    results = stock_gradients(operands, grad, True)
    return {name: results[theirs] for name, theirs in _NAMES.items()}
