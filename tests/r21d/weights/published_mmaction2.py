"""mmaction2's 34-layer R(2+1)D as its code runs it: an oracle.

Follows open-mmlab/mmaction2 (``models/backbones/resnet3d.py`` and ``resnet2plus1d.py``,
``models/common/conv2plus1d.py``, ``models/heads/i3d_head.py``,
``configs/_base_/models/r2plus1d_r34.py``) and mmcv's ``ConvModule``: ``conv``, ``bn``, then ReLU
where there is one.  What differs from the paper: the stem's M is the formula's 83, a max-pool
follows the stem, shortcuts are (2+1)D as well, and eps is 1e-3 in ``bn`` alone: ``ConvModule``
does not hand its ``norm_cfg`` to the ``Conv2plus1d`` it builds, so ``bn_s`` keeps 1e-5.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from weights.published_tensors import Network, Take, middle_channels

STAGE_BLOCKS = (3, 4, 6, 3)
OUTER_EPS = 1e-3
INNER_EPS = 1e-5

Size = tuple[int, int, int]


def network(num_classes: int = 400, base_channels: int = 64) -> Network:
    """``r2plus1d_r34``; other ``base_channels`` than its own make a narrow version of it."""

    def forward(take: Take, x: Tensor) -> Tensor:
        module = _ConvModule(take)
        x = module(x, "backbone.conv1", base_channels, (3, 7, 7), (1, 2, 2)).relu()
        x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for stage, blocks in enumerate(STAGE_BLOCKS):
            planes = base_channels * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _block(module, x, f"backbone.layer{stage + 1}.{block}", planes, stride)
        x = F.adaptive_avg_pool3d(x, 1).flatten(1)
        weight = take("cls_head.fc_cls.weight", (num_classes, x.shape[1]))
        return F.linear(x, weight, take("cls_head.fc_cls.bias", (num_classes,), "shift"))

    return forward


def _block(module: _ConvModule, x: Tensor, name: str, planes: int, stride: int) -> Tensor:
    strides = (stride, stride, stride)
    y = module(x, f"{name}.conv1", planes, (3, 3, 3), strides).relu()
    y = module(y, f"{name}.conv2", planes, (3, 3, 3), (1, 1, 1))
    if stride != 1 or x.shape[1] != planes:
        x = module(x, f"{name}.downsample", planes, (1, 1, 1), strides)
    return (y + x).relu()


class _ConvModule:
    """mmcv's, without its activation: a ``Conv2plus1d`` and a norm."""

    def __init__(self, take: Take) -> None:
        self.take = take

    def __call__(self, x: Tensor, name: str, planes: int, kernel: Size, stride: Size) -> Tensor:
        t, h, w = kernel
        padding = tuple((size - 1) // 2 for size in kernel)
        middle = middle_channels(x.shape[1], planes, h * w)
        weight = self.take(f"{name}.conv.conv_s.weight", (middle, x.shape[1], 1, h, w))
        x = F.conv3d(x, weight, stride=(1, *stride[1:]), padding=(0, *padding[1:]))
        x = self.norm(x, f"{name}.conv.bn_s", INNER_EPS).relu()
        weight = self.take(f"{name}.conv.conv_t.weight", (planes, middle, t, 1, 1))
        x = F.conv3d(x, weight, stride=(stride[0], 1, 1), padding=(padding[0], 0, 0))
        return self.norm(x, f"{name}.bn", OUTER_EPS)

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        channels = (x.shape[1],)
        weight = self.take(f"{name}.weight", channels, "scale")
        bias = self.take(f"{name}.bias", channels, "shift")
        mean = self.take(f"{name}.running_mean", channels, "mean")
        variance = self.take(f"{name}.running_var", channels, "variance")
        self.take(f"{name}.num_batches_tracked", (), "counter")
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)
