"""Scaling of frames."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch.nn import functional

FrameSize: TypeAlias = int | tuple[int, int]
"""(height, width), or the length of the shorter side, which keeps the aspect ratio."""


def scaled_size(height: int, width: int, size: FrameSize) -> tuple[int, int]:
    """(h, w) of frames (height, width) scaled to ``size``.

    Where ``size`` is the shorter side, the longer one is rounded down to whole pixels, as
    torchvision's ``Resize`` does (OpenCV users tend to round to nearest).
    """
    if not isinstance(size, int):
        return size
    if height <= width:
        return size, size * width // height
    return size * height // width, size


def resize_frames(frames: torch.Tensor, size: FrameSize, *, antialias: bool = True) -> torch.Tensor:
    """Scale uint8 frames (..., H, W, 3) to uint8 (..., h, w, 3).

    ``size`` is (h, w), or the shorter side alone, see `scaled_size`. Bilinear, with antialiasing
    unless told otherwise, rounded to whole grey levels, each frame by itself: scaling frames one at
    a time while decoding gives the same values as scaling the finished clip.
    """
    height, width, channels = frames.shape[-3:]
    target = scaled_size(height, width, size)
    if (height, width) == tuple(target):
        return frames
    images = frames.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    scaled = functional.interpolate(
        images, size=target, mode="bilinear", align_corners=False, antialias=antialias
    )
    return scaled.permute(0, 2, 3, 1).reshape(*frames.shape[:-3], *target, channels)
