"""Which network of the paper a file's tensors belong to, whatever it calls them.

A layout says how it names what we name (:class:`Naming`); names and shapes then tell kinds, depth,
widths and all other arguments, and every tensor is accounted for.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from r21d.models.convolutions import stem_midplanes
from r21d.models.registry import ARCHITECTURES, BLOCKS, create_model
from r21d.models.resnet import Architecture
from r21d.weights.layouts.imported import LayoutError
from r21d.weights.state_dict import describe_mismatch
from r21d_ops.problem import paper_midplanes

Tensors = Mapping[str, torch.Tensor]
Convert = Callable[[str, torch.Tensor], torch.Tensor]

COUNTER = "num_batches_tracked"
_GROUPS = (1, 2, 3, 4)
_MOST_BLOCKS = 128
_KIND_OF_FRAMES = {1: "2d", 3: "3d"}


@dataclass(frozen=True)
class Naming:
    """How a publisher names our tensors.

    Attributes:
        publisher: for messages: ``"torchvision"``.
        name: our name -> the publisher's, None where its files have no such entry.
    """

    publisher: str
    name: Callable[[str], str | None]

    def find(self, tensors: Tensors, key: str) -> torch.Tensor | None:
        """The tensor that we call ``key``."""
        name = self.name(key)
        return None if name is None else tensors.get(name)

    def error(self, problem: str) -> LayoutError:
        """The error of tensors that are nearly of this layout."""
        return LayoutError(
            f"this looks like the layout of {self.publisher} and is not quite: {problem}"
        )


def _as_it_is(key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def infer_config(tensors: Tensors, naming: Naming, **known: Any) -> dict[str, Any]:
    """The arguments of the network that names and shapes belong to.

    ``eps``, ``dropout``, ``stem_pool`` and whatever else no shape shows is not among them, unless
    it is ``known``, which goes before what is inferred.

    Raises:
        LayoutError: a tensor that tells is missing or of a wrong rank, or the network is none of
            the paper's.
    """
    blocks = [_blocks(tensors, naming, group) for group in _GROUPS]
    refuse_bottleneck(tensors, naming, blocks)
    stem_kind, stem = _stem(tensors, naming)
    kinds = [_kind(tensors, naming, group, blocks) for group in _GROUPS]
    widths = [
        _channels(tensors, naming, *(f"{conv}.1" for conv in _convs(group, blocks)))
        for group in _GROUPS
    ]
    config: dict[str, Any] = {
        "num_classes": _most_common_size(tensors, naming, ["fc.bias", "fc.weight"]),
        "blocks": blocks,
        "widths": widths,
        **stem,
    }
    if "clip_len" not in known and {stem_kind, *kinds} == {"2d"}:
        config |= _merged_frames(naming, config["in_channels"])
    config |= known
    if config.get("clip_len") is not None:
        stem_kind = "2d-merged"
    config["name"] = _architecture(naming, (stem_kind, *kinds), blocks).name
    if "(2+1)d" in kinds:
        config["midplanes"] = _midplanes(tensors, naming, config)
        shortcuts = (f"layer{group}.0.downsample.0.0.weight" for group in _GROUPS)
        if any(naming.find(tensors, key) is not None for key in shortcuts):
            config["shortcut"] = "(2+1)d"
    return config


def take_all(
    tensors: Tensors,
    naming: Naming,
    config: Mapping[str, Any],
    store: Convert = _as_it_is,
    read: Convert = _as_it_is,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors by our names, each used and used once, and the network's complete config.

    Args:
        store: brings the tensor that we call ``key`` into the publisher's shape.
        read: brings the publisher's into ours.

    Raises:
        LayoutError: tensors are missing, unknown or of another shape; they are named as the file
            names them.
    """
    try:
        with torch.device("meta"):
            model = create_model(**config)
    except ValueError as error:
        raise naming.error(str(error)) from error
    ours = model.state_dict()
    # What a publisher does not keep, the counter of batches, has no name or none in the file.
    names = {key: naming.name(key) or "" for key in ours}
    expected = {
        names[key]: store(key, tensor)
        for key, tensor in ours.items()
        if names[key] in tensors or not key.endswith(COUNTER)
    }
    mismatch = describe_mismatch(
        tensors, expected, "the file", f"a {config['name']} of {naming.publisher}"
    )
    if mismatch:
        raise naming.error(mismatch)
    state = {}
    for key, tensor in ours.items():
        if names[key] in tensors:
            state[key] = read(key, tensors[names[key]])
        else:
            state[key] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        if key.endswith(COUNTER):
            state[key] = state[key].to(tensor.dtype)
    return state, model.config


def refuse_bottleneck(tensors: Tensors, naming: Naming, blocks: list[int]) -> None:
    """Name the networks that share a layout and are not the paper's.

    Raises:
        LayoutError: the blocks have three convolutions.
    """
    third = [f"layer{group}.0.conv3.0.weight" for group in _GROUPS]
    if all(naming.find(tensors, key) is None for key in third):
        return
    # Caffe2 counts a channel-wise convolution twice, so the second may be called the third.
    whole = [naming.find(tensors, f"layer1.0.conv{number}.0.weight") for number in (2, 3)]
    inner = naming.find(tensors, "layer1.0.conv2.0.0.weight")
    if inner is not None and inner.shape[2:] == (1, 1, 1):
        network = "an ip-CSN"
    elif any(conv is not None and conv.dim() == 5 and conv.shape[1] == 1 for conv in whole):
        network = "an ir-CSN"
    elif inner is not None:
        network = "an R(2+1)D"
    else:
        network = "a residual network"
    raise LayoutError(
        f"this is {network} of {3 * sum(blocks) + 2} layers in the layout of {naming.publisher}, "
        "with bottleneck blocks of three convolutions; this library has the paper's networks of "
        "basic blocks, with 18 and 34 layers: use weights of r2plus1d_34, for example"
    )


def _blocks(tensors: Tensors, naming: Naming, group: int) -> int:
    # By the last block, so that a missing one in between shows as missing.
    for index in reversed(range(_MOST_BLOCKS)):
        for conv in ("conv1", "conv2"):
            if naming.find(tensors, f"layer{group}.{index}.{conv}.1.weight") is not None:
                return index + 1
    first = naming.name(f"layer{group}.0.conv1.1.weight")
    raise naming.error(f"it has no block of conv{group + 1}_x, {first} for one")


def _convs(group: int, blocks: list[int]) -> Iterator[str]:
    for index, conv in itertools.product(range(blocks[group - 1]), ("conv1", "conv2")):
        yield f"layer{group}.{index}.{conv}"


def _kind(tensors: Tensors, naming: Naming, group: int, blocks: list[int]) -> str:
    for conv in _convs(group, blocks):
        # Not the temporal one: Caffe2 calls it what it calls a whole convolution elsewhere.
        if any(naming.find(tensors, f"{conv}.0.{layer}.weight") is not None for layer in (0, 1)):
            return "(2+1)d"
        weight = naming.find(tensors, f"{conv}.0.weight")
        if weight is not None and weight.dim() == 5:
            return _frames_kind(naming, f"{conv}.0.weight", weight)
    raise naming.error(
        f"conv{group + 1}_x has no convolution, {naming.name(f'layer{group}.0.conv1.0.weight')} or "
        f"{naming.name(f'layer{group}.0.conv1.0.0.weight')} for one"
    )


def _frames_kind(naming: Naming, key: str, weight: torch.Tensor) -> str:
    frames = weight.shape[2]
    if frames not in _KIND_OF_FRAMES:
        raise naming.error(
            f"{naming.name(key)} spans {frames} frames ({_shape(weight)}), expected 1 or 3"
        )
    return _KIND_OF_FRAMES[frames]


def _stem(tensors: Tensors, naming: Naming) -> tuple[str, dict[str, Any]]:
    weight = naming.find(tensors, "stem.0.weight")
    if weight is None:
        raise naming.error(f"{naming.name('stem.0.weight')} is missing from the file")
    if weight.dim() != 5:
        raise naming.error(
            f"{naming.name('stem.0.weight')} is {_shape(weight)}, expected 5 dimensions"
        )
    stem = {"in_channels": weight.shape[1]}
    if any(naming.find(tensors, f"stem.{layer}.weight") is not None for layer in (3, 4)):
        stem["stem_channels"] = _channels(tensors, naming, "stem.4")
        middle = _channels(tensors, naming, "stem.1")
        if middle != stem_midplanes(stem["stem_channels"]):
            stem["stem_midplanes"] = middle
        return "(2+1)d", stem
    stem["stem_channels"] = _channels(tensors, naming, "stem.1")
    # Caffe2's R2D spans the clip.
    return _KIND_OF_FRAMES.get(weight.shape[2], "2d"), stem


def _merged_frames(naming: Naming, channels: int) -> dict[str, Any]:
    """How many channels and frames a 2-D network's ``channels`` of input are."""
    if channels <= 3:
        return {"in_channels": channels}
    for per_frame in (3, 2):
        if channels % per_frame == 0:
            return {"in_channels": per_frame, "clip_len": channels // per_frame}
    raise naming.error(
        f"{naming.name('stem.0.weight')} has {channels} input channels, which are neither frames "
        "of RGB nor of optical flow"
    )


def _architecture(naming: Naming, kinds: tuple[str, ...], blocks: list[int]) -> Architecture:
    fitting = [known for known in ARCHITECTURES.values() if known.kinds == kinds]
    if not fitting:
        raise naming.error(
            f"its groups conv1 to conv5_x are {', '.join(kinds)}, which is no network of the paper"
        )
    exact = (known for known in fitting if list(known.blocks) == blocks)
    return next(exact, fitting[0])


def _midplanes(tensors: Tensors, naming: Naming, config: Mapping[str, Any]) -> str:
    before = config["stem_channels"]
    for group, planes in zip(_GROUPS, config["widths"], strict=True):
        middle = naming.find(tensors, f"layer{group}.0.conv2.0.1.weight")
        per_block, per_conv = paper_midplanes(before, planes), paper_midplanes(planes, planes)
        if middle is not None and per_block != per_conv:
            return "torchvision" if middle.numel() == per_block else "paper"
        before = planes
    return "paper"


def _channels(tensors: Tensors, naming: Naming, *norms: str) -> int:
    """The channels of BatchNorms, by vote, so that a damaged tensor shows as what differs."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    keys = [f"{norm}.{leaf}" for norm in norms for leaf in leaves]
    return _most_common_size(tensors, naming, keys)


def _most_common_size(tensors: Tensors, naming: Naming, keys: list[str]) -> int:
    found = (naming.find(tensors, key) for key in keys)
    sizes = Counter(
        tensor.shape[0]
        for tensor in found
        if tensor is not None and tensor.numel() > 0 and tensor.dim() > 0
    )
    if not sizes:
        raise naming.error(f"{naming.name(keys[0])} is missing from the file, or empty")
    return sizes.most_common(1)[0][0]


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def is_published_size(config: Mapping[str, Any]) -> bool:
    """Whether depth and widths are those of published weights."""
    return (
        tuple(config["blocks"]) in BLOCKS.values()
        and tuple(config["widths"]) == (64, 128, 256, 512)
        and config["stem_channels"] == 64
    )
