"""torchvision's layout, which is ours too: torchvision, ig65m-pytorch, VMZ's PyTorch models.

``stem``, ``layer1`` to ``layer4``, ``fc``.  No key tells eps, the input or the labels; they are
taken from whoever published weights of the same network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from r21d.models.base import VideoModel
from r21d.models.registry import BLOCKS
from r21d.weights.labels import labels
from r21d.weights.layouts.architecture import Naming, infer_config, is_published_size, take_all
from r21d.weights.layouts.imported import Imported
from r21d.weights.layouts.inputs import paper_input
from r21d.weights.layouts.mmaction2 import UNSEEN, UNSEEN_OPTIONS

NAME = "torchvision"

_NAMING = Naming("torchvision", lambda key: key)
_KEY = re.compile(
    r"(stem\.\d+|layer[1-4]\.\d+\.(conv[123]|downsample)\.\d+(\.\d+)?|fc)"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
_CAFFE2_EPS = 1e-3
_TORCH_EPS = 1e-5
# ig65m's weights of 8 and of 32 frames tell different numbers of hashtags apart.
_IG65M_CLIP_LEN = {487: 8, 359: 32}


def matches(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether most names are torchvision's."""
    found = sum(_KEY.fullmatch(name) is not None for name in tensors)
    inside = any(name.startswith(("layer1.", "layer2.", "stem.")) for name in tensors)
    return inside and 2 * found > len(tensors)


def convert(tensors: Mapping[str, torch.Tensor]) -> Imported:
    """The tensors as they are, with the network that they belong to.

    Raises:
        LayoutError: names or shapes differ from the layout, or it is another network.
    """
    config = infer_config(tensors, _NAMING)
    assumed: list[str] = []
    deep = config["blocks"] == list(BLOCKS[34])
    if config.get("shortcut") == "(2+1)d":
        config |= UNSEEN_OPTIONS
        assumed += UNSEEN
    elif config.get("midplanes") == "paper" and deep:
        config["eps"] = _CAFFE2_EPS
        assumed.append("eps 1e-3, as in ig65m's and VMZ's weights of this network")
    else:
        config["eps"] = _TORCH_EPS
        assumed.append("eps 1e-5, PyTorch's default, as in torchvision's weights")
    if config.get("clip_len"):
        assumed.append(
            f"conv1 merges {config['clip_len']} frames of {config['in_channels']} channels"
        )
    state, config = take_all(tensors, _NAMING, config)
    classes: list[str] = []
    input: dict[str, Any] = {}
    if is_published_size(config):
        if config["num_classes"] == 400:
            classes = labels("kinetics400")
            assumed.append("400 classes are those of Kinetics-400")
        clip_len = config["clip_len"]
        rate = 15.0
        if deep:
            clip_len = clip_len or _IG65M_CLIP_LEN.get(config["num_classes"], 8)
            rate = 30.0
        input = paper_input(config["in_channels"], clip_len or 16, rate)
        if input:
            publisher = "ig65m's and VMZ's" if deep else "torchvision's"
            assumed.append(
                f"clips of {input['clip_len']} frames at {rate:g} a second, 112 pixels, as in "
                f"{publisher} weights"
            )
    return Imported(NAME, state, config, classes, input, tuple(assumed))


def export_torchvision(model: VideoModel) -> dict[str, torch.Tensor]:
    """The state dict of ``model`` in torchvision's layout, copied, on the CPU.

    torchvision's own classes load it for its three networks, ig65m-pytorch's for r2plus1d_34;
    the others need a ``VideoResNet`` that is put together of torchvision's parts.  eps is not in
    it: weights with eps=1e-3 need that set in every BatchNorm.

    Raises:
        ValueError: the network has a part for which torchvision has no layout.
    """
    config = model.config
    if config["name"] == "i3d" or "blocks" not in config:
        raise ValueError(
            f"{config['name']} has no layout in torchvision, which has the residual networks "
            "alone; keep it as safetensors"
        )
    reasons = []
    if str(config["name"]).startswith("r2d_"):
        reasons.append("its conv1 merges the frames of a clip into one image")
    if config["stem_pool"]:
        reasons.append("a max-pool follows its conv1")
    if config["shortcut"] != "projection":
        reasons.append(f"its shortcuts are {config['shortcut']} convolutions")
    if reasons:
        raise ValueError(
            f"this {config['name']} has no layout in torchvision: {', and '.join(reasons)}; keep "
            "it as safetensors"
        )
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
