"""What a dataset knows of its files before it reads them: by an index, or by opening each."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from r21d.video.examine import examine
from r21d.video.index import IndexRow, VideoIndex, find_index, relative_name
from r21d.video.lists import VIDEO_SUFFIXES, VideoList
from r21d.video.lists.class_names import plain_name
from r21d.video.lists.video_list import shortened

logger = logging.getLogger(__name__)

Index: TypeAlias = VideoIndex | str | os.PathLike[str] | Literal[False] | None
"""Where a dataset looks files up: an index, its file, the root's own if it has one (None), none."""


def load_index(index: Index, videos: VideoList) -> VideoIndex | None:
    """The index in which to look up ``videos``, whatever name its folder had when it was made.

    Raises ValueError for an index that was named and knows none of the videos.
    """
    named = index is not None
    if index is None:
        index = find_index(videos.root)
    if index is None or index is False:
        return None
    loaded = index if isinstance(index, VideoIndex) else VideoIndex.load(index)
    if not _within(videos.root, loaded.root) and not _within(loaded.root, videos.root):
        loaded = loaded.rooted(videos.root)
    if named and videos.items and not any(item.path in loaded for item in videos.items):
        raise ValueError(
            f"the index of {loaded.root} knows none of the {len(videos.items)} videos of"
            f" {videos.root}, {videos.items[0].path} and so on; name the index that r21d index"
            " made of that folder"
        )
    return loaded


def look_up(index: VideoIndex | None, path: Path) -> tuple[IndexRow, bool]:
    """What is known of a file, and whether it was opened to find out."""
    known = None if index is None else index.row(path)
    row = known or examine(path, path.name)
    return row, known is None and row.size >= 0


def gone_from(videos: VideoList, index: VideoIndex) -> list[Path]:
    """Files in the list's class folders that the index knows and that are no longer there."""

    def folder(path: Path) -> str:
        return os.path.dirname(relative_name(path, videos.root) or "")

    known = set(map(plain_name, videos.classes))
    return [path for path in index.gone() if plain_name(folder(path)) in known]


def check_class_folders(videos: VideoList, gone: Sequence[Path], train: bool) -> None:
    """Warn about class folders without a video, of which none is ``gone`` either.

    Raises ValueError where there is to be something to ``train`` on.
    """
    used = {label for item in videos.items for label in item.labels}
    unused = {name for number, name in enumerate(videos.classes) if number not in used}
    unused -= {path.parent.name for path in gone}
    empty = [os.fspath(videos.root / n) for n in sorted(unused) if (videos.root / n).is_dir()]
    if not empty:
        return
    known = f"(known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))})"
    if train:
        raise ValueError(
            f"{empty[0]}: no video files in it; put some there or remove the folder {known}"
        )
    logger.warning(
        "%d class folders hold no video files: %s %s", len(empty), shortened(empty), known
    )


def _within(folder: Path, other: Path) -> bool:
    return relative_name(folder, other) is not None
