"""The `cuda` backend on CPU tensors, its kernels in the simulator: same code, same answers."""

from __future__ import annotations

import os

from simt.library import simulator
from simt.simulated import Setting, run
from torch import Tensor

from r21d_ops.backends import cuda
from r21d_ops.dispatch import INFERENCE_VARIABLE
from r21d_ops.problem import Problem, Triple, live_frames
from r21d_ops.shapes import like_ndhwc, spatial_shape, temporal_shape

NAME = cuda.NAME
DEVICES: tuple[str, ...] | None = ("cpu",)
TRAINS = cuda.TRAINS
KERNELS = cuda.KERNELS

#: Output frames that see one frame, at most, in one kernel (csrc/cuda/planner.h).
_MOST_LIVE = 3


def unavailable() -> str | None:
    """Runs where the simulator is built; else the test fails or is skipped."""
    simulator()
    return None


def can_run(problem: Problem) -> str | None:
    """What the real one serves, but on the CPU."""
    return cuda.can_run(problem._replace(device="cuda"))


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
    mid = spatial_shape(x, spatial_weight, stride, padding)
    y = like_ndhwc(x, temporal_shape(mid, temporal_weight, stride, padding))
    if x.shape[0] == 0:
        return y
    fits = live_frames(temporal_weight.shape[2], stride[0]) <= _MOST_LIVE
    kernels = os.environ.get(INFERENCE_VARIABLE, "fused")
    out, _ = run(
        x, spatial_weight, temporal_weight, scale, shift, out_scale, out_shift, residual, relu,
        stride, padding, Setting(kernels if fits else "two"),
    )  # fmt: skip
    return y.copy_(out)
