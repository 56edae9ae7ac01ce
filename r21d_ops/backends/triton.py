"""The Triton kernels (:mod:`r21d_ops.triton`): float16, bfloat16 and float32 on NVIDIA GPUs from
compute capability 8.0, forward and backward.

With ``TRITON_INTERPRET=1`` Triton's interpreter runs them on the CPU instead, for tests and for
reading along; so slowly that they serve only where they are asked for by name. Signatures and
shapes: :mod:`r21d_ops.backends.eager`; u and g hold M rounded up to 16 channels.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re

import torch
from torch import Tensor

from r21d_ops.backends import eager
from r21d_ops.backends.limits import exceeds
from r21d_ops.dynamo import constant_result
from r21d_ops.problem import Problem, Triple
from r21d_ops.shapes import padded
from r21d_ops.triton import INTERPRETED
from r21d_ops.triton.operators import MOST_INDEX

NAME = "triton"

#: What an unforced call may be given to.
DEVICES: tuple[str, ...] = ("cuda",)

#: Ways of running inference, the preferred first.
KERNELS: tuple[str, ...] = ("fused", "two")

_LEAST_VERSION = (3, 6)
_LEAST_CAPABILITY = (8, 0)


# A tracer would look through the cache and into the search for packages.
@constant_result
def unavailable() -> str | None:
    """Needs Triton, and an NVIDIA GPU or the interpreter."""
    return _unavailable()


@functools.cache
def _unavailable() -> str | None:
    if torch.version.hip is not None:
        return "it is written for NVIDIA GPUs and was never run on ROCm"
    version = triton_version()
    if version is None:
        return "Triton is not installed; `pip install triton` brings it on Linux"
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < _LEAST_VERSION:
        return f"Triton {version} is too old; it needs 3.6 or later"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device is available (TRITON_INTERPRET=1 runs the kernels on the CPU)"
    capability = torch.cuda.get_device_capability()
    if capability < _LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; it needs 8.0"
    return None


def triton_version() -> str | None:
    """Version of the Triton that ``import triton`` finds; None where there is none.

    Asked of the module's own distribution, and where that has another name (builds for other
    systems have) of the module itself.
    """
    try:
        if importlib.util.find_spec("triton") is None:
            return None
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        pass
    except ValueError:  # sys.modules holds None in its place: it is kept from being imported
        return None
    try:
        # A folder that happens to be called so has no version.
        found = getattr(importlib.import_module("triton"), "__version__", None)
    except ImportError:
        return None
    return None if found is None else str(found)


def can_run(problem: Problem) -> str | None:
    """Serves three dtypes, and what 32-bit indices reach."""
    device = "cpu" if INTERPRETED else "cuda"
    if problem.device != device:
        interpreted = " with TRITON_INTERPRET=1" if INTERPRETED else ""
        return f"it serves {device} tensors{interpreted}, not {problem.device}"
    if problem.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it serves float16, bfloat16 and float32, not {problem.dtype}"
    if INTERPRETED and problem.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly"
    mid, (kt, kh, kw) = padded(problem.mid_channels), problem.kernel
    for what, channels, (t, h, w) in (
        ("x", problem.in_channels, problem.size),
        ("the intermediate", mid, problem.mid_size),
        ("the output", problem.out_channels, problem.out_size),
    ):
        if exceeds(problem.batch * t * h * w, MOST_INDEX) or exceeds(
            channels * t * h * w, MOST_INDEX
        ):
            return (
                f"{what} has {problem.batch} clips of {channels}x{t}x{h}x{w} elements; at most "
                f"{MOST_INDEX} pixels, and elements of a clip, are indexed"
            )
    for what, inputs, outputs, taps in (
        ("spatial_weight", problem.in_channels, mid, kh * kw),
        ("temporal_weight", mid, problem.out_channels, kt),
    ):
        if exceeds(inputs * outputs * taps, MOST_INDEX):
            return (
                f"{what} has {outputs}x{inputs}x{taps} elements; at most {MOST_INDEX} are indexed"
            )
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
    y: Tensor = torch.ops.r21d_triton.inference(
        x,
        spatial_weight,
        temporal_weight,
        scale,
        shift,
        out_scale,
        out_shift,
        residual,
        relu,
        stride,
        padding,
    )
    return y


def spatial_forward(
    x: Tensor, weight: Tensor, stride: Triple, padding: Triple, statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    u, mean, m2 = torch.ops.r21d_triton.spatial_forward(x, weight, stride, padding, statistics)
    return u, mean, m2


def temporal_forward(
    u: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, stride: Triple, padding: Triple
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.ops.r21d_triton.temporal_forward(u, scale, shift, weight, stride, padding)
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
    g, grad_weight, sum_g, sum_g_normalized = torch.ops.r21d_triton.temporal_backward(
        grad, u, scale, shift, mean, invstd, weight, stride, padding, need_weight
    )
    return g, grad_weight if need_weight else None, sum_g, sum_g_normalized


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
    grad_x, grad_weight = torch.ops.r21d_triton.spatial_backward(
        g, u, x, weight, g_factor, u_factor, offset, stride, padding, need_x, need_weight
    )
    return grad_x if need_x else None, grad_weight if need_weight else None, None, None
