"""Weights of one network made to start another: other classes, other channels, other frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from r21d.models.base import VideoModel
from r21d.models.convolutions import MergedFramesConv3d

if TYPE_CHECKING:
    from r21d.weights.checkpoint import Checkpoint


def adapted(checkpoint: Checkpoint, model: VideoModel, certain: bool) -> dict[str, torch.Tensor]:
    """The tensors of ``checkpoint``, with those that ``model`` needs otherwise.

    Where the classes differ, the model's own fresh head; where the input channels differ (RGB
    weights for optical flow), the first convolution's mean over them, for each of the model's;
    where the frames of an R2D differ, its first convolution resampled over them, so that a clip
    of equal frames gives what it gave before.  The channels' mean is customary for two-stream
    networks (arXiv:1608.00859, section 3.3) and like the resampling no part of the paper.
    Everything else stays as it is, whether it fits or not.

    Args:
        certain: False where the config was inferred from shapes, which do not tell channels from
            the frames that an R2D merges with them: a first convolution that fits is then kept.
    """
    result, config = dict(checkpoint.state_dict), checkpoint.config
    expected = model.state_dict()
    other_names = model.classes and checkpoint.classes and model.classes != checkpoint.classes
    if config["num_classes"] != model.config["num_classes"] or other_names:
        head = f"{model._head}."
        fresh = {name: t for name, t in expected.items() if name.startswith(head)}
        result = {name: t for name, t in result.items() if not name.startswith(head)} | fresh
    name, conv = _first_convolution(model)
    weight = result.get(name)
    if weight is None or (weight.shape == expected[name].shape and not certain):
        return result
    merges = isinstance(conv, MergedFramesConv3d)
    frames = (config.get("clip_len") or 0) if merges else 1
    channels = config["in_channels"]
    if weight.dim() != 5 or not frames or weight.shape[1] != channels * frames:
        return result
    taps = weight.unflatten(1, (channels, frames))
    if channels != model.config["in_channels"]:
        mean = taps.mean(1, keepdim=True)
        taps = mean.expand(-1, model.config["in_channels"], *mean.shape[2:])
    if merges and frames != model.config["clip_len"]:
        taps = torch.einsum("ij,ocj...->oci...", _overlap(frames, model.config["clip_len"]), taps)
    result[name] = taps.flatten(1, 2).to(weight.dtype)
    return result


def _first_convolution(model: VideoModel) -> tuple[str, nn.Module]:
    """The convolution that the clip meets first; every network here registers it first."""
    return next(
        (f"{name}.weight", module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv3d)
    )


def _overlap(given: int, wanted: int) -> torch.Tensor:
    """(wanted, given): how much of each given frame's span each wanted frame covers."""
    starts = torch.arange(wanted).unsqueeze(1) / wanted
    other = torch.arange(given).unsqueeze(0) / given
    last = torch.minimum(starts + 1 / wanted, other + 1 / given)
    return (last - torch.maximum(starts, other)).clamp(min=0) * given
