"""mmaction2's ResNet2Plus1d, and what no key of it tells.

Its stem has M = 83 by the formula of the paper's section 3.5, a max-pool follows it, the shortcuts
are (2+1)D with kernel 1, eps is 1e-3 (configs/_base_/models/r2plus1d_r34.py).  That eps reaches the
BatchNorms after the (2+1)D convolutions alone: mmcv's ConvModule hands its norm_cfg on to no
convolution, so those inside have PyTorch's 1e-5.  SyncBN and BN have the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from r21d.weights.labels import labels
from r21d.weights.layouts.architecture import Naming, infer_config, take_all
from r21d.weights.layouts.imported import Imported, LayoutError
from r21d.weights.layouts.inputs import mmaction2_input

NAME = "mmaction2"

UNSEEN_OPTIONS = {"eps": 1e-3, "inner_eps": 1e-5, "stem_pool": True, "dropout": 0.5}
"""What mmaction2's code says and no key."""
UNSEEN = (
    "eps 1e-3, 1e-5 inside the (2+1)D convolutions, as in mmaction2's code",
    "a max-pool after conv1 and dropout 0.5, as in mmaction2's code",
)

_PARTS = {"0": "conv.conv_s", "1": "conv.bn_s", "3": "conv.conv_t", "4": "bn"}
_KEY = re.compile(r"backbone\.(conv1|layer[1-4]\.\d+\.(conv[123]|downsample))\..*|cls_head\..*")
_OWN = re.compile(r".*\.conv_[st]\..*|cls_head\..*")
_CLIP_LEN = 8
_FRAME_STRIDE = 8


def matches(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether most names are those of an mmaction2 recogniser with a residual backbone.

    Others call a part of their networks ``backbone``, too; the head and the parts of a (2+1)D
    convolution are mmaction2's alone.
    """
    found = sum(_KEY.fullmatch(name) is not None for name in tensors)
    inside = any(name.startswith("backbone.") for name in tensors)
    own = any(_OWN.fullmatch(name) is not None for name in tensors)
    return inside and own and 2 * found > len(tensors)


def convert(tensors: Mapping[str, torch.Tensor]) -> Imported:
    """The tensors by our names, with mmaction2's input.

    Raises:
        LayoutError: names or shapes differ from the layout, or it is another network.
    """
    # Buffers of the preprocessing, which some versions save.
    tensors = {k: v for k, v in tensors.items() if not k.startswith("data_preprocessor.")}
    if not any(".conv_s." in name or ".conv_t." in name for name in tensors):
        raise LayoutError(
            "this is a network of mmaction2 other than R(2+1)D: none of its convolutions has a "
            "conv_s and a conv_t; this library reads mmaction2's ResNet2Plus1d"
        )
    config = infer_config(tensors, _NAMING)
    config |= {"shortcut": "(2+1)d", **UNSEEN_OPTIONS}
    state, config = take_all(tensors, _NAMING, config)
    assumed = [
        *UNSEEN,
        f"clips of {_CLIP_LEN} frames, every {_FRAME_STRIDE}th of the file's own, 224 pixels; its "
        "32-frame weights take every 2nd",
    ]
    classes = labels("kinetics400") if config["num_classes"] == 400 else []
    if classes:
        assumed.append("400 classes are those of Kinetics-400")
    input = mmaction2_input(_CLIP_LEN, _FRAME_STRIDE) if config["in_channels"] == 3 else {}
    return Imported(NAME, state, config, classes, input, tuple(assumed))


def _name(key: str) -> str | None:
    where, *path, leaf = key.split(".")
    if where == "fc":
        return f"cls_head.fc_cls.{leaf}"
    if where == "stem":
        return f"backbone.conv1.{_PARTS.get(path[0], path[0])}.{leaf}"
    block, unit, layer, *inner = path
    whole = "bn" if layer == "1" else "conv"
    part = _PARTS.get(inner[0], inner[0]) if inner else whole
    return f"backbone.{where}.{block}.{unit}.{part}.{leaf}"


_NAMING = Naming("mmaction2", _name)
