"""Scaling of frames."""

from __future__ import annotations

import torch
from torch.nn import functional


def resize_frames(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scale uint8 frames (..., H, W, 3) to uint8 (..., h, w, 3), ``size`` being (h, w).

    Bilinear with antialiasing, rounded to whole grey levels, each frame by itself: scaling frames
    one at a time while decoding gives the same values as scaling the finished clip.
    """
    height, width, channels = frames.shape[-3:]
    if (height, width) == tuple(size):
        return frames
    images = frames.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    scaled = functional.interpolate(
        images, size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return scaled.permute(0, 2, 3, 1).reshape(*frames.shape[:-3], *size, channels)
