"""The 34-layer R(2+1)D of ig65m-pytorch and of VMZ's PyTorch code: an oracle.

Follows moabitcoin/ig65m-pytorch (``ig65m/models.py``) and facebookresearch/VMZ
(``pt/vmz/models/r2plus1d.py`` and ``utils.py``), which both build torchvision's ``VideoResNet`` and
set eps to 1e-3.  ig65m replaces three convolutions so that M follows the paper, VMZ computes M in
each; the result is the same network under the same keys.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from weights.published_tensors import Network, Take, middle_channels

LAYERS = (3, 4, 6, 3)

Size = tuple[int, int, int]


def network(
    num_classes: int = 400,
    planes: tuple[int, int, int, int] = (64, 128, 256, 512),
    stem_middle: int = 45,
) -> Network:
    """``r2plus1d_34``; other ``planes`` than its own make a narrow version of it."""

    def forward(take: Take, x: Tensor) -> Tensor:
        x = _conv(take, x, "stem.0", stem_middle, (1, 7, 7), (1, 2, 2), (0, 3, 3))
        x = _norm(take, x, "stem.1").relu()
        x = _conv(take, x, "stem.3", planes[0], (3, 1, 1), (1, 1, 1), (1, 0, 0))
        x = _norm(take, x, "stem.4").relu()
        for layer, blocks in enumerate(LAYERS, start=1):
            for block in range(blocks):
                stride = 2 if layer > 1 and block == 0 else 1
                x = _basic_block(take, x, f"layer{layer}.{block}", planes[layer - 1], stride)
        x = F.adaptive_avg_pool3d(x, 1).flatten(1)
        weight = take("fc.weight", (num_classes, planes[-1]))
        return F.linear(x, weight, take("fc.bias", (num_classes,), "shift"))

    return forward


def _basic_block(take: Take, x: Tensor, name: str, planes: int, stride: int) -> Tensor:
    y = _conv2plus1d(take, x, f"{name}.conv1.0", planes, stride)
    y = _norm(take, y, f"{name}.conv1.1").relu()
    y = _conv2plus1d(take, y, f"{name}.conv2.0", planes, 1)
    y = _norm(take, y, f"{name}.conv2.1")
    if stride != 1 or x.shape[1] != planes:
        strides = (stride, stride, stride)
        x = _conv(take, x, f"{name}.downsample.0", planes, (1, 1, 1), strides, (0, 0, 0))
        x = _norm(take, x, f"{name}.downsample.1")
    return (x + y).relu()


def _conv2plus1d(take: Take, x: Tensor, name: str, planes: int, stride: int) -> Tensor:
    middle = middle_channels(x.shape[1], planes)
    x = _conv(take, x, f"{name}.0", middle, (1, 3, 3), (1, stride, stride), (0, 1, 1))
    x = _norm(take, x, f"{name}.1").relu()
    return _conv(take, x, f"{name}.3", planes, (3, 1, 1), (stride, 1, 1), (1, 0, 0))


def _conv(
    take: Take, x: Tensor, name: str, planes: int, kernel: Size, stride: Size, padding: Size
) -> Tensor:
    weight = take(f"{name}.weight", (planes, x.shape[1], *kernel))
    return F.conv3d(x, weight, stride=stride, padding=padding)


def _norm(take: Take, x: Tensor, name: str) -> Tensor:
    channels = (x.shape[1],)
    weight = take(f"{name}.weight", channels, "scale")
    bias = take(f"{name}.bias", channels, "shift")
    mean = take(f"{name}.running_mean", channels, "mean")
    variance = take(f"{name}.running_var", channels, "variance")
    take(f"{name}.num_batches_tracked", (), "counter")
    return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)
