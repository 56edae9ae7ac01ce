"""What the publishers feed their networks, as fields of :class:`r21d.video.InputSpec`."""

from __future__ import annotations

from typing import Any

from r21d.video.transforms import InputSpec

_FLOW = ((0.0046635, 0.0046261), (0.972347, 0.755146))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def paper_input(in_channels: int, clip_len: int, frame_rate: float | None) -> dict[str, Any]:
    """The clips of torchvision's, VMZ's and ig65m's networks: 112 pixels of 128x171.

    RGB has the mean and std that the three share; optical flow has those of VMZ's video reader
    (ops/av_input_op.h).  Other numbers of channels have no published input: empty.
    """
    if in_channels == 3:
        return InputSpec(clip_len, frame_rate).to_dict()
    if in_channels == 2:
        mean, std = _FLOW
        return InputSpec(clip_len, frame_rate, mean=mean, std=std).to_dict()
    return {}


def mmaction2_input(clip_len: int, frame_rate: float | None) -> dict[str, Any]:
    """mmaction2's validation clips: 224 pixels of a 256-pixel shorter side, ImageNet's mean."""
    mean, std = _IMAGENET
    return InputSpec(clip_len, frame_rate, 256, (224, 224), mean, std).to_dict()
