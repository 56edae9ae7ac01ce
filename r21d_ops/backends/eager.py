"""Stock PyTorch at its best: both convolutions as 2-D ones, on views of NDHWC tensors.

In NDHWC (``torch.channels_last_3d``) the 1×d×d convolution is a ``conv2d`` over N·T images and
the t×1×1 convolution a ``conv2d`` with a (t, 1) kernel over T×(H·W) images, both without a copy.
That is faster than ``conv3d`` on most layers and steps around cuDNN's conv3d faults
(pytorch#163539, #166122, #166643). It runs wherever torch runs, in every floating dtype, and is
the definition of each operator that the other backends implement.

Shapes, in every function: x (N, C, T, H, W), u, v and g (N, M, T, H', W'), y (N, O, T', H', W');
per-channel vectors are float32 (float64 for float64 tensors). In other backends u and g, which
only their own operators read, may hold more channels than M.

In a residual block (:mod:`r21d_ops.block_function`) the operators reach over the BatchNorms between
its convolutions: ``norm`` of the spatial ones is the BatchNorm and ReLU that x comes through,
``norm`` of the temporal backward is the BatchNorm behind y.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from r21d_ops.problem import Problem, Triple
from r21d_ops.shapes import ndhwc

NAME = "eager"
DEVICES: tuple[str, ...] | None = None

#: A residual block could train as one function, as the definition of what others do; torch's own
#: BatchNorm is faster.
BLOCKS = False


class Norm(NamedTuple):
    """A BatchNorm that is followed by ReLU: relu(x·scale + shift); its statistics, (C,) each."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    invstd: Tensor


class NormGradient(NamedTuple):
    """The backward pass of a BatchNorm: the gradient at its input y is grad·factor + y·y_factor +
    offset, per channel; with frozen statistics the last two are None."""

    y: Tensor
    factor: Tensor
    y_factor: Tensor | None
    offset: Tensor | None


def unavailable() -> str | None:
    """Runs wherever torch runs."""
    return None


def can_run(problem: Problem) -> str | None:
    """Serves every problem."""
    return None


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of BatchNorm's statistics and per-channel vectors for tensors of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _images(x: Tensor) -> Tensor:
    """(N, C, T, H, W) as (N·T, C, H, W): a view where x is NDHWC."""
    n, c, t, h, w = x.shape
    return x.transpose(1, 2).reshape(n * t, c, h, w)


def _clips(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_images`, with the batch and frames of ``like`` (N, ·, T, ·, ·)."""
    return x.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)


def _channels_last(weight: Tensor) -> Tensor:
    """A 2-D weight in NHWC. With it conv2d stays in NHWC where the strides of a single image or
    channel leave the input's format open."""
    return weight.contiguous(memory_format=torch.channels_last)


def spatial_conv(
    x: Tensor, weight: Tensor, stride: Triple, padding: Triple, bias: Tensor | None = None
) -> Tensor:
    """The 1×d×d convolution; ``weight`` is (M, C, 1, d, d)."""
    kernel = _channels_last(weight.squeeze(2))
    out = F.conv2d(_images(ndhwc(x)), kernel, bias, stride[1:], padding[1:])
    return _clips(out, x)


def temporal_conv(
    v: Tensor, weight: Tensor, stride: Triple, padding: Triple, bias: Tensor | None = None
) -> Tensor:
    """The t×1×1 convolution; ``weight`` is (O, M, t, 1, 1)."""
    kernel = _channels_last(weight.squeeze(4))
    out = F.conv2d(ndhwc(v).flatten(3), kernel, bias, (stride[0], 1), (padding[0], 0))
    return out.unflatten(3, v.shape[3:])


def norm_relu(u: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """v = relu(u·scale + shift), per channel. NaN stays NaN."""
    # batch_norm with zero mean and unit variance: torch's one-pass per-channel affine map, which
    # takes 16-bit u with float32 vectors.
    return F.batch_norm(
        u, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, False, 0.0, 0.0
    ).relu_()


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
    """y = temporal(relu(spatial(x)·scale + shift)), then ·out_scale + out_shift + residual, relu.

    BatchNorm is folded into the weights, so two convolutions and one ReLU pass are left.
    """
    dtype = x.dtype
    spatial = (spatial_weight * scale.view(-1, 1, 1, 1, 1)).to(dtype)
    v = spatial_conv(x, spatial, stride, padding, shift.to(dtype)).relu_()
    if out_scale is not None:
        temporal_weight = (temporal_weight * out_scale.view(-1, 1, 1, 1, 1)).to(dtype)
    bias = None if out_shift is None else out_shift.to(dtype)
    y = temporal_conv(v, temporal_weight, stride, padding, bias)
    if residual is not None:
        y = y.add_(residual)
    return y.relu_() if relu else y


def with_statistics(u: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """u, and where ``wanted`` the mean and the sum of squared deviations of u as stored.

    Else the two vectors are empty.
    """
    dtype = statistics_dtype(u.dtype)
    if not wanted:
        return u, u.new_empty(0, dtype=dtype), u.new_empty(0, dtype=dtype)
    if u.numel() == 0:
        return u, u.new_zeros(u.shape[1], dtype=dtype), u.new_zeros(u.shape[1], dtype=dtype)
    variance, mean = torch.var_mean(u.to(dtype), (0, 2, 3, 4), correction=0)
    return u, mean, variance * (u.numel() // u.shape[1])


def spatial_forward(
    x: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    statistics: bool,
    norm: Norm | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """u = spatial(x), or of relu(bn(x)), and its statistics as :func:`with_statistics` has them."""
    z = x if norm is None else norm_relu(x, norm.scale, norm.shift)
    return with_statistics(spatial_conv(z, weight, stride, padding), statistics)


def temporal_forward(
    u: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    statistics: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = temporal(relu(u·scale + shift)), and its statistics as :func:`with_statistics` has
    them."""
    y = temporal_conv(norm_relu(u, scale, shift), weight, stride, padding)
    return with_statistics(y, statistics)


def _conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``conv2d`` to its input and its weight."""
    strides = stride != (1, 1) and padding == (0, 0) and tuple(weight.shape[2:]) == (1, 1)
    if strides and x.device.type == "cpu":
        # oneDNN writes past the end of a buffer in the weight gradient of strided 1×1 convolutions
        # with few channels (torch 2.13, two threads), so the pixels that count are taken out.
        seen = x[:, :, :: stride[0], :: stride[1]].contiguous(memory_format=torch.channels_last)
        grad_seen, grad_weight = _conv2d_backward(
            grad, seen, weight, (1, 1), padding, need_x, need_weight
        )
        if grad_seen is None:
            return None, grad_weight
        grad_x = torch.zeros_like(x)
        grad_x[:, :, :: stride[0], :: stride[1]] = grad_seen
        return grad_x, grad_weight
    dtype = x.dtype
    # oneDNN leaves taps that only ever see padding uninitialised in the bfloat16 weight gradient
    # (torch 2.13, images one pixel wide); float32 does not, and such images are small.
    kernel_sticks_out = weight.shape[2] > x.shape[2] or weight.shape[3] > x.shape[3]
    if need_weight and kernel_sticks_out and dtype == torch.bfloat16 and x.device.type == "cpu":
        grad, x, weight = grad.float(), x.float(), weight.float()
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        1,
        (need_x, need_weight, False),
    )
    return grad_x.to(dtype) if need_x else None, grad_weight.to(dtype) if need_weight else None


def temporal_conv_backward(
    grad: Tensor, v: Tensor, weight: Tensor, stride: Triple, padding: Triple, need_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the t×1×1 convolution to its input and its weight."""
    grad_v, grad_weight = _conv2d_backward(
        ndhwc(grad).flatten(3),
        ndhwc(v).flatten(3),
        weight.squeeze(4),
        (stride[0], 1),
        (padding[0], 0),
        True,
        need_weight,
    )
    assert grad_v is not None
    return (
        grad_v.unflatten(3, v.shape[3:]),
        None if grad_weight is None else grad_weight.unsqueeze(4),
    )


def spatial_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the 1×d×d convolution to its input and its weight."""
    grad_x, grad_weight = _conv2d_backward(
        _images(ndhwc(grad)),
        _images(ndhwc(x)),
        weight.squeeze(2),
        stride[1:],
        padding[1:],
        need_x,
        need_weight,
    )
    return (
        None if grad_x is None else _clips(grad_x, x),
        None if grad_weight is None else grad_weight.unsqueeze(2),
    )


def _per_channel(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1, 1)


def norm_relu_backward(
    grad_v: Tensor, v: Tensor, u: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """g = ``grad_v`` where v = relu(bn(u)) passes, and per channel the sums of g and of
    g·(u - mean)·invstd."""
    # threshold_backward lets the gradient through where v is NaN, as relu's own backward does.
    g = torch.ops.aten.threshold_backward(grad_v, v, 0)
    wide = g.to(mean.dtype)
    normalized = (u.to(mean.dtype) - _per_channel(mean)) * _per_channel(invstd)
    axes = (0, 2, 3, 4)
    return g, wide.sum(axes), (wide * normalized).sum(axes)


def norm_backward(grad: Tensor, norm: NormGradient) -> Tensor:
    """The gradient at the BatchNorm's input, in its dtype."""
    found = grad * _per_channel(norm.factor)
    if norm.y_factor is not None and norm.offset is not None:
        found = found + norm.y * _per_channel(norm.y_factor) + _per_channel(norm.offset)
    return found.to(norm.y.dtype)


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
    norm: NormGradient | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Backward of :func:`temporal_forward` up to BatchNorm's output.

    ``grad`` is the gradient at y, or with ``norm`` at the output of the BatchNorm behind it.
    Returns g (the gradient at the inner BatchNorm's output, ReLU applied), the gradient of
    ``weight``, and per channel the sums of g and of g·(u - mean)·invstd.
    """
    v = norm_relu(u, scale, shift)
    grad = grad if norm is None else norm_backward(grad, norm)
    grad_v, grad_weight = temporal_conv_backward(grad, v, weight, stride, padding, need_weight)
    g, sum_g, sum_gx = norm_relu_backward(grad_v, v, u, mean, invstd)
    return g, grad_weight, sum_g, sum_gx


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
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Backward of the spatial convolution, BatchNorm's backward applied on the way in.

    The gradient of u is g·g_factor + u·u_factor + offset, per channel; with frozen statistics
    ``u_factor`` and ``offset`` are None. Returns the gradients of x, to which ``residual`` is
    added, and of ``weight``; with ``norm`` (and ``need_x``) the gradient at the output of that
    BatchNorm, ReLU applied, in place of x's, and its two sums as :func:`temporal_backward` has
    them, which else are None.
    """
    grad_u = norm_backward(g, NormGradient(u, g_factor, u_factor, offset))
    z = x if norm is None else norm_relu(x, norm.scale, norm.shift)
    grad_x, grad_weight = spatial_conv_backward(
        grad_u, z, weight, stride, padding, need_x, need_weight
    )
    if grad_x is not None and norm is not None:
        grad_x, sum_g, sum_gx = norm_relu_backward(grad_x, z, x, norm.mean, norm.invstd)
        return grad_x, grad_weight, sum_g, sum_gx
    if grad_x is not None and residual is not None:
        grad_x = grad_x + residual
    return grad_x, grad_weight, None, None


def join(y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
    """relu(y·scale + shift + residual): where a residual block ends."""
    affine = F.batch_norm(
        y, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, False, 0.0, 0.0
    )
    return affine.add_(residual).relu_()


def join_backward(
    grad: Tensor, out: Tensor, y: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of :func:`join`: g, the gradient before ReLU, and per channel the sums of g and of
    g·(y - mean)·invstd."""
    return norm_relu_backward(grad, out, y, mean, invstd)
