"""The residual video network of the paper, in torchvision's state-dict layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from r21d.models.convolutions import KINDS, STEM_CHANNELS, ConvolutionKind, StemShape
from r21d_ops.modules import conv_norm_act, why_not_plain
from r21d_ops.problem import paper_midplanes

if TYPE_CHECKING:
    from r21d.video.transforms import InputSpec

_MIDPLANES = ("paper", "torchvision")
_WIDTHS = (64, 128, 256, 512)
_STRIDES = (1, 2, 2, 2)


@dataclass(frozen=True)
class Architecture:
    """A network as data.

    Attributes:
        name: what :func:`r21d.create_model` calls it.
        kinds: the kind of convolution of conv1, conv2_x, conv3_x, conv4_x and conv5_x, each a
            key of :data:`r21d.models.convolutions.KINDS`.
        blocks: basic blocks in conv2_x to conv5_x (paper, Table 1).
    """

    name: str
    kinds: tuple[str, str, str, str, str]
    blocks: tuple[int, int, int, int]


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorm around an identity or projected shortcut (paper, Table 1).

    Input (N, in_planes, T, H, W), output (N, planes, T', H', W').
    """

    def __init__(
        self,
        kind: ConvolutionKind,
        in_planes: int,
        planes: int,
        stride: int,
        midplanes: int | None,
        eps: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            kind.block_conv(in_planes, planes, midplanes, stride, eps),
            nn.BatchNorm3d(planes, eps=eps),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            kind.block_conv(planes, planes, midplanes, 1, eps),
            nn.BatchNorm3d(planes, eps=eps),
        )
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_planes, planes, kernel_size=1, stride=kind.stride(stride), bias=False),
                nn.BatchNorm3d(planes, eps=eps),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        if not self._layers_as_built():
            return self.relu(self.conv2(self.conv1(x)) + residual)
        out = conv_norm_act(self.conv1[0], self.conv1[1], x, relu=True)
        return conv_norm_act(self.conv2[0], self.conv2[1], out, residual=residual, relu=True)

    def _layers_as_built(self) -> bool:
        # conv_norm_act calls neither the two sequences nor the two activations, so a hook on one
        # of them, or another layer put in its place, would silently be passed over.
        return (
            len(self.conv1) == 3
            and len(self.conv2) == 2
            and why_not_plain(self.conv1, (nn.Sequential,)) is None
            and why_not_plain(self.conv1[2], (nn.ReLU,)) is None
            and why_not_plain(self.conv2, (nn.Sequential,)) is None
            and why_not_plain(self.relu, (nn.ReLU,)) is None
        )


class VideoResNet(nn.Module):
    """A residual network over video clips whose five groups each have a kind of convolution.

    Parameter and buffer names are torchvision's (``stem``, ``layer1`` to ``layer4``, ``fc``), so
    its published weights load as they are.  Input: float (N, in_channels, T, H, W); output:
    logits (N, num_classes).

    Attributes:
        config: keyword arguments for :func:`r21d.create_model` that rebuild this network; plain
            JSON values.
        classes: label names in the order of the logits, or None while nobody has set them.
        input_spec: how clips for this network are made, or None.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 400,
        midplanes: str = "paper",
        *,
        in_channels: int = 3,
        clip_len: int | None = None,
        blocks: Sequence[int] | None = None,
        widths: Sequence[int] = _WIDTHS,
        stem_channels: int = STEM_CHANNELS,
        eps: float = 1e-5,
        dropout: float = 0.0,
        zero_init_residual: bool = False,
    ) -> None:
        """Build the network with fresh weights.

        Args:
            architecture: kinds and depth.
            num_classes: outputs of ``fc``.
            midplanes: ``"paper"`` or ``"torchvision"``, see :func:`r21d.create_model`.
            in_channels: 3 for RGB, 2 for optical flow.
            clip_len: frames a clip; a network that merges frames (R2D) is built for this number,
                every other one takes clips of any length.
            blocks: blocks in conv2_x to conv5_x, four numbers; None takes the architecture's.
            widths: channels of conv2_x to conv5_x, four numbers (paper, Table 1).
            stem_channels: channels of conv1 (paper, Table 1).
            eps: of every BatchNorm; weights that come from Caffe2 need 1e-3.
            dropout: probability of dropping a feature before ``fc``.
            zero_init_residual: start the last BatchNorm of every block at zero, so that each
                block starts as its shortcut (arXiv:1706.02677, section 5.1).

        Raises:
            ValueError: an argument out of range, with what was expected.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "name": architecture.name,
            "num_classes": _positive("num_classes", num_classes),
            "midplanes": _choice("midplanes", midplanes, _MIDPLANES),
            "in_channels": _positive("in_channels", in_channels),
            "clip_len": None if clip_len is None else _positive("clip_len", clip_len),
            "blocks": _four("blocks", architecture.blocks if blocks is None else blocks),
            "widths": _four("widths", widths),
            "stem_channels": _positive("stem_channels", stem_channels),
            "eps": _in_range("eps", eps, 0.0, 1.0),
            "dropout": _in_range("dropout", dropout, 0.0, 1.0),
            "zero_init_residual": bool(zero_init_residual),
        }
        self.classes: list[str] | None = None
        self.input_spec: InputSpec | None = None

        kinds = [KINDS[kind] for kind in architecture.kinds]
        self.stem = kinds[0].stem(StemShape(in_channels, stem_channels, clip_len, eps))
        groups = self._groups(kinds[1:], stem_channels, midplanes, eps)
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.config["widths"][-1], num_classes)
        self._initialise(zero_init_residual)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of clips (N, in_channels, T, H, W).

        Raises:
            ValueError: wrong rank, channels or dtype, or clips without a frame or pixel.
        """
        self._check_input(x)
        x = self.stem(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.avgpool(x).flatten(1)
        return self.fc(self.dropout(x))

    def _check_input(self, x: torch.Tensor) -> None:
        channels = self.config["in_channels"]
        if x.dim() != 5 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(
                f"x must be a floating-point tensor of shape (N, {channels}, T, H, W), got "
                f"{x.dtype} of shape {tuple(x.shape)}; frames (T, H, W, 3) become such clips "
                "through r21d.video.ClipTransform"
            )
        if any(size == 0 for size in x.shape[2:]):
            raise ValueError(
                f"x must have at least one frame and one pixel, got shape {tuple(x.shape)}"
            )

    def _groups(
        self, kinds: Sequence[ConvolutionKind], in_planes: int, midplanes: str, eps: float
    ) -> list[nn.Sequential]:
        groups = []
        table = zip(kinds, self.config["widths"], self.config["blocks"], _STRIDES, strict=True)
        for kind, planes, blocks, stride in table:
            layers = []
            for index in range(blocks):
                # None leaves M to each convolution; torchvision computes it from the block's
                # planes and uses it twice, which differs where a block changes the channels.
                shared = paper_midplanes(in_planes, planes) if midplanes == "torchvision" else None
                block_stride = stride if index == 0 else 1
                layers.append(BasicBlock(kind, in_planes, planes, block_stride, shared, eps))
                in_planes = planes
            groups.append(nn.Sequential(*layers))
        return groups

    def _initialise(self, zero_init_residual: bool) -> None:
        # As torchvision's VideoResNet does: He et al. by fan-out for convolutions, identity for
        # BatchNorm, and a small normal for the classifier.
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm3d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.conv2.get_parameter("1.weight"))


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return value


def _four(name: str, values: Sequence[int]) -> list[int]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or len(values) != 4:
        raise ValueError(f"{name} must be four positive integers, one a group, got {values!r}")
    return [_positive(f"{name}[{index}]", value) for index, value in enumerate(values)]


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        expected = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return value


def _in_range(name: str, value: float, low: float, high: float) -> float:
    if not isinstance(value, int | float) or not low <= value < high:
        raise ValueError(f"{name} must be a number in [{low}, {high}), got {value!r}")
    return float(value)
