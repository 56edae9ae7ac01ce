"""The CUDA kernels (``csrc/cuda``): bfloat16 and float16 on NVIDIA GPUs from compute capability
8.0, forward and backward.

Inference is one kernel (``fused``) or two (``two``), as :mod:`r21d_ops.dispatch` or else the
library's own planner says. Signatures and shapes: :mod:`r21d_ops.backends.eager`; u and g hold M
rounded up to 16 channels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from r21d_ops import dispatch, native
from r21d_ops.backends.eager import Norm, NormGradient
from r21d_ops.backends.limits import exceeds
from r21d_ops.dynamo import constant_result
from r21d_ops.problem import Problem, Triple, problem_of
from r21d_ops.shapes import ndhwc

NAME = "cuda"
DEVICES: tuple[str, ...] | None = ("cuda",)

#: No committed measurement shows it at work yet, so that no estimate chooses it.
UNPROVEN = True

#: Its operators reach over the BatchNorms between a block's convolutions.
BLOCKS = True

#: Ways of running inference, the preferred first.
KERNELS: tuple[str, ...] = ("fused", "two")

_DTYPES = (torch.bfloat16, torch.float16)
_LEAST_CAPABILITY = (8, 0)

# As in csrc/cuda/limits.h, which refuses what these let pass and the kernels cannot index.
_MOST_INDEX = 2**31 - 1
_MOST_SIZE = 2**28
_MOST_CHANNELS = 65535 * 48
_MOST_DEPTH = 2**31 - 2**8
_TILE_PIXELS = 128
_MOST_SUMMED = 65535 * 32
_MOST_PHASES = 65535


# A tracer would look through the cache and into the library.
@constant_result
def unavailable() -> str | None:
    """Needs the native library with its CUDA sources, a torch with CUDA, and a current GPU that the
    library holds code for."""
    return _unavailable(torch.cuda.current_device() if _torch_finds_a_gpu() else None)


@functools.cache
def _torch_finds_a_gpu() -> bool:
    return torch.cuda.is_available()


@functools.cache
def _unavailable(device: int | None) -> str | None:
    """Why it cannot run on ``device``, or, without one, on this machine."""
    if native.load_error is not None:
        return native.load_error
    # Other devices may be busy or broken; of this one alone is asked.
    built = native.cuda_info(-1 if device is None else device)
    if built is None:
        return (
            "the native library is built without CUDA; where nvcc is on PATH, "
            "`R21D_CUDA=1 pip install --no-build-isolation .` builds it with"
        )
    if torch.version.cuda is None:
        return f"this torch, {torch.__version__}, is built without CUDA"
    if built["driver"] is None:
        return "no NVIDIA driver is found"
    if not built["devices"] or device is None:
        return "no CUDA device is available"
    if built["devices"][0] is None:
        return f"the driver tells nothing about CUDA device {device}"
    return _why_not_on(built["devices"][0])


def _why_not_on(gpu: dict[str, str | bool]) -> str | None:
    """Why the kernels cannot run on ``gpu``, a device of :func:`r21d_ops.native.cuda_info`."""
    name, capability = gpu["name"], str(gpu["capability"])
    if tuple(map(int, capability.split("."))) < _LEAST_CAPABILITY:
        return f"the {name} has compute capability {capability}; it needs 8.0"
    if not gpu["runs"]:
        return (
            f"this build of the native library holds no code that the {name} (compute capability "
            f"{capability}) with this driver can run"
        )
    return None


def can_run(problem: Problem) -> str | None:
    """Serves two dtypes, and what 32-bit indices reach."""
    if problem.device != "cuda":
        return f"it serves CUDA tensors, not {problem.device}"
    if problem.dtype not in _DTYPES:
        return f"it serves bfloat16 and float16, not {problem.dtype}"
    return _too_large(problem)


def _too_large(problem: Problem) -> str | None:
    """Why 32-bit indices do not reach all of ``problem``, or None."""
    n, c, m, o = problem[2:6]
    (t, h, w), (_, ho, wo), (to, _, _) = problem.size, problem.mid_size, problem.out_size
    (kt, kh, kw), (pt, ph, pw) = problem.kernel, problem.padding
    for size in (n, c, t, h, w, *problem.kernel, *problem.stride, *problem.padding):
        if exceeds(size, _MOST_SIZE):
            return f"a size, stride or padding is {size}; at most {_MOST_SIZE} is served"
    mid = -(-m // 16) * 16
    # The last image's taps reach into its padding, and the last tile may lie behind it.
    behind_x = 1 + -(-_TILE_PIXELS // (ho * wo))
    behind_mid = 1 + -(-_TILE_PIXELS // (to * ho * wo))
    for what, count, most, unit in (
        ("u", m, _MOST_CHANNELS, "channels"),
        ("y", o, _MOST_CHANNELS, "channels"),
        ("x", n * t * h * w, _MOST_INDEX - _TILE_PIXELS, "pixels"),
        ("u", n * t * ho * wo, _MOST_INDEX - _TILE_PIXELS, "pixels"),
        ("y", n * to * ho * wo, _MOST_INDEX - _TILE_PIXELS, "pixels"),
        ("x", ((n * t + behind_x) * h + ph + 1) * w + pw, _MOST_INDEX, "pixels with its padding"),
        ("u", ((n + behind_mid) * t + pt + 1) * ho * wo, _MOST_INDEX, "pixels with its padding"),
        ("spatial_weight", kh * kw * -(-c // 16) * 16, _MOST_DEPTH, "values for an output channel"),
        ("temporal_weight", kt * mid, _MOST_DEPTH, "values for an output channel"),
    ):
        if exceeds(count, most):
            return f"{what} has {count} {unit}; at most {most} are served"
    return _too_large_for_training(problem)


def _too_large_for_training(problem: Problem) -> str | None:
    """The same, of the backward pass: the gradient at y as the input of a convolution to v, and
    that at u of one to x, each phase of whose strides is a grid of its own."""
    n, c, m, o = problem[2:6]
    (t, h, w), (_, ho, wo), (to, _, _) = problem.size, problem.mid_size, problem.out_size
    (kt, kh, kw), (st, sh, sw) = problem.kernel, problem.stride
    pt, ph, pw = problem.padding
    mid, out = -(-m // 16) * 16, -(-o // 8) * 8
    for what, count, most, unit in (
        ("x", c, _MOST_SUMMED, "channels"),
        ("u", m, _MOST_SUMMED, "channels"),
        ("y", o, _MOST_SUMMED, "channels"),
        ("the gradient at y", kt * out, _MOST_DEPTH, "values for a channel of v"),
        ("the gradient at u", kh * kw * mid, _MOST_DEPTH, "values for a channel of x"),
        (
            "the gradient at y",
            (n * to + t + pt + kt + 1) * ho * wo + ho * wo + 1,
            _MOST_INDEX,
            "pixels with its padding",
        ),
        (
            "the gradient at u",
            (n * t * ho + h + ph + kh + 1) * wo + w + pw + kw,
            _MOST_INDEX,
            "pixels with its padding",
        ),
    ):
        if exceeds(count, most):
            return f"{what} has {count} {unit}; at most {most} are served"
    for phases in (min(st, t), min(sh, h) * min(sw, w)):
        if exceeds(phases, _MOST_PHASES):
            return f"its strides make {phases} phases; at most {_MOST_PHASES} are served"
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
    problem = problem_of(x, spatial_weight, temporal_weight, stride, padding)
    y: Tensor = torch.ops.r21d.conv2plus1d(
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
        dispatch.inference_kernels(NAME, problem),
    )
    return y


def spatial_forward(
    x: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    statistics: bool,
    norm: Norm | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    vectors = (None, None) if norm is None else (norm.scale, norm.shift)
    u, mean, m2 = torch.ops.r21d.train_spatial(
        ndhwc(x), weight, stride, padding, statistics, *vectors
    )
    return u, mean, m2


def temporal_forward(
    u: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    statistics: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, m2 = torch.ops.r21d.train_temporal(
        ndhwc(u), scale, shift, weight, stride, padding, statistics
    )
    return y, mean, m2


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
    vectors = (scale, shift, mean, invstd)
    g, grad_weight, sum_g, sum_g_normalized = torch.ops.r21d.train_temporal_backward(
        ndhwc(grad), ndhwc(u), *vectors, weight, stride, padding, need_weight, *_of_y(norm)
    )
    return g, grad_weight if need_weight else None, sum_g, sum_g_normalized


def _of_y(norm: NormGradient | None) -> tuple[Tensor | None, ...]:
    """y, grad_factor, y_factor and offset; y only where it is read."""
    if norm is None:
        return None, None, None, None
    if norm.y_factor is None:
        return None, norm.factor, None, None
    return ndhwc(norm.y), *norm[1:]


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
    factors = (g_factor, u_factor, offset)
    # The sums over the gradient of x are made with it.
    sums = norm is not None and need_x
    grad_x, grad_weight, sum_g, sum_g_normalized = torch.ops.r21d.train_spatial_backward(
        ndhwc(g), ndhwc(u), ndhwc(x), weight, *factors, stride, padding,
        need_x or norm is not None, need_weight, *(norm or (None, None, None, None)),
        None if residual is None or not need_x else ndhwc(residual),
    )  # fmt: skip
    return (
        grad_x if need_x else None,
        grad_weight if need_weight else None,
        sum_g if sums else None,
        sum_g_normalized if sums else None,
    )


def join(y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
    out: Tensor = torch.ops.r21d.join(ndhwc(y), scale, shift, ndhwc(residual))
    return out


def join_backward(
    grad: Tensor, out: Tensor, y: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    g, sum_g, sum_g_normalized = torch.ops.r21d.join_backward(
        ndhwc(grad), ndhwc(out), ndhwc(y), mean, invstd
    )
    return g, sum_g, sum_g_normalized
