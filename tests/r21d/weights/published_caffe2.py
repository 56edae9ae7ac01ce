"""VMZ's networks as its Caffe2 code builds them (facebookresearch/VMZ, c2/lib/models): an oracle.

Follows ``r3d_model.py`` (``create_r3d``, ``create_r2d``, ``create_r2df``, ``create_mcx`` and
``create_rmcx``) and ``builder/video_model.py`` (``add_conv``, ``add_simple_block``) in the names
of the blobs, their shapes, strides, pads and the order of the operations.  Its
``tools/minidb_to_pickle.py`` writes them as ``{"blobs": {name: array}}`` with Python 2's cPickle.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from weights.published_tensors import Network, Take, middle_channels

#: VMZ's name of each model and ours.
MODELS = {
    "r2d": "r2d",
    "r2df": "fr2d",
    "r3d": "r3d",
    "mc2": "mc2",
    "mc3": "mc3",
    "mc4": "mc4",
    "mc5": "mc5",
    "rmc2": "rmc2",
    "rmc3": "rmc3",
    "rmc4": "rmc4",
    "rmc5": "rmc5",
    "r2plus1d": "r2plus1d",
}
BLOCK_CONFIG = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}

Size = tuple[int, int, int]


def network(
    model_name: str,
    depth: int,
    num_labels: int = 400,
    filters: tuple[int, int, int, int] = (64, 128, 256, 512),
    conv1_middle: int = 45,
) -> Network:
    """``model_name`` of VMZ; other ``filters`` than its own make a narrow version of it."""

    def forward(take: Take, x: Tensor) -> Tensor:
        caffe2 = _Caffe2(take)
        x = _conv1(caffe2, x, model_name, filters[0], conv1_middle)
        comp = 0
        for group, blocks in enumerate(BLOCK_CONFIG[depth]):
            for block in range(blocks):
                out = filters[group]
                down_sampling = group > 0 and block == 0
                x = _simple_block(caffe2, x, comp, out, down_sampling, _kind(model_name, group))
                comp += 1
        x = x.mean((2, 3, 4))  # AveragePool over all that is left
        name = f"last_out_L{num_labels}"
        weight = take(f"{name}_w", (num_labels, filters[-1]))
        return F.linear(x, weight, take(f"{name}_b", (num_labels,), "shift"))

    return forward


class _Caffe2:
    """The two operators with parameters."""

    def __init__(self, take: Take) -> None:
        self.take = take

    def conv(
        self, x: Tensor, blob: str, out: int, kernel: Size, strides: Size, pads: Size
    ) -> Tensor:
        weight = self.take(f"{blob}_w", (out, x.shape[1], *kernel))
        return F.conv3d(x, weight, stride=strides, padding=pads)

    def spatial_bn(self, x: Tensor, blob: str) -> Tensor:
        channels = (x.shape[1],)
        scale = self.take(f"{blob}_s", channels, "scale")
        shift = self.take(f"{blob}_b", channels, "shift")
        mean = self.take(f"{blob}_rm", channels, "mean")
        variance = self.take(f"{blob}_riv", channels, "variance")
        return F.batch_norm(x, mean, variance, scale, shift, eps=1e-3)


def _conv1(caffe2: _Caffe2, x: Tensor, model_name: str, out: int, middle: int) -> Tensor:
    if model_name == "r2plus1d":
        x = caffe2.conv(x, "conv1_middle", middle, (1, 7, 7), (1, 2, 2), (0, 3, 3))
        x = caffe2.spatial_bn(x, "conv1_middle_spatbn_relu").relu()
        x = caffe2.conv(x, "conv1", out, (3, 1, 1), (1, 1, 1), (1, 0, 0))
    elif model_name == "r2d":
        # The kernel spans the clip, without padding: one image is left.
        x = caffe2.conv(x, "conv1", out, (x.shape[2], 7, 7), (1, 2, 2), (0, 3, 3))
    elif model_name == "r2df" or model_name.startswith("rmc"):
        x = caffe2.conv(x, "conv1", out, (1, 7, 7), (1, 2, 2), (0, 3, 3))
    else:
        x = caffe2.conv(x, "conv1", out, (3, 7, 7), (1, 2, 2), (1, 3, 3))
    return caffe2.spatial_bn(x, "conv1_spatbn_relu").relu()


def _kind(model_name: str, group: int) -> str:
    """Of conv_2x (group 0) to conv_5x (3): "2.5d", "3d" or "2d" (is_real_3d false)."""
    if model_name == "r2plus1d":
        return "2.5d"
    if model_name.startswith("rmc"):
        real_3d = int(model_name[3]) <= group + 2
    elif model_name.startswith("mc"):
        real_3d = int(model_name[2]) > group + 2
    else:
        real_3d = model_name == "r3d"
    return "3d" if real_3d else "2d"


def _simple_block(
    caffe2: _Caffe2, x: Tensor, comp: int, out: int, down_sampling: bool, kind: str
) -> Tensor:
    strides: Size = (1, 1, 1)
    if down_sampling:
        strides = (1, 2, 2) if kind == "2d" else (2, 2, 2)
    shortcut = x
    y = _add_conv(caffe2, x, f"comp_{comp}", 1, out, strides, kind)
    y = caffe2.spatial_bn(y, f"comp_{comp}_spatbn_1").relu()
    y = _add_conv(caffe2, y, f"comp_{comp}", 2, out, (1, 1, 1), kind)
    y = caffe2.spatial_bn(y, f"comp_{comp}_spatbn_2")
    if x.shape[1] != out or down_sampling:
        blob = f"shortcut_projection_{comp}"
        shortcut = caffe2.conv(x, blob, out, (1, 1, 1), strides, (0, 0, 0))
        shortcut = caffe2.spatial_bn(shortcut, f"{blob}_spatbn")
    return (shortcut + y).relu()


def _add_conv(
    caffe2: _Caffe2, x: Tensor, comp: str, index: int, out: int, strides: Size, kind: str
) -> Tensor:
    blob = f"{comp}_conv_{index}"
    if kind == "2d":
        return caffe2.conv(x, blob, out, (1, 3, 3), strides, (0, 1, 1))
    if kind == "3d":
        return caffe2.conv(x, blob, out, (3, 3, 3), strides, (1, 1, 1))
    middle = middle_channels(x.shape[1], out)
    x = caffe2.conv(x, f"{blob}_middle", middle, (1, 3, 3), (1, *strides[1:]), (0, 1, 1))
    x = caffe2.spatial_bn(x, f"{comp}_spatbn_{index}_middle").relu()
    return caffe2.conv(x, blob, out, (3, 1, 1), (strides[0], 1, 1), (1, 0, 0))
