"""The kinds of convolution that a group of the network can be made of.

A network of the paper is five groups (conv1 to conv5_x), each of one kind: 2-D, 3-D or (2+1)D
(paper, Figure 1).  A kind knows three things: how to build the convolution of a residual block,
how to build the stem, and whether it mixes frames, because only then does the network stride in
time (paper, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from r21d_ops import Conv2Plus1D
from r21d_ops.modules import FusedSequential

STEM_MIDPLANES = 45
"""Channels between the stem's two convolutions at 64 output channels; the paper's own network
(and every published weight file) has 45 where the formula of section 3.5 would give 83."""

STEM_CHANNELS = 64
"""Channels of conv1 (paper, Table 1)."""


@dataclass(frozen=True)
class StemShape:
    """What a stem is built from.

    Attributes:
        in_channels, out_channels: channels.
        midplanes: M of a (2+1)D stem; None: :func:`stem_midplanes`.
        clip_len: frames a clip; None: any number.
        eps: BatchNorm's.
        inner_eps: of the BatchNorm inside a (2+1)D stem.
    """

    in_channels: int
    out_channels: int
    midplanes: int | None
    clip_len: int | None
    eps: float
    inner_eps: float


@dataclass(frozen=True)
class ConvolutionKind:
    """One kind of convolution.

    Attributes:
        temporal: whether the kind convolves over frames; if so, it strides in time wherever the
            network strides in space from conv3_1 on.
        block_conv: ``(in_planes, out_planes, midplanes, stride, inner_eps)`` -> the 3x3(x3)
            convolution of a basic block, without the BatchNorm that follows it.  ``midplanes``
            and ``inner_eps`` matter to (2+1)D alone; None stands for the paper's formula.
        stem: builds conv1 with its BatchNorm and ReLU.
    """

    temporal: bool
    block_conv: Callable[[int, int, int | None, int, float], nn.Module]
    stem: Callable[[StemShape], nn.Sequential]

    def stride(self, stride: int) -> tuple[int, int, int]:
        """The (t, h, w) stride of a convolution that strides by ``stride`` in space."""
        return (stride if self.temporal else 1, stride, stride)


class MergedFramesConv3d(nn.Conv3d):
    """R2D's conv1: channels and frames of a clip become the channels of one image.

    Input (N, C, L, H, W), output (N, out_channels, 1, H', W').  Merged channel ``c * L + t`` is
    frame t of channel c.  Raises ValueError when the clip does not have exactly ``clip_len``
    frames, because the weights are made for that number.
    """

    def __init__(self, in_channels: int, out_channels: int, clip_len: int) -> None:
        super().__init__(
            in_channels * clip_len,
            out_channels,
            kernel_size=(1, 7, 7),
            stride=(1, 2, 2),
            padding=(0, 3, 3),
            bias=False,
        )
        self.clip_len = clip_len

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] != self.clip_len:
            raise ValueError(
                f"x has {x.shape[2]} frames, but this network merges exactly {self.clip_len} "
                f"frames into one image; pass clips of {self.clip_len} frames or build the "
                f"network with clip_len={x.shape[2]}"
            )
        return super().forward(x.flatten(1, 2).unsqueeze(2))


def stem_midplanes(out_channels: int) -> int:
    """M of the (2+1)D stem: the paper's 45 at 64 channels, in proportion at other widths.

    The proportion is this library's choice; the paper has no other width.  mmaction2 takes the
    formula's 83 instead.
    """
    return max(1, STEM_MIDPLANES * out_channels // STEM_CHANNELS)


def _norm_relu(planes: int, eps: float) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm3d(planes, eps=eps), nn.ReLU(inplace=True)


def _spatial_conv(
    in_planes: int, out_planes: int, midplanes: int | None, stride: int, inner_eps: float
) -> nn.Module:
    return nn.Conv3d(
        in_planes,
        out_planes,
        kernel_size=(1, 3, 3),
        stride=(1, stride, stride),
        padding=(0, 1, 1),
        bias=False,
    )


def _full_conv(
    in_planes: int, out_planes: int, midplanes: int | None, stride: int, inner_eps: float
) -> nn.Module:
    return nn.Conv3d(in_planes, out_planes, kernel_size=3, stride=stride, padding=1, bias=False)


def _factored_conv(
    in_planes: int, out_planes: int, midplanes: int | None, stride: int, inner_eps: float
) -> nn.Module:
    return Conv2Plus1D(in_planes, out_planes, midplanes, stride, eps=inner_eps)


def _stem_conv(in_planes: int, out_planes: int, frames: int) -> nn.Conv3d:
    return nn.Conv3d(
        in_planes,
        out_planes,
        kernel_size=(frames, 7, 7),
        stride=(1, 2, 2),
        padding=(frames // 2, 3, 3),
        bias=False,
    )


def _spatial_stem(shape: StemShape) -> nn.Sequential:
    conv = _stem_conv(shape.in_channels, shape.out_channels, frames=1)
    return nn.Sequential(conv, *_norm_relu(shape.out_channels, shape.eps))


def _full_stem(shape: StemShape) -> nn.Sequential:
    conv = _stem_conv(shape.in_channels, shape.out_channels, frames=3)
    return nn.Sequential(conv, *_norm_relu(shape.out_channels, shape.eps))


def _merged_stem(shape: StemShape) -> nn.Sequential:
    if shape.clip_len is None:
        raise ValueError(
            "clip_len is needed for a network that merges the frames of a clip into one image; "
            "pass clip_len=8, for example, and clips of that many frames"
        )
    conv = MergedFramesConv3d(shape.in_channels, shape.out_channels, shape.clip_len)
    return nn.Sequential(conv, *_norm_relu(shape.out_channels, shape.eps))


def _factored_stem(shape: StemShape) -> nn.Sequential:
    midplanes = shape.midplanes or stem_midplanes(shape.out_channels)
    temporal = nn.Conv3d(
        midplanes, shape.out_channels, kernel_size=(3, 1, 1), padding=(1, 0, 0), bias=False
    )
    return FusedSequential(
        _stem_conv(shape.in_channels, midplanes, frames=1),
        *_norm_relu(midplanes, shape.inner_eps),
        temporal,
        *_norm_relu(shape.out_channels, shape.eps),
    )


def projection_shortcut(
    in_planes: int, planes: int, stride: tuple[int, int, int], eps: float, inner_eps: float
) -> nn.Sequential:
    """The paper's shortcut where a block changes its shape: a 1x1x1 convolution and BatchNorm."""
    return nn.Sequential(
        nn.Conv3d(in_planes, planes, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm3d(planes, eps=eps),
    )


def factored_shortcut(
    in_planes: int, planes: int, stride: tuple[int, int, int], eps: float, inner_eps: float
) -> nn.Sequential:
    """mmaction2's shortcut: a (2+1)D convolution of kernel 1, and BatchNorm.

    Its M is the paper's formula with d = 1 but t = 3, as mmaction2 computes it: 54, 109 and 219.
    """
    midplanes = 3 * in_planes * planes // (in_planes + 3 * planes)
    conv = Conv2Plus1D(in_planes, planes, midplanes, stride, 0, kernel_size=1, eps=inner_eps)
    return nn.Sequential(conv, nn.BatchNorm3d(planes, eps=eps))


KINDS: dict[str, ConvolutionKind] = {
    "2d": ConvolutionKind(False, _spatial_conv, _spatial_stem),
    "2d-merged": ConvolutionKind(False, _spatial_conv, _merged_stem),
    "3d": ConvolutionKind(True, _full_conv, _full_stem),
    "(2+1)d": ConvolutionKind(True, _factored_conv, _factored_stem),
}
"""Every kind by name; ``2d-merged`` is R2D's, which has one image left after conv1."""
