"""Shapes and layouts of what the operators take and return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r21d_ops.problem import output_size

#: On a GPU u and g have M rounded up to this, so that rows start at 16-byte addresses.
CHANNEL_MULTIPLE = 16


def padded(mid: int) -> int:
    """Channels that u and g hold for M of them on a GPU."""
    return -(-mid // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def ndhwc(x: Tensor) -> Tensor:
    """``x`` with channels innermost and no gaps; a copy only where it is not so already."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def like_ndhwc(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Uninitialised NDHWC of ``shape``, of the dtype and device of ``x``."""
    return torch.empty(
        list(shape), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d
    )


def spatial_shape(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Shape of the spatial convolution of ``x``."""
    return [
        x.shape[0],
        weight.shape[0],
        x.shape[2],
        output_size(x.shape[3], weight.shape[3], stride[1], padding[1]),
        output_size(x.shape[4], weight.shape[4], stride[2], padding[2]),
    ]


def temporal_shape(
    shape: Sequence[int], weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Shape of the temporal convolution of a tensor of ``shape``."""
    n, _, t, h, w = shape
    return [n, weight.shape[0], output_size(t, weight.shape[2], stride[0], padding[0]), h, w]
