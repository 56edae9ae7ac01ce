"""Blocks as the public video repositories build them, in our own words.

What matters to ``fuse`` is theirs: the names of the attributes and the order of what forward does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]


def factored(c: int, m: int, o: int, kernel: Triple, stride: Triple) -> tuple[nn.Conv3d, nn.Conv3d]:
    """Spatial and temporal convolution of a (2+1)D convolution that keeps odd sizes."""
    (kt, kh, kw), (st, sh, sw) = kernel, stride
    spatial = nn.Conv3d(c, m, (1, kh, kw), (1, sh, sw), (0, kh // 2, kw // 2), bias=False)
    temporal = nn.Conv3d(m, o, (kt, 1, 1), (st, 1, 1), (kt // 2, 0, 0), bias=False)
    return spatial, temporal


class OnViews(nn.Conv3d):
    """A spatial or temporal convolution as a 2-D one on NDHWC views, which sums in another order.

    Stock PyTorch at its fastest, and what the operator's backward calls.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        (kt, kh, kw), (st, sh, sw), (pt, ph, pw) = self.kernel_size, self.stride, self.padding
        if kt == 1 and st == 1:
            frames = x.transpose(1, 2).flatten(0, 1)
            y = F.conv2d(frames, self.weight.squeeze(2), None, (sh, sw), (ph, pw))
            return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        if (kh, kw, sh, sw) == (1, 1, 1, 1):
            y = F.conv2d(x.flatten(3), self.weight.squeeze(4), None, (st, 1), (pt, 0))
            return y.unflatten(3, x.shape[3:])
        return super().forward(x)


def on_views(model: nn.Module) -> nn.Module:
    """A copy of a stock model with such convolutions."""
    way = copy.deepcopy(model)
    for conv in way.modules():
        if type(conv) is nn.Conv3d:
            conv.__class__ = OnViews
    return way


class MmConv(nn.Module):
    """mmaction2's ``Conv2plus1d`` (mmaction/models/common/conv2plus1d.py)."""

    def __init__(
        self, c: int, o: int, kernel: Triple = (3, 3, 3), stride: Triple = (1, 1, 1), m: int = 7
    ) -> None:
        super().__init__()
        self.norm_cfg = {"type": "BN3d"}
        self.conv_s, self.conv_t = factored(c, m, o, kernel, stride)
        self.bn_s = nn.BatchNorm3d(m, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_s(x)
        x = self.bn_s(x)
        x = self.relu(x)
        return self.conv_t(x)


class MmConvModule(nn.Module):
    """mmcv's ``ConvModule``: convolution, norm and activation in a configured order."""

    def __init__(self, conv: nn.Module, channels: int, activation: bool = True) -> None:
        super().__init__()
        self.order = ("conv", "norm", "act")
        self.with_activation = activation
        self.conv = conv
        self.norm_name = "bn"
        self.add_module(self.norm_name, nn.BatchNorm3d(channels, eps=1e-3))
        if activation:
            self.activate = nn.ReLU(inplace=True)

    @property
    def norm(self) -> nn.Module:
        return getattr(self, self.norm_name)

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        for layer in self.order:
            if layer == "conv":
                x = self.conv(x)
            elif layer == "norm" and norm:
                x = self.norm(x)
            elif layer == "act" and activate and self.with_activation:
                x = self.activate(x)
        return x


class MmBlock(nn.Module):
    """mmaction2's ``BasicBlock3d`` in R(2+1)D, whose shortcut is a (2+1)D convolution too."""

    def __init__(self, c: int = 3, o: int = 5, stride: int = 1, with_cp: bool = False) -> None:
        super().__init__()
        steps = (stride,) * 3
        self.with_cp = with_cp
        self.conv1 = MmConvModule(MmConv(c, o, stride=steps), o)
        self.conv2 = MmConvModule(MmConv(o, o), o, activation=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or c != o:
            self.downsample = MmConvModule(MmConv(c, o, (1, 1, 1), steps, m=2), o, False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            identity = x
            out = self.conv2(self.conv1(x))
            if self.downsample is not None:
                identity = self.downsample(x)
            return out + identity

        if self.with_cp and x.requires_grad:
            out = torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=True)
        else:
            out = inner(x)
        return self.relu(out)


class PtvConv(nn.Module):
    """pytorchvideo's ``Conv2plus1d`` (pytorchvideo/layers/convolutions.py)."""

    def __init__(self, c: int, o: int, stride: Triple = (1, 1, 1), xy_first: bool = True) -> None:
        super().__init__()
        spatial, temporal = factored(c if xy_first else 7, 7, o, (3, 3, 3), stride)
        if not xy_first:
            spatial, temporal = factored(7, o, 7, (3, 3, 3), stride)
            temporal = nn.Conv3d(c, 7, (3, 1, 1), (stride[0], 1, 1), (1, 0, 0), bias=False)
        self.conv_t = temporal
        self.norm = nn.BatchNorm3d(7)
        self.activation = nn.ReLU()
        self.conv_xy = spatial
        self.conv_xy_first = xy_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_xy(x) if self.conv_xy_first else self.conv_t(x)
        x = self.norm(x) if self.norm else x
        x = self.activation(x) if self.activation else x
        return self.conv_t(x) if self.conv_xy_first else self.conv_xy(x)


class PtvBottleneck(nn.Module):
    """pytorchvideo's ``BottleneckBlock``: 1×1×1, (2+1)D, 1×1×1."""

    def __init__(self, c: int, inner: int, o: int, stride: int, xy_first: bool = True) -> None:
        super().__init__()
        self.conv_a = nn.Conv3d(c, inner, 1, bias=False)
        self.norm_a = nn.BatchNorm3d(inner)
        self.act_a = nn.ReLU()
        self.conv_b = PtvConv(inner, inner, (stride,) * 3, xy_first)
        self.norm_b = nn.BatchNorm3d(inner)
        self.act_b = nn.ReLU()
        self.conv_c = nn.Conv3d(inner, o, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(o)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_a(self.norm_a(self.conv_a(x)))
        x = self.act_b(self.norm_b(self.conv_b(x)))
        return self.norm_c(self.conv_c(x))


def sum_of(x: Tensor, y: Tensor) -> Tensor:
    """How pytorchvideo's ``ResBlock`` joins its branches."""
    return x + y


class PtvBlock(nn.Module):
    """pytorchvideo's ``ResBlock``; ``branch2`` may end in a (2+1)D convolution's norm."""

    def __init__(self, branch2: nn.Module, shortcut: nn.Module | None, channels: int) -> None:
        super().__init__()
        self.branch1_conv = shortcut
        self.branch1_norm = None if shortcut is None else nn.BatchNorm3d(channels)
        self.branch2 = branch2
        self.activation = nn.ReLU()
        self.branch_fusion: Callable[[Tensor, Tensor], Tensor] = sum_of

    def forward(self, x: Tensor) -> Tensor:
        if self.branch1_conv is None:
            x = self.branch_fusion(x, self.branch2(x))
        else:
            shortcut = self.branch1_conv(x)
            if self.branch1_norm is not None:
                shortcut = self.branch1_norm(shortcut)
            x = self.branch_fusion(shortcut, self.branch2(x))
        return self.activation(x)


class PtvBranch(nn.Module):
    """A branch for :class:`PtvBlock` that ends in a (2+1)D convolution and its norm."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.conv = PtvConv(c, o)
        self.norm = nn.BatchNorm3d(o)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class VmzConv(nn.Sequential):
    """VMZ's and ig65m's, which are torchvision's: a sequence with one method of its own."""

    def __init__(self, c: int, o: int, m: int = 7, stride: int = 1) -> None:
        spatial, temporal = factored(c, m, o, (3, 3, 3), (stride,) * 3)
        super().__init__(spatial, nn.BatchNorm3d(m, eps=1e-3), nn.ReLU(inplace=True), temporal)

    @staticmethod
    def get_downsample_stride(stride: int) -> Triple:
        return stride, stride, stride


class VmzBlock(nn.Module):
    """VMZ's and ig65m's residual block, which adds in place."""

    def __init__(self, c: int = 3, o: int = 5, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            VmzConv(c, o, stride=stride), nn.BatchNorm3d(o, eps=1e-3), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(VmzConv(o, o), nn.BatchNorm3d(o, eps=1e-3))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or c != o:
            self.downsample = nn.Sequential(
                nn.Conv3d(c, o, 1, stride, bias=False), nn.BatchNorm3d(o, eps=1e-3)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.conv1(x)
        out = self.conv2(out)
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.relu(out)


class FlatBlock(nn.Module):
    """Everything as attributes of one module, ReLU as a function, the shortcut added in place."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.space, self.time = factored(channels, 7, channels, (3, 3, 3), (1, 1, 1))
        self.inner = nn.BatchNorm3d(7)
        self.outer = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.time(torch.relu(self.inner(self.space(x))))
        out = self.outer(out).add_(x)
        return nn.functional.relu(out, inplace=True)
