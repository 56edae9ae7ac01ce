"""The residual video network of the paper, in torchvision's state-dict layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from r21d.models.base import VideoModel, in_range, positive
from r21d.models.convolutions import (
    KINDS,
    STEM_CHANNELS,
    ConvolutionKind,
    StemShape,
    factored_shortcut,
    projection_shortcut,
)
from r21d_ops.basic_block import FusedBasicBlock
from r21d_ops.problem import paper_midplanes

_MIDPLANES = ("paper", "torchvision")
_WIDTHS = (64, 128, 256, 512)
_STRIDES = (1, 2, 2, 2)
_SHORTCUTS = {"projection": projection_shortcut, "(2+1)d": factored_shortcut}


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


class BasicBlock(FusedBasicBlock):
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
        shortcut: str,
        eps: float,
        inner_eps: float,
    ) -> None:
        nn.Module.__init__(self)  # the same layers, of any kind of convolution
        self.conv1 = nn.Sequential(
            kind.block_conv(in_planes, planes, midplanes, stride, inner_eps),
            nn.BatchNorm3d(planes, eps=eps),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            kind.block_conv(planes, planes, midplanes, 1, inner_eps),
            nn.BatchNorm3d(planes, eps=eps),
        )
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_planes != planes:
            project = _SHORTCUTS[shortcut]
            self.downsample = project(in_planes, planes, kind.stride(stride), eps, inner_eps)


class VideoResNet(VideoModel):
    """A residual network over video clips whose five groups each have a kind of convolution.

    Parameter and buffer names are torchvision's (``stem``, ``layer1`` to ``layer4``, ``fc``), so
    its published weights load as they are.  Input: float (N, in_channels, T, H, W); output:
    logits (N, num_classes).
    """

    stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    _head = "fc"

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
        stem_midplanes: int | None = None,
        stem_pool: bool = False,
        shortcut: str = "projection",
        eps: float = 1e-5,
        inner_eps: float | None = None,
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
            stem_midplanes: M of a (2+1)D conv1; None is the paper's 45, at other
                ``stem_channels`` in proportion.
            stem_pool: a max-pool of 1x3x3, stride 1x2x2, follows conv1, as in mmaction2 and for
                VMZ's 224-pixel networks.
            shortcut: where a block changes its shape, ``"projection"`` (1x1x1, the paper's) or
                ``"(2+1)d"`` (mmaction2's).
            eps: of every BatchNorm; weights that come from Caffe2 need 1e-3.
            inner_eps: of the BatchNorms between the two convolutions of (2+1)D; None is ``eps``.
                mmaction2's differ: 1e-5 there and 1e-3 elsewhere.
            dropout: probability of dropping a feature before ``fc``.
            zero_init_residual: start the last BatchNorm of every block at zero, so that each
                block starts as its shortcut (arXiv:1706.02677, section 5.1).

        Raises:
            ValueError: an argument out of range, with what was expected.
        """
        super().__init__(
            {
                "name": architecture.name,
                "num_classes": positive("num_classes", num_classes),
                "midplanes": _choice("midplanes", midplanes, _MIDPLANES),
                "in_channels": positive("in_channels", in_channels),
                "clip_len": None if clip_len is None else positive("clip_len", clip_len),
                "blocks": _four("blocks", architecture.blocks if blocks is None else blocks),
                "widths": _four("widths", widths),
                "stem_channels": positive("stem_channels", stem_channels),
                "stem_midplanes": (
                    None if stem_midplanes is None else positive("stem_midplanes", stem_midplanes)
                ),
                "stem_pool": bool(stem_pool),
                "shortcut": _choice("shortcut", shortcut, tuple(_SHORTCUTS)),
                "eps": in_range("eps", eps, 0.0, 1.0),
                "inner_eps": None
                if inner_eps is None
                else in_range("inner_eps", inner_eps, 0.0, 1.0),
                "dropout": in_range("dropout", dropout, 0.0, 1.0),
                "zero_init_residual": bool(zero_init_residual),
            }
        )
        for name, value, kinds_of in (
            ("stem_midplanes", stem_midplanes, architecture.kinds[:1]),
            ("shortcut", None if shortcut == "projection" else shortcut, architecture.kinds[1:]),
            ("inner_eps", inner_eps, architecture.kinds),
        ):
            if value is not None and set(kinds_of) != {"(2+1)d"}:
                raise ValueError(
                    f"{name}={value!r} is for networks of (2+1)D convolutions, and "
                    f"{architecture.name} has {', '.join(architecture.kinds)}; leave it out"
                )
        kinds = [KINDS[kind] for kind in architecture.kinds]
        shape = StemShape(
            in_channels, stem_channels, stem_midplanes, clip_len, eps, self._inner_eps()
        )
        self.stem = kinds[0].stem(shape)
        self.stem_pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if stem_pool else None
        self.layer1, self.layer2, self.layer3, self.layer4 = self._groups(kinds[1:])
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.config["widths"][-1], num_classes)
        # On "meta" there is nothing to fill, and for a normal there torch imports its compiler.
        if not self.fc.weight.is_meta:
            self._initialise(zero_init_residual)

    def _run_stage(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        x = super()._run_stage(stage, x)
        return self.stem_pool(x) if stage == "stem" and self.stem_pool is not None else x

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))

    def _new_head(self, num_classes: int) -> nn.Linear:
        head = nn.Linear(self.config["widths"][-1], num_classes)
        _initialise_head(head)
        return head

    def _groups(self, kinds: Sequence[ConvolutionKind]) -> list[nn.Sequential]:
        groups = []
        in_planes = self.config["stem_channels"]
        table = zip(kinds, self.config["widths"], self.config["blocks"], _STRIDES, strict=True)
        for kind, planes, blocks, stride in table:
            layers = []
            for index in range(blocks):
                # None leaves M to each convolution; torchvision computes it from the block's
                # planes and uses it twice, which differs where a block changes the channels.
                once = self.config["midplanes"] == "torchvision"
                layers.append(
                    BasicBlock(
                        kind,
                        in_planes,
                        planes,
                        stride if index == 0 else 1,
                        paper_midplanes(in_planes, planes) if once else None,
                        self.config["shortcut"],
                        self.config["eps"],
                        self._inner_eps(),
                    )
                )
                in_planes = planes
            groups.append(nn.Sequential(*layers))
        return groups

    def _inner_eps(self) -> float:
        inner_eps = self.config["inner_eps"]
        return self.config["eps"] if inner_eps is None else inner_eps

    def _initialise(self, zero_init_residual: bool) -> None:
        # As torchvision's VideoResNet does: He et al. by fan-out for convolutions, identity for
        # BatchNorm (torch's default).  VMZ's MSRAFill is He et al. by fan-in.
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        _initialise_head(self.fc)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.conv2.get_parameter("1.weight"))


def _initialise_head(head: nn.Linear) -> None:
    """torchvision's: a small normal."""
    nn.init.normal_(head.weight, 0.0, 0.01)
    nn.init.zeros_(head.bias)


def _four(name: str, values: Sequence[int]) -> list[int]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or len(values) != 4:
        raise ValueError(f"{name} must be four positive integers, one a group, got {values!r}")
    return [positive(f"{name}[{index}]", value) for index, value in enumerate(values)]


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        expected = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return value
