"""Lists of labelled videos: folders, CSV files and published data sets. No video is opened."""

from __future__ import annotations

from r21d.video.lists.csv_list import list_csv
from r21d.video.lists.datasets import DATASETS, has_sides, list_splits, open_list
from r21d.video.lists.files import VIDEO_SUFFIXES, find_videos, is_video
from r21d.video.lists.folder import list_folder
from r21d.video.lists.hmdb51 import list_hmdb51
from r21d.video.lists.kinetics import list_kinetics
from r21d.video.lists.sports1m import list_sports1m
from r21d.video.lists.ucf101 import list_ucf101
from r21d.video.lists.video_list import VideoItem, VideoList
from r21d.video.lists.weizmann import list_weizmann

__all__ = [
    "DATASETS",
    "VIDEO_SUFFIXES",
    "VideoItem",
    "VideoList",
    "find_videos",
    "has_sides",
    "is_video",
    "list_csv",
    "list_folder",
    "list_hmdb51",
    "list_kinetics",
    "list_splits",
    "list_sports1m",
    "list_ucf101",
    "list_weizmann",
    "open_list",
]
