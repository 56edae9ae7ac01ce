"""``conv2plus1d``: checks, autocast, choice of backend, running statistics, epilogue."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from r21d_ops.autograd import Conv2Plus1DFunction, fold_norm
from r21d_ops.backends import BackendError, choose, forced_name, get_backend
from r21d_ops.problem import Problem, Triple, output_size, triple

#: Kernels index with 32 bits within one clip; larger clips are refused.
_MAX_CLIP_ELEMENTS = 2**31 - 1

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
            ``R21D_BACKEND`` or the first backend that can run decide.

    Returns:
        y (N, O, T', H', W') in x's dtype (under autocast: its dtype), NDHWC.

    Raises:
        ValueError: an argument's rank, size, dtype or device does not fit; the message names it.
        BackendError: the backend asked for cannot run; the message says why.

    Gradients cannot be differentiated again. Forward-mode AD (``torch.func.jvp``) is served by
    ``eager``, with frozen statistics; ``torch.func.grad`` and ``vmap`` over training, and
    TorchScript, are not supported.
    """
    for name, tensor in (
        ("x", x),
        ("spatial_weight", spatial_weight),
        ("temporal_weight", temporal_weight),
        ("residual", residual),
    ):
        _check_is_tensor(name, tensor, optional=name == "residual")
    x, spatial_weight, temporal_weight, residual = autocast(
        x, spatial_weight, temporal_weight, residual
    )
    _check_number("eps", eps, least=0.0)
    _check_number("momentum", momentum)
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
    name = choose(problem, backend)
    inputs = (x, spatial_weight, temporal_weight, bn_weight, bn_bias)
    epilogue = (out_scale, out_shift, residual)
    forward_mode = _has_tangent(*inputs, running_mean, running_var, *epilogue)
    if forward_mode:
        name = _forward_mode_backend(name, backend, batch_statistics)
    # eager's operations carry tangents and gradients by themselves.
    differentiable = (
        not forward_mode
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (*inputs, *epilogue))
    )
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
        _update_running(running_mean, running_var, mean, unbiased, values, momentum)
    return _epilogue(y, out_scale, out_shift, residual, relu)


def _has_tangent(*tensors: Tensor | None) -> bool:
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
def _update_running(
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


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Under autocast, x, the weights and the residual in its dtype; BatchNorm's stay as they are.

    float64 is left alone, as autocast does.
    """
    spatial_weight, temporal_weight, residual = others
    assert spatial_weight is not None and temporal_weight is not None
    if not torch.is_autocast_enabled(x.device.type):
        return x, spatial_weight, temporal_weight, residual
    dtype = torch.get_autocast_dtype(x.device.type)

    def cast(t: Tensor) -> Tensor:
        return t if t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype)

    return (
        cast(x),
        cast(spatial_weight),
        cast(temporal_weight),
        None if residual is None else cast(residual),
    )


def check_arguments(
    x: Tensor,
    spatial_weight: Tensor,
    temporal_weight: Tensor,
    *,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    mid_vectors: dict[str, Tensor | None],
    out_vectors: dict[str, Tensor | None],
    residual: Tensor | None,
) -> Problem:
    """The problem that the arguments pose.

    Raises:
        ValueError: the first argument that does not fit, with its value and what was expected.
    """
    for name, tensor in (
        ("x", x),
        ("spatial_weight", spatial_weight),
        ("temporal_weight", temporal_weight),
    ):
        _check_tensor(name, tensor, x)
    mid, channels, depth, *spatial_kernel = spatial_weight.shape
    out, temporal_mid, temporal_kernel, *flat = temporal_weight.shape
    if depth != 1:
        raise ValueError(
            f"spatial_weight must be (M, C, 1, d, d), got shape {tuple(spatial_weight.shape)}"
        )
    if flat != [1, 1]:
        raise ValueError(
            f"temporal_weight must be (O, M, t, 1, 1), got shape {tuple(temporal_weight.shape)}"
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"x has {x.shape[1]} channels (shape {tuple(x.shape)}) but spatial_weight expects "
            f"{channels} (shape {tuple(spatial_weight.shape)})"
        )
    if temporal_mid != mid:
        raise ValueError(
            f"temporal_weight expects {temporal_mid} mid channels (shape "
            f"{tuple(temporal_weight.shape)}) but spatial_weight makes {mid} (shape "
            f"{tuple(spatial_weight.shape)})"
        )
    problem = Problem(
        device=x.device.type,
        dtype=x.dtype,
        batch=x.shape[0],
        in_channels=channels,
        mid_channels=mid,
        out_channels=out,
        size=(x.shape[2], x.shape[3], x.shape[4]),
        kernel=(temporal_kernel, spatial_kernel[0], spatial_kernel[1]),
        stride=_check_triple("stride", stride, 1),
        padding=_check_triple("padding", padding, 0),
    )
    _check_sizes(problem, x)
    for vectors, length in ((mid_vectors, mid), (out_vectors, out)):
        for name, vector in vectors.items():
            _check_vector(name, vector, length, x)
    _check_residual(residual, problem, x)
    return problem


def _check_is_tensor(name: str, value: object, optional: bool = False) -> None:
    if not isinstance(value, Tensor) and not (optional and value is None):
        expected = "a tensor or None" if optional else "a tensor"
        raise ValueError(f"{name} must be {expected}, got {type(value).__name__}")


def _check_number(name: str, value: object, least: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{name} must be a number{bound}, got {value!r}")


def _check_tensor(name: str, tensor: Tensor, x: Tensor) -> None:
    _check_is_tensor(name, tensor)
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {tensor.layout}")
    if tensor.dim() != 5:
        raise ValueError(f"{name} must have 5 dimensions, got shape {tuple(tensor.shape)}")
    if tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{name} must be floating point (float32, bfloat16, float16 or float64), got "
            f"{tensor.dtype}"
        )
    if tensor.dtype != x.dtype:
        raise ValueError(f"{name} is {tensor.dtype} but x is {x.dtype}; they must be the same")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}")
    sizes = tensor.shape[1:] if tensor is x else tensor.shape
    if any(size == 0 for size in sizes):
        raise ValueError(f"{name} has an empty dimension: shape {tuple(tensor.shape)}")


def _check_triple(name: str, value: int | Sequence[int], least: int) -> Triple:
    values = triple(value, name)
    if any(v < least for v in values):
        raise ValueError(f"{name} must be at least {least} everywhere, got {value!r}")
    return values


def _check_sizes(problem: Problem, x: Tensor) -> None:
    for axis, size, kernel, stride, padding in zip(
        "THW", problem.size, problem.kernel, problem.stride, problem.padding, strict=True
    ):
        if output_size(size, kernel, stride, padding) < 1:
            raise ValueError(
                f"x has {axis}={size} (shape {tuple(x.shape)}), too small for a kernel of {kernel} "
                f"with padding {padding}"
            )
    for name, channels, sizes in (
        ("x", problem.in_channels, problem.size),
        ("the intermediate", problem.mid_channels, problem.mid_size),
        ("the output", problem.out_channels, problem.out_size),
    ):
        t, h, w = sizes
        if channels * t * h * w > _MAX_CLIP_ELEMENTS:
            raise ValueError(
                f"one clip of {name} would have {channels}x{t}x{h}x{w} elements, more than "
                f"{_MAX_CLIP_ELEMENTS}; split the clip"
            )


def _check_vector(name: str, vector: Tensor | None, length: int, x: Tensor) -> None:
    _check_is_tensor(name, vector, optional=True)
    if vector is None:
        return
    if tuple(vector.shape) != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {tuple(vector.shape)}")
    if not vector.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {vector.dtype}")
    if vector.device != x.device:
        raise ValueError(f"{name} is on {vector.device} but x is on {x.device}")


def _check_residual(residual: Tensor | None, problem: Problem, x: Tensor) -> None:
    _check_is_tensor("residual", residual, optional=True)
    if residual is None:
        return
    expected = (problem.batch, problem.out_channels, *problem.out_size)
    if tuple(residual.shape) != expected:
        raise ValueError(f"residual must have shape {expected}, got {tuple(residual.shape)}")
    if residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(
            f"residual is {residual.dtype} on {residual.device} but x is {x.dtype} on {x.device}"
        )
