"""The native CPU kernels (``csrc/cpu``): float32 and bfloat16 in NDHWC.

Inference is one fused pass. Training computes both forward convolutions natively, with BatchNorm's
statistics and its normalize+ReLU inside, and keeps u alone; the backward convolutions are torch's,
between native elementwise passes. Signatures and shapes: :mod:`r21d_ops.backends.eager`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r21d_ops import native
from r21d_ops.backends import eager
from r21d_ops.problem import Problem, Triple
from r21d_ops.shapes import ndhwc

NAME = "cpu"
DEVICES: tuple[str, ...] | None = ("cpu",)

_DTYPES = (torch.float32, torch.bfloat16)


def unavailable() -> str | None:
    """Needs the native library, and an instruction set that ``R21D_CPU_ISA`` may name."""
    return native.load_error or native.isa_error()


def can_run(problem: Problem) -> str | None:
    """Serves float32 and bfloat16 on the CPU."""
    if problem.device != "cpu":
        return f"it serves CPU tensors, not {problem.device}"
    if problem.dtype not in _DTYPES:
        return f"it serves float32 and bfloat16, not {problem.dtype}"
    return None


def inference(
    x: Tensor,
    spatial_weight: Tensor,
    temporal_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: Triple,
    padding: Triple,
) -> Tensor:
    out: Tensor = torch.ops.r21d.conv2plus1d(
        ndhwc(x),
        spatial_weight,
        temporal_weight,
        scale,
        shift,
        out_scale,
        out_shift,
        None if residual is None else ndhwc(residual),
        relu,
        stride,
        padding,
    )
    return out


def spatial_forward(
    x: Tensor, weight: Tensor, stride: Triple, padding: Triple, statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    u, mean, m2 = torch.ops.r21d.spatial_forward(ndhwc(x), weight, stride, padding, statistics)
    return u, mean, m2


def temporal_forward(
    u: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, stride: Triple, padding: Triple
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.ops.r21d.temporal_forward(ndhwc(u), scale, shift, weight, stride, padding)
    return eager.with_statistics(y, False)


def temporal_backward(
    grad: Tensor,
    u: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    need_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    u = ndhwc(u)
    v = torch.ops.r21d.norm_relu(u, scale, shift)
    grad_v, grad_weight = eager.temporal_conv_backward(
        grad, v, weight, stride, padding, need_weight
    )
    g, sum_g, sum_g_normalized = torch.ops.r21d.norm_relu_backward(
        ndhwc(grad_v), u, scale, shift, mean, invstd
    )
    return g, grad_weight, sum_g, sum_g_normalized


def spatial_backward(
    g: Tensor,
    u: Tensor,
    x: Tensor,
    weight: Tensor,
    g_factor: Tensor,
    u_factor: Tensor | None,
    offset: Tensor | None,
    stride: Triple,
    padding: Triple,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None, None, None]:
    grad_u = torch.ops.r21d.norm_backward(ndhwc(g), ndhwc(u), g_factor, u_factor, offset)
    grads = eager.spatial_conv_backward(grad_u, x, weight, stride, padding, need_x, need_weight)
    return *grads, None, None
