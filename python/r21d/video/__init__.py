"""Video in: decoding, clip sampling, the network's input, folders of videos."""

from __future__ import annotations

from r21d.video.dataset import VideoFolder
from r21d.video.reader import VideoError, VideoInfo, probe, read_clip, read_clips, read_video
from r21d.video.sampling import clip_starts, random_clip_start
from r21d.video.transforms import ClipTransform, InputSpec
from r21d.video.writer import write_video

__all__ = [
    "ClipTransform",
    "InputSpec",
    "VideoError",
    "VideoFolder",
    "VideoInfo",
    "clip_starts",
    "probe",
    "random_clip_start",
    "read_clip",
    "read_clips",
    "read_video",
    "write_video",
]
