"""I3D, the Inception-v1 network inflated to three dimensions (arXiv:1705.07750).

It is the paper's main rival and holds no (2+1)D block.  The order of operations is that of the
authors' TensorFlow code, the state-dict keys are those of its PyTorch port, pytorch-i3d.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from r21d.models.base import VideoModel, in_range, positive

FEATURES = 1024
"""Channels of the last stage."""

_WINDOW = (2, 7, 7)
# Branch 0; the two convolutions of branches 1 and 2; branch 3 (arXiv:1409.4842, Table 1).
_MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_POOLS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding in front and behind, for an output of ⌈size / stride⌉.

    The half that is larger by one goes behind.
    """
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


class SameConv3d(nn.Conv3d):
    """A ``Conv3d`` that strides, with SAME padding for the size of each input.

    Input (N, C, T, H, W), output (N, O, ⌈T/st⌉, ⌈H/sh⌉, ⌈W/sw⌉).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        front: list[int] = []
        extra: list[int] = []
        for size, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            before, behind = same_padding(size, kernel, stride)
            front.append(before)
            extra = [0, behind - before, *extra]  # functional.pad begins with the last axis
        # The convolution pads both sides alike; only what is missing behind costs a copy.
        if any(extra):
            x = functional.pad(x, extra)
        return functional.conv3d(x, self.weight, self.bias, self.stride, front)


class SameMaxPool3d(nn.MaxPool3d):
    """A ``MaxPool3d`` with SAME padding for the size of each input.

    Input (N, C, T, H, W), output (N, C, ⌈T/st⌉, ⌈H/sh⌉, ⌈W/sw⌉).  Padding never wins, as in
    TensorFlow.  The ports to PyTorch pad with zeros instead, which is the same here: what is
    pooled comes from a ReLU, and every window holds at least one value of it.
    """

    def __init__(self, kernel_size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__(kernel_size, stride, ceil_mode=True)
        self._axes = tuple(zip(kernel_size, stride, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Rounding the output's size up lets the last window reach one value beyond the end, so
        # nothing is copied.
        front = [
            same_padding(size, kernel, stride)[0]
            for size, (kernel, stride) in zip(x.shape[2:], self._axes, strict=True)
        ]
        return functional.max_pool3d(x, self.kernel_size, self.stride, front, ceil_mode=True)


class Unit(nn.Module):
    """A convolution with SAME padding, BatchNorm and ReLU."""

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        kernel: int,
        norm: tuple[float, float],
        stride: int = 1,
    ) -> None:
        super().__init__()
        eps, momentum = norm
        self.conv3d: nn.Conv3d
        if stride == 1:  # padding does not depend on the size
            self.conv3d = nn.Conv3d(in_planes, out_planes, kernel, padding=kernel // 2, bias=False)
        else:
            self.conv3d = SameConv3d(in_planes, out_planes, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out_planes, eps, momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv3d(x)), inplace=True)


class Mixed(nn.Module):
    """An Inception module: four branches, their channels put together.

    Input (N, in_planes, T, H, W), output (N, the sum of the branches' last planes, T, H, W).
    """

    def __init__(
        self,
        in_planes: int,
        planes: tuple[int, int, int, int, int, int],
        norm: tuple[float, float],
    ) -> None:
        super().__init__()
        self.b0 = Unit(in_planes, planes[0], 1, norm)
        self.b1a = Unit(in_planes, planes[1], 1, norm)
        self.b1b = Unit(planes[1], planes[2], 3, norm)
        self.b2a = Unit(in_planes, planes[3], 1, norm)
        self.b2b = Unit(planes[3], planes[4], 3, norm)
        self.b3a = nn.MaxPool3d(3, stride=1, padding=1)
        self.b3b = Unit(in_planes, planes[5], 1, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (
            self.b0(x),
            self.b1b(self.b1a(x)),
            self.b2b(self.b2a(x)),
            self.b3b(self.b3a(x)),
        )
        return torch.cat(branches, dim=1)


class WindowPool(nn.Module):
    """Averages over every window of 2×7×7 (frames, height, width) at stride 1.

    Input (N, C, T, H, W), output (N, C, T', H', W'); along an axis shorter than the window the
    whole axis is averaged.  The authors' code takes nothing shorter; 16 frames of 224 × 224 are
    the smallest clip that fills one window.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        window = [min(size, full) for size, full in zip(x.shape[2:], _WINDOW, strict=True)]
        return functional.avg_pool3d(x, window, stride=1)


class Logits(nn.Module):
    """The classifier at every position: a 1×1×1 convolution with a bias."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(FEATURES, num_classes, kernel_size=1)
        _initialise(self.conv3d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3d(x)


class I3D(VideoModel):
    """Inception-v1 I3D (arXiv:1705.07750, Fig. 3), for RGB or optical flow.

    Input: float (N, in_channels, T, H, W) in [-1, 1], of any size; the authors' weights were made
    for 64 frames of 224 × 224 at 25 a second.  Output: logits (N, num_classes), the mean over the
    positions at which the classifier stands.  A clip larger than 224 × 224 has more such
    positions, also across the image, where the authors' code stops with an error.

    Padding is TensorFlow's SAME, which depends on the size of each input.
    """

    stages = (
        "Conv3d_1a_7x7",
        "MaxPool3d_2a_3x3",
        "Conv3d_2b_1x1",
        "Conv3d_2c_3x3",
        "MaxPool3d_3a_3x3",
        "Mixed_3b",
        "Mixed_3c",
        "MaxPool3d_4a_3x3",
        "Mixed_4b",
        "Mixed_4c",
        "Mixed_4d",
        "Mixed_4e",
        "Mixed_4f",
        "MaxPool3d_5a_2x2",
        "Mixed_5b",
        "Mixed_5c",
    )
    _head = "logits"

    def __init__(
        self,
        num_classes: int = 400,
        *,
        in_channels: int = 3,
        clip_len: int | None = None,
        dropout: float = 0.5,
        eps: float = 1e-3,
        momentum: float = 1e-3,
    ) -> None:
        """Build the network with fresh weights.

        Args:
            num_classes: outputs of ``logits``.
            in_channels: 3 for RGB, 2 for optical flow.
            clip_len: frames a clip; a note for others, the network takes clips of any length.
            dropout: probability of dropping a pooled feature before ``logits``.
            eps: of every BatchNorm; the authors' weights need 1e-3.
            momentum: of every BatchNorm, in PyTorch's convention; the authors' decay of 0.999,
                which takes thousands of steps to follow, so that a short training run from fresh
                weights needs a larger one, 0.1 say.

        Raises:
            ValueError: an argument out of range, with what was expected.
        """
        super().__init__(
            {
                "name": "i3d",
                "num_classes": positive("num_classes", num_classes),
                "in_channels": positive("in_channels", in_channels),
                "clip_len": None if clip_len is None else positive("clip_len", clip_len),
                "dropout": in_range("dropout", dropout, 0.0, 1.0),
                "eps": in_range("eps", eps, 0.0, 1.0),
                "momentum": in_range("momentum", momentum, 0.0, 1.0),
            }
        )
        norm = (self.config["eps"], self.config["momentum"])
        self.Conv3d_1a_7x7 = Unit(in_channels, 64, 7, norm, stride=2)
        planes = 64
        for name in self.stages[1:]:
            if name in _POOLS:
                stage: nn.Module = SameMaxPool3d(*_POOLS[name])
            elif name in _MIXED:
                stage = Mixed(planes, _MIXED[name], norm)
                planes = sum(_MIXED[name][i] for i in (0, 2, 4, 5))
            else:
                kernel, width = {"Conv3d_2b_1x1": (1, 64), "Conv3d_2c_3x3": (3, 192)}[name]
                stage = Unit(planes, width, kernel, norm)
                planes = width
            self.add_module(name, stage)
        assert planes == FEATURES
        self.avg_pool = WindowPool()
        self.dropout = nn.Dropout(dropout)
        self.logits = Logits(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                _initialise(module)

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(self.dropout(self.avg_pool(x))).mean((2, 3, 4))

    def _new_head(self, num_classes: int) -> Logits:
        return Logits(num_classes)


def _initialise(conv: nn.Conv3d) -> None:
    # As Sonnet 1 does by default, which the authors' networks trained on Kinetics alone started
    # from: a normal of variance 1 / fan-in, cut off at two deviations.
    deviation = conv.weight[0].numel() ** -0.5
    nn.init.trunc_normal_(conv.weight, 0.0, deviation, -2 * deviation, 2 * deviation)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
