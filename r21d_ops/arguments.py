"""What the operator's arguments must be: each check names the argument and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from r21d_ops.problem import Problem, Triple, output_size, triple

#: Kernels index with 32 bits within one clip; larger clips are refused.
_MAX_CLIP_ELEMENTS = 2**31 - 1

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on ``device``; None where it is off."""
    # Devices without autocast, meta for one, raise when they are asked whether it is on.
    if not torch.amp.is_autocast_available(device.type):
        return None
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def autocast(
    x: Tensor, spatial_weight: Tensor, temporal_weight: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Under autocast, x, the weights and the residual in its dtype; BatchNorm's stay as they are.

    float64 is left alone, as autocast does.

    Raises:
        ValueError: one of them is not a tensor.
    """
    _check_is_tensor("x", x)
    _check_is_tensor("spatial_weight", spatial_weight)
    _check_is_tensor("temporal_weight", temporal_weight)
    _check_is_tensor("residual", residual, optional=True)
    dtype = autocast_dtype(x.device)
    if dtype is None:
        return x, spatial_weight, temporal_weight, residual

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
    """The problem that the arguments pose, after :func:`autocast`.

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


def check_number(name: str, value: object, least: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{name} must be a number{bound}, got {value!r}")


def _check_tensor(name: str, tensor: Tensor, x: Tensor) -> None:
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
    if residual is None:
        return
    expected = (problem.batch, problem.out_channels, *problem.out_size)
    if tuple(residual.shape) != expected:
        raise ValueError(f"residual must have shape {expected}, got {tuple(residual.shape)}")
    if residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(
            f"residual is {residual.dtype} on {residual.device} but x is {x.dtype} on {x.device}"
        )
