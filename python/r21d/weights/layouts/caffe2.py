"""VMZ's Caffe2 blobs (facebookresearch/VMZ, c2/): all networks of the paper.

``conv1[_middle]_w``, ``comp_{i}_conv_{1,2}[_middle]_w``, ``shortcut_projection_{i}_w``, a
``spatbn`` for each with ``_s``, ``_b``, ``_rm`` and ``_riv`` (the running variance as it is, in
spite of the name), ``last_out_L{classes}_w`` and ``_b``.  Blocks are counted through the network;
a shortcut's projection opens a group.  R2D's ``conv1_w`` is (64, C, L, 7, 7) and spans the clip;
ours merges channel c and frame t into c * L + t, which is the same memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from r21d.weights.labels import labels
from r21d.weights.layouts.architecture import COUNTER, Naming, infer_config, take_all
from r21d.weights.layouts.imported import Imported, LayoutError
from r21d.weights.layouts.inputs import paper_input

NAME = "caffe2"

_PUBLISHER = "VMZ (Caffe2)"
_BN = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
_BLOB = re.compile(
    r"(conv1|comp_\d+_(conv|spatbn)_\d+|shortcut_projection_\d+)(_middle)?(_spatbn(_relu)?)?"
    r"_(w|s|b|rm|riv)|last_out_L\d+_[wb]"
)
_COMPONENT = re.compile(r"comp_(\d+)_conv_\d+(?:_middle)?_w")
_PROJECTION = re.compile(r"shortcut_projection_(\d+)_(?:w|spatbn_.*)")
_OUTPUT = re.compile(r"last_out_L(\d+)_[wb]")
# What training leaves beside the parameters.
_TRAINING = re.compile(r".*_(momentum|grad)|(optimizer_)?iteration.*|.*lr|LR")
_EPS = 1e-3
_FRAME_RATE = 30.0
_CLIP_LEN = 8


def matches(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether most names are VMZ's blobs, with or without the scope ``gpu_0/``."""
    names = [_unscoped(name) for name in tensors]
    named = [name for name in names if not _TRAINING.fullmatch(name)]
    found = sum(_BLOB.fullmatch(name) is not None for name in named)
    return any(_COMPONENT.fullmatch(name) for name in named) and 2 * found > len(named)


def convert(tensors: Mapping[str, torch.Tensor]) -> Imported:
    """The blobs by our names, each used once.

    Raises:
        LayoutError: blobs are missing, unknown or of another shape, or it is another network.
    """
    blobs: dict[str, torch.Tensor] = {}
    for scoped, blob in tensors.items():
        name = _unscoped(scoped)
        if name in blobs:
            raise LayoutError(f"the blob {name} is there twice, the second time as {scoped}")
        if not _TRAINING.fullmatch(name):
            blobs[name] = blob
    naming, classes = _naming(blobs)
    config = infer_config(blobs, naming, num_classes=classes, **_merged_frames(blobs))
    config["eps"] = _EPS
    if config.get("clip_len") is None:
        state, config = take_all(blobs, naming, config)
    else:
        split = partial(_split, config["in_channels"])
        state, config = take_all(blobs, naming, config, split, _merge)
    clip_len = config["clip_len"] or _CLIP_LEN
    assumed = ["eps 1e-3, as in VMZ's code"]
    input = paper_input(config["in_channels"], clip_len, _FRAME_RATE)
    if input:
        told = "" if config["clip_len"] else "; VMZ has weights of 8, 16 and 32 frames"
        assumed.append(f"clips of {clip_len} frames at 30 a second, 112 pixels{told}")
    names = labels("kinetics400") if classes == 400 else []
    if names:
        assumed.append("400 classes are those of Kinetics-400")
    return Imported(NAME, state, config, names, input, tuple(assumed))


def _merged_frames(blobs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the shape of an R2D's conv1 tells and our merged one does not."""
    stem = blobs.get("conv1_w")
    if stem is None or stem.dim() != 5 or "conv1_middle_w" in blobs:
        return {}
    channels, frames = stem.shape[1:3]
    if frames in (1, 3):  # as in the other networks
        return {"clip_len": None}
    return {"in_channels": channels, "clip_len": frames}


def _naming(blobs: Mapping[str, torch.Tensor]) -> tuple[Naming, int]:
    """The names of this network's blobs, which its depth and its classes are part of."""
    indices = {int(found[1]) for name in blobs if (found := _COMPONENT.fullmatch(name))}
    projections = sorted(
        {int(found[1]) for name in blobs if (found := _PROJECTION.fullmatch(name))}
    )
    outputs = sorted({found[1] for name in blobs if (found := _OUTPUT.fullmatch(name))})
    total = max(indices, default=-1) + 1
    if projections[:1] == [0]:
        projections = projections[1:]  # of a bottleneck network, which is refused by name
    if len(projections) != 3 or len(outputs) != 1:
        raise LayoutError(
            f"this looks like the layout of {_PUBLISHER} and is not quite: expected three "
            "shortcut_projection_{i}_w, which open conv3_x to conv5_x, and one last_out_L{n}_w; "
            f"found projections {projections} and outputs {outputs}"
        )
    starts = (0, *projections, total)
    factored = any(name.startswith("conv1_middle_") for name in blobs)
    return Naming(_PUBLISHER, partial(_name, starts, outputs[0], factored)), int(outputs[0])


def _name(starts: tuple[int, ...], classes: str, factored: bool, key: str) -> str | None:
    where, *path, leaf = key.split(".")
    if leaf == COUNTER:
        return None
    if where == "fc":
        return f"last_out_L{classes}_{leaf[0]}"
    if where == "stem":
        first = path[0] in ("0", "1")
        if not factored and not first:
            return None
        unit = "conv1_middle" if factored and first else "conv1"
        return f"{unit}_w" if path[0] in ("0", "3") else f"{unit}_spatbn_relu_{_BN[leaf]}"
    group, index = int(where.removeprefix("layer")), int(path[0])
    component = starts[group - 1] + index
    if component >= starts[group]:
        return None
    unit, layer, *inner = path[1:]
    if unit == "downsample" and inner:
        return None
    if unit == "downsample":
        name = f"shortcut_projection_{component}"
        return f"{name}_w" if layer == "0" else f"{name}_spatbn_{_BN[leaf]}"
    number = unit.removeprefix("conv")
    middle = "_middle" if inner and inner[0] in ("0", "1") else ""
    if layer == "1" or inner == ["1"]:
        return f"comp_{component}_spatbn_{number}{middle}_{_BN[leaf]}"
    return f"comp_{component}_conv_{number}{middle}_w"


def _split(channels: int, key: str, tensor: torch.Tensor) -> torch.Tensor:
    if key != "stem.0.weight":
        return tensor
    return tensor.unflatten(1, (channels, -1)).squeeze(3)


def _merge(key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(1, 2).unsqueeze(2) if key == "stem.0.weight" else tensor


def _unscoped(name: str) -> str:
    return name.rpartition("/")[2]
