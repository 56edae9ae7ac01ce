"""The CUDA operator in the simulator, on the operands of ``ops.problems``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch
from ops.problems import Operands
from simt.library import simulator
from torch import Tensor

from r21d_ops.autograd import fold_norm

#: Bytes of shared memory that a block may have: compute capability 9.0, 8.0, and 8.6 and 8.9.
SHARED_CLASSES = (232448, 166912, 101376)

Halves = np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True)
class Setting:
    """How a problem is run.

    Attributes:
        kernels: ``fused`` or ``two``.
        force: by ``fused``, ``spatial``, ``temporal``: pixel_warps, columns (``fused``: channels of
            M in a slice), bands, chunk; what is missing the planner chooses.
        shared: bytes of shared memory that a block may have.
    """

    kernels: str
    force: dict[str, dict[str, int]] = field(default_factory=dict)
    shared: int = SHARED_CLASSES[0]


def halves(tensor: Tensor) -> Halves:
    """The bits of a 16-bit tensor, with its strides."""
    bits: Halves = tensor.view(torch.int16).numpy().view(np.uint16)
    return bits


@overload
def rows(tensor: Tensor) -> Halves: ...
@overload
def rows(tensor: None) -> None: ...
def rows(tensor: Tensor | None) -> Halves | None:
    """(N, C, T, H, W) as contiguous (N, T, H, W, C)."""
    return None if tensor is None else halves(tensor.permute(0, 2, 3, 4, 1).contiguous())


def run(
    x: Tensor,
    spatial_weight: Tensor,
    temporal_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    setting: Setting,
    **options: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """The operator as :mod:`r21d_ops.backends.eager` defines ``inference``; y and what ran.

    Raises:
        simulator().Fault: a kernel did what it must not.
        ValueError: the planner refuses the problem or the setting.
    """
    library = simulator()
    library.options(**options)
    vectors = {
        name: None if value is None else value.numpy()
        for name, value in (("out_scale", out_scale), ("out_shift", out_shift))
    }
    y, ran = library.conv2plus1d(
        rows(x),
        halves(spatial_weight),
        halves(temporal_weight),
        scale.numpy(),
        shift.numpy(),
        **vectors,
        residual=rows(residual),
        relu=relu,
        stride=list(stride),
        padding=list(padding),
        dtype=str(x.dtype).removeprefix("torch."),
        kernels=setting.kernels,
        shared_block=setting.shared,
        force=setting.force,
    )
    out = torch.from_numpy(y.view(np.int16)).view(x.dtype)
    return out.permute(0, 4, 1, 2, 3), ran


def simulate(operands: Operands, setting: Setting, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """:func:`run` on ``operands``, with their running statistics.

    Args:
        operands: bfloat16 or float16.
        setting: which kernels and tiles.
        options: of the simulator: mode, order, seed, mutate.
    """
    given, case = operands, operands.case
    assert given.running_mean is not None and given.running_var is not None
    scale, shift = fold_norm(
        given.running_mean, given.running_var, given.bn_weight, given.bn_bias, 1e-5, given.x.dtype
    )
    return run(
        *given.tensors(), scale, shift, given.out_scale, given.out_shift, given.residual,
        given.relu, case.stride, case.padding, setting, **options,
    )  # fmt: skip
