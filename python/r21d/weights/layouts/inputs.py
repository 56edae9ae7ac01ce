"""What the publishers feed their networks, as fields of :class:`r21d.video.InputSpec`.

None but I3D's authors average over the pixels that a smaller one stands for: ``antialias=False``.
"""

from __future__ import annotations

from typing import Any

from r21d.video.transforms import InputSpec

_FLOW = ((0.0046635, 0.0046261), (0.972347, 0.755146))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def paper_input(in_channels: int, clip_len: int, frame_rate: float | None) -> dict[str, Any]:
    """The clips of torchvision's, VMZ's and ig65m's networks: 112 pixels of 128x171.

    RGB has the mean and std that the three share; optical flow has those of VMZ's video reader
    (ops/av_input_op.h).  Other numbers of channels have no published input: empty.

    torchvision's preset says ``antialias=False`` (transforms/_presets.py, VideoClassification);
    VMZ's reader scales by SWS_FAST_BILINEAR (ops/av_decoder.cc), which looks at two pixels of a
    row, and its PyTorch part, like ig65m-pytorch's transforms.py, by ``interpolate`` without it.
    All take consecutive frames of videos at ``frame_rate``, and none says what becomes of videos
    that are too short; there the last frame repeats.
    """
    if in_channels == 3:
        return InputSpec(clip_len, frame_rate, antialias=False).to_dict()
    if in_channels == 2:
        mean, std = _FLOW
        return InputSpec(clip_len, frame_rate, mean=mean, std=std, antialias=False).to_dict()
    return {}


def mmaction2_input(clip_len: int, frame_stride: int) -> dict[str, Any]:
    """mmaction2's validation clips: 224 pixels of a 256-pixel shorter side, ImageNet's mean.

    Every ``frame_stride``-th of the file's own frames, whatever their rate, and from its first
    frame on again where they do not suffice (SampleFrames: frame_interval, out_of_bound_opt);
    scaled by OpenCV's INTER_LINEAR (Resize), which does not antialias.
    """
    mean, std = _IMAGENET
    spec = InputSpec(clip_len, None, 256, (224, 224), mean, std, frame_stride, "loop", False)
    return spec.to_dict()
