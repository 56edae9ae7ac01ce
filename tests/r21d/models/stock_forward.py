"""The residual networks of the paper as plain PyTorch functions, a second opinion on the modules.

Written from the paper (Figure 1, Table 1, sections 3 and 4.1) and from torchvision's order of
operations, for a state dict in torchvision's layout: nothing is shared with the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: The kind of convolution of conv1 and conv2_x to conv5_x: MCx is 2-D from group x on, rMCx before
#: group x (paper, Figure 1).  "frames" is R2D's conv1, which sees a clip as one image.
KINDS = {
    "r2d": ("frames", "2d", "2d", "2d", "2d"),
    "fr2d": ("2d", "2d", "2d", "2d", "2d"),
    "r3d": ("3d", "3d", "3d", "3d", "3d"),
    "mc2": ("3d", "2d", "2d", "2d", "2d"),
    "mc3": ("3d", "3d", "2d", "2d", "2d"),
    "mc4": ("3d", "3d", "3d", "2d", "2d"),
    "mc5": ("3d", "3d", "3d", "3d", "2d"),
    "rmc2": ("2d", "3d", "3d", "3d", "3d"),
    "rmc3": ("2d", "2d", "3d", "3d", "3d"),
    "rmc4": ("2d", "2d", "2d", "3d", "3d"),
    "rmc5": ("2d", "2d", "2d", "2d", "3d"),
    "r2plus1d": ("2+1", "2+1", "2+1", "2+1", "2+1"),
}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
NAMES = [f"{family}_{depth}" for family in KINDS for depth in BLOCKS]

_MOMENTUM = 0.1


class StockNetwork:
    """A network's forward pass over its state dict, in the dtype of both.

    ``state`` maps torchvision's names to tensors, which take gradients where they require them;
    with ``training`` BatchNorm uses batch statistics and updates the running ones in ``state``.
    With ``channels_last`` every convolution sees its input in that memory format.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        *,
        training: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.family, depth = config["name"].split("_")
        self.blocks = config.get("blocks", BLOCKS[int(depth)])
        self.eps = config["eps"]
        # mmaction2's networks have another one between the two convolutions of a (2+1)D one.
        inner = config.get("inner_eps")
        self.inner_eps = self.eps if inner is None else inner
        self.pool = config.get("stem_pool", False)
        self.factored_shortcut = config.get("shortcut", "projection") == "(2+1)d"
        self.state = state
        self.training = training
        self.format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.last_conv: tuple[int, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of (N, C, T, H, W)."""
        stem, *groups = KINDS[self.family]
        x = self._stem(x, stem)
        if self.pool:
            x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for group, (kind, blocks) in enumerate(zip(groups, self.blocks, strict=True), start=1):
            for block in range(blocks):
                stride = 2 if group > 1 and block == 0 else 1
                x = self._block(x, f"layer{group}.{block}", kind, stride)
        self.last_conv = tuple(x.shape[2:])
        return F.linear(x.mean((2, 3, 4)), self.state["fc.weight"], self.state["fc.bias"])

    def _stem(self, x: Tensor, kind: str) -> Tensor:
        if kind == "frames":
            # Red of every frame, then green, then blue: an image of 3L channels.
            x = torch.cat([x[:, channel] for channel in range(x.shape[1])], dim=1)[:, :, None]
        frames = 3 if kind == "3d" else 1
        x = self._conv(x, "stem.0", (1, 2, 2), (frames // 2, 3, 3))
        factored = kind == "2+1"
        x = self._norm(x, "stem.1", inner=factored).relu()
        if factored:
            x = self._conv(x, "stem.3", (1, 1, 1), (1, 0, 0))
            x = self._norm(x, "stem.4").relu()
        return x

    def _block(self, x: Tensor, name: str, kind: str, stride: int) -> Tensor:
        out = self._convolution(x, f"{name}.conv1.0", kind, stride)
        out = self._norm(out, f"{name}.conv1.1").relu()
        out = self._convolution(out, f"{name}.conv2.0", kind, 1)
        out = self._norm(out, f"{name}.conv2.1")
        return (out + self._shortcut(x, f"{name}.downsample", kind, stride)).relu()

    def _convolution(self, x: Tensor, name: str, kind: str, stride: int) -> Tensor:
        if kind == "2+1":
            x = self._conv(x, f"{name}.0", (1, stride, stride), (0, 1, 1))
            x = self._norm(x, f"{name}.1", inner=True).relu()
            return self._conv(x, f"{name}.3", (stride, 1, 1), (1, 0, 0))
        if kind == "3d":
            return self._conv(x, name, (stride, stride, stride), (1, 1, 1))
        return self._conv(x, name, (1, stride, stride), (0, 1, 1))

    def _shortcut(self, x: Tensor, name: str, kind: str, stride: int) -> Tensor:
        if f"{name}.1.weight" not in self.state:
            return x
        frames = 1 if kind == "2d" else stride
        if self.factored_shortcut:
            x = self._conv(x, f"{name}.0.0", (1, stride, stride), (0, 0, 0))
            x = self._norm(x, f"{name}.0.1", inner=True).relu()
            x = self._conv(x, f"{name}.0.3", (frames, 1, 1), (0, 0, 0))
        else:
            x = self._conv(x, f"{name}.0", (frames, stride, stride), (0, 0, 0))
        return self._norm(x, f"{name}.1")

    def _conv(
        self, x: Tensor, name: str, stride: tuple[int, int, int], padding: tuple[int, int, int]
    ) -> Tensor:
        weight = self.state[f"{name}.weight"].contiguous(memory_format=self.format)
        x = x.contiguous(memory_format=self.format)
        return F.conv3d(x, weight, stride=stride, padding=padding)

    def _norm(self, x: Tensor, name: str, inner: bool = False) -> Tensor:
        if self.training:
            self.state[f"{name}.num_batches_tracked"].add_(1)
        return F.batch_norm(
            x.contiguous(memory_format=self.format),
            self.state[f"{name}.running_mean"],
            self.state[f"{name}.running_var"],
            self.state[f"{name}.weight"],
            self.state[f"{name}.bias"],
            self.training,
            _MOMENTUM,
            self.inner_eps if inner else self.eps,
        )


def cloned(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A copy of a state dict in ``dtype``; what training learns requires gradients."""
    copy = {}
    for name, tensor in state.items():
        learned = name.endswith((".weight", ".bias"))
        tensor = tensor.detach().clone()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype).requires_grad_(learned)
        copy[name] = tensor
    return copy
