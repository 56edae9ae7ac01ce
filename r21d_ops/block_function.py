"""The residual block of two (2+1)D convolutions as one function, for training.

::

    y1 = conv1(x);  y2 = conv2(relu(bn1(y1)));  out = relu(bn2(y2) + shortcut)

Where one module owns both convolutions and the BatchNorms behind them (paper, Table 1), the
statistics of y1 and y2 come from the epilogues of the temporal convolutions that make them, and
the normalized y1 exists on the way into conv2 alone. x, u1, y1, u2, y2 and out are kept for
backward; with ``recompute`` x, y1, y2 and out. The derivation is in ``docs/kernels.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from r21d_ops.autograd import (
    Normalization,
    norm_backward_vectors,
    norm_vectors,
    normalization,
    refuse_double_backward,
    told,
)
from r21d_ops.backends import get_backend
from r21d_ops.backends.eager import Norm, NormGradient
from r21d_ops.functional import update_running
from r21d_ops.problem import Triple

#: BatchNorms of a block: within conv1, behind it, within conv2, behind it.
_NORMS = 4
#: Tensors of :class:`BlockFunction` before those of the BatchNorms: x, the shortcut, four weights.
_FIRST = 6


class BlockNorm(NamedTuple):
    """A BatchNorm of a block.

    ``frozen``: mean and variance that are used, or None, None for the batch's; ``running``: those
    that the batch's are averaged into with ``momentum``, or None.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    frozen: tuple[Tensor, Tensor] | tuple[None, None]
    running: tuple[Tensor, Tensor] | None
    momentum: float
    group: dist.ProcessGroup | None


class BlockConvolution(NamedTuple):
    """A (2+1)D convolution of a block: its spatial and temporal weight; ``recompute``: u is made
    again in backward."""

    weights: Sequence[Tensor]
    stride: Triple
    padding: Triple
    recompute: bool


def residual_block(
    x: Tensor,
    shortcut: Tensor | None,
    convolutions: Sequence[BlockConvolution],
    norms: Sequence[BlockNorm],
    backend: str,
) -> Tensor:
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut), and the running statistics updated.

    Args:
        x: (N, C, T, H, W).
        shortcut: of the output's shape and dtype; None is x itself.
        convolutions: conv1 and conv2.
        norms: within conv1, behind it, within conv2, behind it.
        backend: the name of one that runs both convolutions' problems.

    Returns:
        (N, O, T', H', W') in NDHWC. Gradients cannot be differentiated again.
    """
    first, second = convolutions
    weights = [weight for conv in convolutions for weight in conv.weights]
    out, *found = BlockFunction.apply(
        first.stride,
        first.padding,
        second.stride,
        second.padding,
        (first.recompute, second.recompute),
        tuple(norm.eps for norm in norms),
        tuple(norm.group for norm in norms),
        backend,
        x,
        shortcut,
        *weights,
        *(vector for norm in norms for vector in (norm.weight, norm.bias)),
        *(vector for norm in norms for vector in norm.frozen),
    )
    for place, norm in enumerate(norms):
        if norm.running is not None:
            mean, unbiased, values = found[3 * place : 3 * place + 3]
            update_running(*norm.running, mean, unbiased, values, norm.momentum)
    return out


class _Saved(NamedTuple):
    """What backward is given, in the order in which it is saved."""

    tensors: tuple[Tensor | None, ...]  # x, shortcut, weights, BatchNorms' weights and biases
    u1: Tensor | None
    y1: Tensor
    u2: Tensor | None
    y2: Tensor
    out: Tensor
    statistics: tuple[Tensor, ...]  # mean, invstd and values a channel of each BatchNorm


class BlockFunction(Function):
    """out, and of each BatchNorm mean, unbiased variance and values a channel."""

    @staticmethod
    def forward(
        ctx: Any,
        stride1: Triple,
        padding1: Triple,
        stride2: Triple,
        padding2: Triple,
        recompute: tuple[bool, bool],
        eps: tuple[float, ...],
        groups: tuple[dist.ProcessGroup | None, ...],
        backend: str,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ops = get_backend(backend)
        x, shortcut, spatial1, temporal1, spatial2, temporal2 = tensors[:_FIRST]
        affine = tensors[_FIRST : _FIRST + 2 * _NORMS]
        frozen = tensors[_FIRST + 2 * _NORMS :]
        batch = [frozen[2 * i] is None for i in range(_NORMS)]
        norms: list[Normalization] = []

        def normalized(found: tuple[Tensor, Tensor, Tensor]) -> Norm:
            i = len(norms)
            norm = normalization(found, frozen[2 * i], frozen[2 * i + 1], eps[i], groups[i])
            norms.append(norm)
            scale, shift = norm_vectors(norm.mean, norm.invstd, *affine[2 * i : 2 * i + 2])
            return Norm(scale, shift, norm.mean, norm.invstd)

        found = ops.spatial_forward(x, spatial1, stride1, padding1, batch[0])
        norm, u1 = normalized(found), found[0]
        found = ops.temporal_forward(u1, *norm[:2], temporal1, stride1, padding1, batch[1])
        norm, y1 = normalized(found), found[0]
        found = ops.spatial_forward(y1, spatial2, stride2, padding2, batch[2], norm)
        norm, u2 = normalized(found), found[0]
        found = ops.temporal_forward(u2, *norm[:2], temporal2, stride2, padding2, batch[3])
        norm, y2 = normalized(found), found[0]
        out = ops.join(y2, *norm[:2], x if shortcut is None else shortcut)

        kept = (None if recompute[0] else u1, y1, None if recompute[1] else u2, y2, out)
        statistics = [vector for norm in norms for vector in norm[:3]]
        # Of the shortcut its gradient alone is needed.
        ctx.save_for_backward(x, None, *tensors[2 : _FIRST + 2 * _NORMS], *kept, *statistics)
        ctx.first, ctx.second = (stride1, padding1), (stride2, padding2)
        ctx.batch, ctx.groups, ctx.backend = batch, groups, backend
        ctx.adds_x = shortcut is None
        results = [vector for norm in norms for vector in told(norm)]
        ctx.mark_non_differentiable(*results)
        ctx.set_materialize_grads(False)
        return out, *results

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        others = (None,) * 8
        tensors, frozen = _FIRST + 2 * _NORMS, (None,) * (2 * _NORMS)
        if grad is None:
            return (*others, *(None,) * tensors, *frozen)
        saved = ctx.saved_tensors  # read once: checkpointing unpacks each tensor a single time
        u1, y1, u2, y2, out, *statistics = saved[tensors:]
        values = _Saved(saved[:tensors], u1, y1, u2, y2, out, tuple(statistics))
        with torch.no_grad():
            grads = _backward(ctx, values, grad)
        grads = refuse_double_backward(grads, (*values.tensors, grad))
        return (*others, *grads, *frozen)


def _backward(ctx: Any, saved: _Saved, grad: Tensor) -> list[Tensor | None]:
    """Gradients of x, the shortcut, the four weights, and the BatchNorms' weights and biases.

    From the end to the beginning, as far as anything wants a gradient.
    """
    ops = get_backend(ctx.backend)
    x, _, spatial1, temporal1, spatial2, temporal2 = saved.tensors[:_FIRST]
    assert x is not None
    affine = saved.tensors[_FIRST:]
    needs = ctx.needs_input_grad[8 : 8 + _FIRST + 2 * _NORMS]
    grads: list[Tensor | None] = [None] * len(needs)

    def wanted(*places: int) -> bool:
        return any(needs[place] for place in places)

    def norm_of(i: int) -> Norm:
        mean, invstd, _ = saved.statistics[3 * i : 3 * i + 3]
        vectors = norm_vectors(mean, invstd, *affine[2 * i : 2 * i + 2])
        return Norm(*vectors, mean, invstd)

    def into(i: int, y: Tensor, norm: Norm, sums: Sequence[Tensor | None]) -> NormGradient:
        """The backward pass of BatchNorm ``i`` from its sums, and its own gradients."""
        sum_g, sum_gx = sums
        assert sum_g is not None and sum_gx is not None
        for place, value in ((_FIRST + 2 * i, sum_gx), (_FIRST + 2 * i + 1, sum_g)):
            parameter = saved.tensors[place]
            if needs[place] and parameter is not None:
                grads[place] = value.to(parameter.dtype)
        u_factor, offset = norm_backward_vectors(
            ctx.batch[i],
            ctx.groups[i],
            norm.scale,
            norm.mean,
            norm.invstd,
            saved.statistics[3 * i + 2],
            sum_g,
            sum_gx,
        )
        return NormGradient(y, norm.scale, u_factor, offset)

    norms = [norm_of(i) for i in range(_NORMS)]
    g, *sums = ops.join_backward(grad, saved.out, saved.y2, norms[3].mean, norms[3].invstd)
    grads[1] = g if needs[1] else None
    behind = into(3, saved.y2, norms[3], sums)
    first, second = (0, 2, 3, _FIRST, _FIRST + 1, _FIRST + 2, _FIRST + 3), (4, 5)
    if not wanted(*first, *second, _FIRST + 4, _FIRST + 5):
        return grads

    u2 = saved.u2
    if u2 is None:
        u2, _, _ = ops.spatial_forward(saved.y1, spatial2, *ctx.second, False, norms[1])
    grad_v, grads[5], *sums = ops.temporal_backward(
        g, u2, *norms[2], temporal2, *ctx.second, needs[5], behind
    )
    at_u = into(2, u2, norms[2], sums)
    if not wanted(*first, 4):
        return grads

    below = wanted(*first)
    grad_z, grads[4], *sums = ops.spatial_backward(
        grad_v, u2, saved.y1, spatial2, *at_u[1:], *ctx.second, below, needs[4], norms[1]
    )
    if not below:
        return grads
    behind = into(1, saved.y1, norms[1], sums)
    if not wanted(0, 2, 3, _FIRST, _FIRST + 1):
        return grads

    u1 = saved.u1
    if u1 is None:
        u1, _, _ = ops.spatial_forward(x, spatial1, *ctx.first, False)
    grad_v, grads[3], *sums = ops.temporal_backward(
        grad_z, u1, *norms[0], temporal1, *ctx.first, needs[3], behind
    )
    at_u = into(0, u1, norms[0], sums)
    if wanted(0, 2):
        grads[0], grads[2], _, _ = ops.spatial_backward(
            grad_v, u1, x, spatial1, *at_u[1:], *ctx.first, needs[0], needs[2], None,
            g if ctx.adds_x else None,
        )  # fmt: skip
    return grads
