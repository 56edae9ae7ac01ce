"""One (2+1)D problem: sizes, strides and dtype, and the sizes that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Triple = tuple[int, int, int]


def triple(value: int | Sequence[int], name: str) -> Triple:
    """``value`` as ``(t, h, w)``, as ``nn.Conv3d`` reads it: an int stands for all three.

    Raises:
        ValueError: neither an int nor three ints.
    """
    values = tuple(value) if isinstance(value, Iterable) else (value, value, value)
    integers = [isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in values]
    if len(values) != 3 or not all(integers):
        raise ValueError(f"{name} must be an int or three ints (t, h, w), got {value!r}")
    return (values[0], values[1], values[2])


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Length of a convolution's output along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def paper_midplanes(in_planes: int, out_planes: int, kernel_size: int | Sequence[int] = 3) -> int:
    """Channels M between the two convolutions, so that they hold as many weights as the 3-D one.

    M = ⌊t·d²·N_in·N_out / (d²·N_in + t·N_out)⌋ (paper, section 3.5), with ``kernel_size`` an int
    or ``(t, d, d)``.
    """
    t, h, w = triple(kernel_size, "kernel_size")
    return (t * h * w * in_planes * out_planes) // (h * w * in_planes + t * out_planes)


#: Output frames that one kernel for inference sums at a time, at most: each takes registers.
MOST_LIVE = 4


def live_frames(kernel: int, stride: int) -> int:
    """How many output frames see one frame: as many are being summed at a time in one kernel."""
    return -(-kernel // stride)


class Problem(NamedTuple):
    """Everything that decides which backend can serve a call, and nothing of its values.

    ``kernel``, ``stride`` and ``padding`` are (t, h, w); the spatial convolution has
    (1, h, w) of each and the temporal one (t, 1, 1).
    """

    device: str
    dtype: torch.dtype
    batch: int
    in_channels: int
    mid_channels: int
    out_channels: int
    size: Triple
    kernel: Triple
    stride: Triple
    padding: Triple

    @property
    def mid_size(self) -> Triple:
        """(T, H', W') of the intermediate u."""
        t, h, w = self.size
        return (
            t,
            output_size(h, self.kernel[1], self.stride[1], self.padding[1]),
            output_size(w, self.kernel[2], self.stride[2], self.padding[2]),
        )

    @property
    def out_size(self) -> Triple:
        """(T', H', W') of the output."""
        t, h, w = self.mid_size
        return (output_size(t, self.kernel[0], self.stride[0], self.padding[0]), h, w)


def problem_of(
    x: Tensor, spatial_weight: Tensor, temporal_weight: Tensor, stride: Triple, padding: Triple
) -> Problem:
    """The problem that checked tensors pose."""
    _, _, t, h, w = x.shape
    _, _, _, kh, kw = spatial_weight.shape
    return Problem(
        device=x.device.type,
        dtype=x.dtype,
        batch=x.shape[0],
        in_channels=x.shape[1],
        mid_channels=spatial_weight.shape[0],
        out_channels=temporal_weight.shape[0],
        size=(t, h, w),
        kernel=(temporal_weight.shape[2], kh, kw),
        stride=stride,
        padding=padding,
    )
