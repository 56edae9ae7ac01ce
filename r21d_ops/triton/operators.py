"""``torch.ops.r21d_triton.*``: the backend's operators, opaque to ``torch.compile``.

Signatures and shapes are those of :mod:`r21d_ops.backends.eager`, except that u and g have M
rounded up to 16 channels and gradients that are not asked for are empty. Triton and the kernels are
imported at the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from r21d_ops import dispatch
from r21d_ops.problem import Triple, problem_of
from r21d_ops.shapes import like_ndhwc, ndhwc, padded, spatial_shape, temporal_shape

NAMESPACE = "r21d_triton"

#: Pixels of a tensor, elements of a clip with its channels rounded up and of a weight: 32 bits.
MOST_INDEX = 2**31 - 2**16


def _triple(values: Sequence[int]) -> Triple:
    return (values[0], values[1], values[2])


def _inference(
    x: Tensor,
    spatial_weight: Tensor,
    temporal_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    from r21d_ops.triton import fused, spatial, temporal

    x = ndhwc(x)
    residual = None if residual is None else ndhwc(residual)
    steps, sides = _triple(stride), _triple(padding)
    epilogue = (out_scale, out_shift, residual, relu)
    problem = problem_of(x, spatial_weight, temporal_weight, steps, sides)
    if dispatch.inference_kernels("triton", problem) == "fused":
        return fused.fused_inference(
            x, spatial_weight, temporal_weight, scale, shift, *epilogue, steps, sides
        )
    v, _, _ = spatial.spatial_convolution(x, spatial_weight, steps, sides, scale, shift)
    return temporal.temporal_convolution(v, temporal_weight, steps, sides, None, None, *epilogue)


def _spatial_forward(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from r21d_ops.triton import spatial

    return spatial.spatial_convolution(
        ndhwc(x), weight, _triple(stride), _triple(padding), statistics=statistics
    )


def _temporal_forward(
    u: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    from r21d_ops.triton import temporal

    return temporal.temporal_convolution(
        ndhwc(u), weight, _triple(stride), _triple(padding), scale, shift
    )


def _temporal_backward(
    grad: Tensor,
    u: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from r21d_ops.triton import temporal_dgrad, temporal_wgrad

    grad, u = ndhwc(grad), ndhwc(u)
    steps, sides = _triple(stride), _triple(padding)
    g, sum_g, sum_normalized = temporal_dgrad.temporal_input_gradient(
        grad, u, scale, shift, mean, invstd, weight, steps, sides
    )
    if need_weight:
        grad_weight = temporal_wgrad.temporal_weight_gradient(
            grad, u, scale, shift, weight.shape[2], steps, sides
        )
    else:
        grad_weight = weight.new_empty(0)
    return g, grad_weight, sum_g, sum_normalized


def _spatial_backward(
    g: Tensor,
    u: Tensor,
    x: Tensor,
    weight: Tensor,
    g_factor: Tensor,
    u_factor: Tensor | None,
    offset: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    from r21d_ops.triton import spatial_dgrad, spatial_wgrad

    g, u, x = ndhwc(g), ndhwc(u), ndhwc(x)
    steps, sides = _triple(stride), _triple(padding)
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    factors = (g_factor, u_factor, offset)
    if need_x:
        grad_x = spatial_dgrad.spatial_input_gradient(
            g, u, weight, _triple(x.shape[2:]), *factors, steps, sides
        )
    if need_weight:
        kernel = (weight.shape[3], weight.shape[4])
        grad_weight = spatial_wgrad.spatial_weight_gradient(
            g, u, x, kernel, weight.shape[0], *factors, steps, sides
        )
    return grad_x, grad_weight


def _empty_weight(weight: Tensor, needed: bool) -> Tensor:
    """A weight's gradient as the kernels leave it: contiguous, inputs innermost."""
    outputs, inputs, *kernel = weight.shape
    if not needed:
        return weight.new_empty(0)
    return weight.new_empty(outputs, *kernel, inputs).permute(0, 4, 1, 2, 3)


def _like_inference(x: Tensor, spatial: Tensor, temporal: Tensor, *rest: Any) -> Tensor:
    mid = spatial_shape(x, spatial, *rest[-2:])
    return like_ndhwc(x, temporal_shape(mid, temporal, *rest[-2:]))


def _like_spatial_forward(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, mid, *size = spatial_shape(x, weight, stride, padding)
    mean, m2 = (x.new_empty(mid if statistics else 0, dtype=torch.float32) for _ in range(2))
    return like_ndhwc(x, [n, padded(mid), *size]), mean, m2


def _like_temporal_forward(
    u: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, *geometry: Any
) -> Tensor:
    return like_ndhwc(u, temporal_shape(u.shape, weight, *geometry))


def _like_temporal_backward(
    grad: Tensor, u: Tensor, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, need_weight = rest[3], rest[-1]
    g = like_ndhwc(u, u.shape)
    grad_weight = _empty_weight(weight, need_weight)
    return g, grad_weight, torch.empty_like(scale), torch.empty_like(scale)


def _like_spatial_backward(
    g: Tensor, u: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    need_x, need_weight = rest[-2:]
    grad_x = like_ndhwc(x, x.shape) if need_x else x.new_empty(0)
    return grad_x, _empty_weight(weight, need_weight)


#: Signature, implementation, fake implementation.
_OPERATORS: tuple[tuple[str, Any, Any], ...] = (
    (
        "inference(Tensor x, Tensor spatial_weight, Tensor temporal_weight, Tensor scale, "
        "Tensor shift, Tensor? out_scale, Tensor? out_shift, Tensor? residual, bool relu, "
        "int[] stride, int[] padding) -> Tensor",
        _inference,
        _like_inference,
    ),
    (
        "spatial_forward(Tensor x, Tensor weight, int[] stride, int[] padding, bool statistics) "
        "-> (Tensor, Tensor, Tensor)",
        _spatial_forward,
        _like_spatial_forward,
    ),
    (
        "temporal_forward(Tensor u, Tensor scale, Tensor shift, Tensor weight, int[] stride, "
        "int[] padding) -> Tensor",
        _temporal_forward,
        _like_temporal_forward,
    ),
    (
        "temporal_backward(Tensor grad, Tensor u, Tensor scale, Tensor shift, Tensor mean, "
        "Tensor invstd, Tensor weight, int[] stride, int[] padding, bool need_weight) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        _temporal_backward,
        _like_temporal_backward,
    ),
    (
        "spatial_backward(Tensor g, Tensor u, Tensor x, Tensor weight, Tensor g_factor, "
        "Tensor? u_factor, Tensor? offset, int[] stride, int[] padding, bool need_x, "
        "bool need_weight) -> (Tensor, Tensor)",
        _spatial_backward,
        _like_spatial_backward,
    ),
)

_library = torch.library.Library(NAMESPACE, "DEF")
for _schema, _implementation, _fake in _OPERATORS:
    _name = _schema.partition("(")[0]
    _library.define(_schema)
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _implementation, _key)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=_library)
