"""``conv2plus1d``: choice of backend, running statistics, epilogue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from r21d_ops.arguments import autocast, check_arguments, check_number
from r21d_ops.autograd import Conv2Plus1DFunction, fold_norm
from r21d_ops.backends import BackendError, choose, forced_name, get_backend
from r21d_ops.problem import Problem


def conv2plus1d(
    x: Tensor,
    spatial_weight: Tensor,
    temporal_weight: Tensor,
    *,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    recompute: bool = False,
    out_scale: Tensor | None = None,
    out_shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Spatial 1×d×d convolution, BatchNorm, ReLU, temporal t×1×1 convolution, as one operator.

    ::

        u = spatial(x);  v = relu(bn(u));  y = temporal(v)
        y = relu(y·out_scale + out_shift + residual)        # each part where it is asked for

    The (2+1)D convolution of "A Closer Look at Spatiotemporal Convolutions for Action
    Recognition", section 3.5 and Fig. 2b. :func:`r21d_ops.reference.conv2plus1d_reference`
    defines the values.

    Args:
        x: (N, C, T, H, W); float32, bfloat16, float16 or float64, any strides (NDHWC,
            ``torch.channels_last_3d``, is native; anything else is converted once). N may be 0.
        spatial_weight: (M, C, 1, d, d), x's dtype.
        temporal_weight: (O, M, t, 1, 1), x's dtype.
        running_mean, running_var: (M,); used with ``training=False``, updated in place with
            ``training=True``; both None only in training.
        bn_weight, bn_bias: (M,) or None.
        stride, padding: an int or (t, h, w); the spatial part belongs to the spatial convolution,
            the temporal part to the temporal one.
        training: normalize with the batch's statistics, as ``F.batch_norm``.
        momentum, eps: as in ``F.batch_norm``.
        recompute: keep only x for backward and compute u again there.
        out_scale, out_shift: (O,) or None, such as a following BatchNorm in eval.
        residual: y's shape, added after scale and shift.
        relu: apply ReLU last.
        backend: the name of the one backend allowed; None lets the environment's
            ``R21D_BACKEND`` decide, else the first backend that can run; on a GPU
            measurements or an estimate, which ``r21d doctor`` shows.

    Returns:
        y (N, O, T', H', W') in x's dtype (under autocast: its dtype), NDHWC.

    Raises:
        ValueError: an argument's rank, size, dtype or device does not fit; the message names it.
        BackendError: the backend asked for cannot run; the message says why.

    Gradients cannot be differentiated again. Forward-mode AD (``torch.func.jvp``) is served by
    ``eager``, with frozen statistics; ``torch.func.grad``, ``torch.func.vmap`` and TorchScript are
    not supported.
    """
    x, spatial_weight, temporal_weight, residual = autocast(
        x, spatial_weight, temporal_weight, residual
    )
    check_number("eps", eps, least=0.0)
    check_number("momentum", momentum)
    problem = check_arguments(
        x,
        spatial_weight,
        temporal_weight,
        stride=stride,
        padding=padding,
        mid_vectors={
            "running_mean": running_mean,
            "running_var": running_var,
            "bn_weight": bn_weight,
            "bn_bias": bn_bias,
        },
        out_vectors={"out_scale": out_scale, "out_shift": out_shift},
        residual=residual,
    )
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must both be given or both be None")
    if not training and running_mean is None:
        raise ValueError("running_mean and running_var are needed with training=False")
    return run(
        problem,
        x,
        spatial_weight,
        temporal_weight,
        running_mean=running_mean,
        running_var=running_var,
        bn_weight=bn_weight,
        bn_bias=bn_bias,
        batch_statistics=training,
        momentum=momentum,
        eps=eps,
        recompute=recompute,
        out_scale=out_scale,
        out_shift=out_shift,
        residual=residual,
        relu=relu,
        backend=backend,
        group=None,
    )


def run(
    problem: Problem,
    x: Tensor,
    spatial_weight: Tensor,
    temporal_weight: Tensor,
    *,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    batch_statistics: bool,
    momentum: float,
    eps: float,
    recompute: bool,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    backend: str | None,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """:func:`conv2plus1d` after its checks; ``group`` is the process group of a SyncBatchNorm."""
    inputs = (x, spatial_weight, temporal_weight, bn_weight, bn_bias)
    epilogue = (out_scale, out_shift, residual)
    forward_mode = has_tangent(*inputs, running_mean, running_var, *epilogue)
    # eager's operations carry tangents and gradients by themselves.
    differentiable = (
        not forward_mode
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (*inputs, *epilogue))
    )
    name = choose(problem, backend, training=batch_statistics or differentiable)
    if forward_mode:
        name = _forward_mode_backend(name, backend, batch_statistics)
    if not batch_statistics and not differentiable:
        assert running_mean is not None and running_var is not None
        scale, shift = fold_norm(running_mean, running_var, bn_weight, bn_bias, eps, x.dtype)
        y: Tensor = get_backend(name).inference(
            x,
            spatial_weight,
            temporal_weight,
            scale,
            shift,
            _wide(out_scale, scale),
            _wide(out_shift, scale),
            residual,
            relu,
            problem.stride,
            problem.padding,
        )
        return y

    if batch_statistics and group is None:
        _check_enough_values(problem)
    y, mean, unbiased, values = Conv2Plus1DFunction.apply(
        *inputs,
        None if batch_statistics else running_mean,
        None if batch_statistics else running_var,
        problem.stride,
        problem.padding,
        eps,
        recompute,
        name,
        group,
    )
    if batch_statistics and running_mean is not None and running_var is not None:
        update_running(running_mean, running_var, mean, unbiased, values, momentum)
    return _epilogue(y, out_scale, out_shift, residual, relu)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether a tensor carries a tangent of forward-mode AD."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _forward_mode_backend(name: str, backend: str | None, batch_statistics: bool) -> str:
    """``eager``, whose stock operations carry tangents; others would drop them without a word."""
    if batch_statistics:
        raise BackendError(
            "forward-mode AD is served with frozen statistics alone, not with the batch's; use "
            "r21d_ops.reference.conv2plus1d_reference or stock layers"
        )
    if name != "eager" and forced_name(backend) is not None:
        raise BackendError(f"backend {name!r} does not serve forward-mode AD; eager does")
    return "eager"


def _wide(vector: Tensor | None, like: Tensor) -> Tensor | None:
    return None if vector is None else vector.to(like.dtype).contiguous()


def _epilogue(
    y: Tensor,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """The epilogue as stock operations, where gradients flow through it."""
    if out_scale is not None:
        y = y * out_scale.to(y.dtype).view(1, -1, 1, 1, 1)
    if out_shift is not None:
        y = y + out_shift.to(y.dtype).view(1, -1, 1, 1, 1)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


@torch.no_grad()
def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    unbiased: Tensor,
    values: Tensor,
    momentum: float,
) -> None:
    """Exponential moving averages, in place. An empty batch teaches nothing and changes nothing."""
    for running, new in ((running_mean, mean), (running_var, unbiased)):
        updated = running * (1 - momentum) + new.to(running.dtype) * momentum
        running.copy_(torch.where(values > 0, updated, running))


def _check_enough_values(problem: Problem) -> None:
    t, h, w = problem.mid_size
    if problem.batch * t * h * w == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got an intermediate of "
            f"shape {(problem.batch, problem.mid_channels, t, h, w)}"
        )
