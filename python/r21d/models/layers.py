"""The (2+1)D layers of R(2+1)D-18 as data: what benchmarks time and ``r21d doctor`` asks about.

The shapes are those of Table 1 of the paper with its M (section 3.5) and a stem of 45 channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r21d_ops.problem import Problem, Triple


@dataclass(frozen=True)
class Layer:
    """One (2+1)D convolution: C channels in, M between, O out.

    Attributes:
        name: as in Table 1; ``conv3_1a`` is the first, strided convolution of conv3_1.
        times: how often the 18-layer network has it.
        in_channels, mid_channels, out_channels: C, M, O.
        frame_stride: network frames for one input frame (2 behind a temporal stride of 2).
        side: height and width of the input at 112×112 pixels.
        kernel, stride, padding: (t, h, w).
    """

    name: str
    times: int
    in_channels: int
    mid_channels: int
    out_channels: int
    frame_stride: int
    side: int
    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    padding: Triple = (1, 1, 1)

    def problem(self, batch: int, frames: int, dtype: torch.dtype, device: str = "cuda") -> Problem:
        """The layer in a network that sees ``batch`` clips of ``frames``×112×112 pixels."""
        return Problem(
            device,
            dtype,
            batch,
            self.in_channels,
            self.mid_channels,
            self.out_channels,
            (max(1, frames // self.frame_stride), self.side, self.side),
            self.kernel,
            self.stride,
            self.padding,
        )


def _rows(*layers: Layer) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers}


LAYERS: dict[str, Layer] = _rows(
    Layer("stem", 1, 3, 45, 64, 1, 112, (3, 7, 7), (1, 2, 2), (1, 3, 3)),
    Layer("conv2_x", 4, 64, 144, 64, 1, 56),
    Layer("conv3_1a", 1, 64, 230, 128, 1, 56, stride=(2, 2, 2)),
    Layer("conv3_x", 3, 128, 288, 128, 2, 28),
    Layer("conv4_1a", 1, 128, 460, 256, 2, 28, stride=(2, 2, 2)),
    Layer("conv4_x", 3, 256, 576, 256, 4, 14),
    Layer("conv5_1a", 1, 256, 921, 512, 4, 14, stride=(2, 2, 2)),
    Layer("conv5_x", 3, 512, 1152, 512, 8, 7),
)
