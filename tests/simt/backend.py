"""The `cuda` backend on CPU tensors, its kernels in the simulator: same code, same answers."""

from __future__ import annotations

import os
import random

from simt import training as _registered  # noqa: F401 - the training operators on the CPU
from simt.library import simulator
from simt.random_problems import CONV_TILES, FUSED_TILES
from simt.simulated import Setting, run
from torch import Tensor

from r21d_ops.backends import cuda
from r21d_ops.dispatch import INFERENCE_VARIABLE, cuda_plan
from r21d_ops.dynamo import constant_result
from r21d_ops.problem import Problem, Triple, live_frames
from r21d_ops.shapes import like_ndhwc, spatial_shape, temporal_shape

NAME = cuda.NAME
DEVICES: tuple[str, ...] | None = ("cpu",)
KERNELS = cuda.KERNELS
BLOCKS = cuda.BLOCKS

#: Training is the real backend's own code over operators that simt/training.py simulates.
spatial_forward = cuda.spatial_forward
temporal_forward = cuda.temporal_forward
temporal_backward = cuda.temporal_backward
spatial_backward = cuda.spatial_backward
join = cuda.join
join_backward = cuda.join_backward


# A tracer would look into files.
@constant_result
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
    fits = live_frames(temporal_weight.shape[2], stride[0]) <= cuda_plan.MOST_LIVE
    kernels = os.environ.get(INFERENCE_VARIABLE, "fused") if fits else "two"
    operands = (x, spatial_weight, temporal_weight, scale, shift, out_scale, out_shift, residual,
                relu, stride, padding)  # fmt: skip
    # By the shapes, so that tests meet every tile and a call is the same twice.
    rng = random.Random(str((x.shape, y.shape, spatial_weight.shape, kernels)))
    try:
        out, ran = run(*operands, Setting(kernels, _any_tiles(rng, y.shape[2])))
    except ValueError as error:
        assert "shared memory" in str(error)
        out, ran = run(*operands, Setting(kernels))
    assert ran["uninitialised_reads"] == 0
    return y.copy_(out)


def _any_tiles(rng: random.Random, frames: int) -> dict[str, dict[str, int]]:
    """Tiles of every kernel; a block of the fused one makes all ``frames`` of the output."""
    warps, mids, _ = rng.choice(FUSED_TILES)
    fused = {"pixel_warps": warps, "columns": mids, "chunk": frames}
    tiles = {name: rng.choice(CONV_TILES) for name in ("spatial", "temporal")}
    return {"fused": fused, **{k: {"pixel_warps": w, "columns": c} for k, (w, c) in tiles.items()}}
