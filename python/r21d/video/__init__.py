"""Video in: decoding, clip sampling, the network's input, data sets of videos."""

from __future__ import annotations

from r21d.video.clips import ClipSampling
from r21d.video.dataset import VideoDataset, VideoFolder
from r21d.video.index import IndexRow, VideoIndex, find_index
from r21d.video.lists import VideoItem, VideoList, list_splits, open_list
from r21d.video.reader import VideoError, VideoInfo, probe, read_clip, read_clips, read_video
from r21d.video.sampling import clip_starts, random_clip_start
from r21d.video.scanning import scan
from r21d.video.transforms import ClipTransform, InputSpec, Normalize
from r21d.video.writer import write_video

__all__ = [
    "ClipSampling",
    "ClipTransform",
    "IndexRow",
    "InputSpec",
    "Normalize",
    "VideoDataset",
    "VideoError",
    "VideoFolder",
    "VideoIndex",
    "VideoInfo",
    "VideoItem",
    "VideoList",
    "clip_starts",
    "find_index",
    "list_splits",
    "open_list",
    "probe",
    "random_clip_start",
    "read_clip",
    "read_clips",
    "read_video",
    "scan",
    "write_video",
]
