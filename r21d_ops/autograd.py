"""Forward and backward of the operator, over the operators of one backend.

Only x and u are kept for backward (``recompute=True``: only x); v = relu(bn(u)) and the ReLU mask
are rebuilt. With batch statistics, n values per channel and x̂ = (u - mean)·invstd, the gradient
of u is γ·invstd·(g - Σg/n - x̂·Σ(g·x̂)/n), g being the gradient at BatchNorm's output; with frozen
statistics it is γ·invstd·g.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from r21d_ops.backends import get_backend
from r21d_ops.backends.eager import statistics_dtype
from r21d_ops.problem import Triple


class Statistics(NamedTuple):
    """BatchNorm's statistics of u: ``values`` a channel, their mean and squared deviations.

    ``mean`` and ``m2`` (the sum of squared deviations) are (M,); ``values`` is a 0-d tensor.
    """

    mean: Tensor
    m2: Tensor
    values: Tensor


def merge_across(group: dist.ProcessGroup, local: Statistics) -> Statistics:
    """The statistics over every process of ``group`` (Chan's parallel formula).

    Sums *and counts* are exchanged: processes may hold batches of different sizes, or none.
    """
    packed = torch.cat([local.values.reshape(1), local.mean, local.m2])
    gathered = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, packed, group=group)
    table = torch.stack(gathered)
    channels = local.mean.numel()
    counts = table[:, :1]
    # A process without samples has no mean; its count of zero must not turn into 0·NaN.
    means = torch.where(counts > 0, table[:, 1 : 1 + channels], torch.zeros_like(counts))
    m2s = torch.where(counts > 0, table[:, 1 + channels :], torch.zeros_like(counts))
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    m2 = (m2s + counts * (means - mean) ** 2).sum(0)
    return Statistics(mean, m2, count)


class Normalization(NamedTuple):
    """What a BatchNorm does to a tensor: its statistics as they are used, (C,) each, and the values
    a channel and the unbiased variance that they were made of; empty with frozen statistics."""

    mean: Tensor
    invstd: Tensor
    values: Tensor
    unbiased: Tensor


def normalization(
    found: tuple[Tensor, Tensor, Tensor],
    frozen_mean: Tensor | None,
    frozen_var: Tensor | None,
    eps: float,
    group: dist.ProcessGroup | None,
) -> Normalization:
    """The BatchNorm of a convolution's output.

    Args:
        found: the output, its mean and sum of squared deviations, as the operators return them.
        frozen_mean, frozen_var: used in their place where they are not None.
        eps: added to the variance.
        group: processes that share their statistics, or None.
    """
    out, mean, m2 = found
    wide = statistics_dtype(out.dtype)
    if frozen_mean is not None and frozen_var is not None:
        # Kernels read the mean in backward; the caller's may be any view.
        mean, variance = frozen_mean.to(wide).contiguous(), frozen_var.to(wide)
        values, unbiased = out.new_empty(0, dtype=wide), out.new_empty(0, dtype=wide)
    else:
        values = torch.full((), out.numel() // out.shape[1], dtype=wide, device=out.device)
        if group is not None:
            mean, m2, values = merge_across(group, Statistics(mean, m2, values))
        variance = m2 / values
        unbiased = m2 / (values - 1)
    return Normalization(mean, torch.rsqrt(variance + eps), values, unbiased)


def told(norm: Normalization) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased variance and values a channel, for the running statistics."""
    # Copies: with frozen statistics the mean would be an input of the Function itself, and what is
    # saved must not be an output that the caller may change.
    return norm.mean.detach().clone(), norm.unbiased, norm.values.detach().clone()


class _RefuseDoubleBackward(Function):
    """Identity on a gradient, hung on the inputs it depends on; its own backward raises."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "r21d_ops has no double backward: gradients of its operators and blocks cannot be "
            "differentiated again. For a gradient penalty, use "
            "r21d_ops.reference.conv2plus1d_reference or stock layers."
        )


def refuse_double_backward(
    grads: list[Tensor | None], inputs: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """``grads``; where a graph of them is made, hung on the ``inputs`` that they depend on."""
    if not torch.is_grad_enabled():
        return grads
    hung_on = [t for t in inputs if t is not None and t.requires_grad]
    return [g if g is None else _RefuseDoubleBackward.apply(g, *hung_on) for g in grads]


def norm_vectors(
    mean: Tensor, invstd: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """scale, shift such that bn(u) = u·scale + shift."""
    scale = invstd if bn_weight is None else invstd * bn_weight.to(invstd.dtype)
    shift = -mean * scale
    if bn_bias is not None:
        shift = shift + bn_bias.to(shift.dtype)
    return scale.contiguous(), shift.contiguous()


def fold_norm(
    running_mean: Tensor,
    running_var: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """BatchNorm with frozen statistics as scale and shift per channel, for tensors of ``dtype``."""
    wide = statistics_dtype(dtype)
    invstd = torch.rsqrt(running_var.to(wide) + eps)
    return norm_vectors(running_mean.to(wide), invstd, bn_weight, bn_bias)


class Conv2Plus1DFunction(Function):
    """y, and with batch statistics the mean, unbiased variance and values a channel of u."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        spatial_weight: Tensor,
        temporal_weight: Tensor,
        bn_weight: Tensor | None,
        bn_bias: Tensor | None,
        frozen_mean: Tensor | None,
        frozen_var: Tensor | None,
        stride: Triple,
        padding: Triple,
        eps: float,
        recompute: bool,
        backend: str,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ops = get_backend(backend)
        batch_statistics = frozen_mean is None or frozen_var is None
        found = ops.spatial_forward(x, spatial_weight, stride, padding, batch_statistics)
        norm = normalization(found, frozen_mean, frozen_var, eps, group)
        u = found[0]
        scale, shift = norm_vectors(norm.mean, norm.invstd, bn_weight, bn_bias)
        y, _, _ = ops.temporal_forward(u, scale, shift, temporal_weight, stride, padding)

        ctx.save_for_backward(
            x,
            spatial_weight,
            temporal_weight,
            bn_weight,
            bn_bias,
            None if recompute else u,
            *norm[:3],
        )
        ctx.stride, ctx.padding, ctx.backend, ctx.group = stride, padding, backend, group
        ctx.batch_statistics = batch_statistics
        statistics = told(norm)
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        return y, *statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * 13
        saved = ctx.saved_tensors  # read once: checkpointing unpacks each tensor a single time
        with torch.no_grad():
            grads = _backward(ctx, saved, grad)
        grads = refuse_double_backward(grads, (*saved[:5], grad))
        return (*grads, *(None,) * 8)


def _backward(ctx: Any, saved: tuple[Any, ...], grad: Tensor) -> list[Tensor | None]:
    """Gradients of x, the two weights and BatchNorm's weight and bias."""
    x, spatial_weight, temporal_weight, bn_weight, bn_bias, u, mean, invstd, count = saved
    need_x, need_spatial, need_temporal, need_scale, need_shift = ctx.needs_input_grad[:5]
    ops = get_backend(ctx.backend)
    if u is None:
        u, _, _ = ops.spatial_forward(x, spatial_weight, ctx.stride, ctx.padding, False)
    scale, shift = norm_vectors(mean, invstd, bn_weight, bn_bias)
    g, grad_temporal, sum_g, sum_gx = ops.temporal_backward(
        grad,
        u,
        scale,
        shift,
        mean,
        invstd,
        temporal_weight,
        ctx.stride,
        ctx.padding,
        need_temporal,
    )
    grad_scale = sum_gx.to(bn_weight.dtype) if need_scale else None
    grad_shift = sum_g.to(bn_bias.dtype) if need_shift else None
    grad_x = grad_spatial = None
    # Every process of a SyncBN group must take part in the exchange, whatever it needs itself.
    u_factor, offset = norm_backward_vectors(
        ctx.batch_statistics, ctx.group, scale, mean, invstd, count, sum_g, sum_gx
    )
    if need_x or need_spatial:
        grad_x, grad_spatial, _, _ = ops.spatial_backward(
            g,
            u,
            x,
            spatial_weight,
            scale,
            u_factor,
            offset,
            ctx.stride,
            ctx.padding,
            need_x,
            need_spatial,
        )
    return [grad_x, grad_spatial, grad_temporal, grad_scale, grad_shift]


def norm_backward_vectors(
    batch_statistics: bool,
    group: dist.ProcessGroup | None,
    scale: Tensor,
    mean: Tensor,
    invstd: Tensor,
    count: Tensor,
    sum_g: Tensor,
    sum_gx: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """b and c of du = scale·g + b·u + c; None where the statistics are frozen.

    Across a SyncBN group the sums are reduced here, while the gradients of BatchNorm's own
    parameters stay local: DistributedDataParallel reduces those.
    """
    if not batch_statistics:
        return None, None
    if group is not None:
        sums = torch.cat([sum_g, sum_gx])
        dist.all_reduce(sums, group=group)
        sum_g, sum_gx = sums.chunk(2)
    u_factor = -scale * invstd * sum_gx / count
    return u_factor, -scale * sum_g / count - u_factor * mean
