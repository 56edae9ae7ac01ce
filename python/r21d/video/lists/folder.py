"""A folder of videos, one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from r21d.video.lists.class_names import match_classes, nearest
from r21d.video.lists.files import VIDEO_SUFFIXES, videos_in
from r21d.video.lists.video_list import VideoItem, VideoList, shortened


def list_folder(root: str | os.PathLike[str], classes: Sequence[str] | None = None) -> VideoList:
    """The videos ``root/<class>/<video files>``, labelled by folder, both sorted by name.

    The classes are the folders' names, or ``classes`` where given (a checkpoint's), of which the
    folders may then be some; case, and ``_`` or ``-`` for space, may differ. Videos are told by
    their suffix (`VIDEO_SUFFIXES`); hidden files and folders are left out, and folders within a
    class are not searched. A class folder may hold no videos, which is for the dataset to judge.

    Raises:
        ValueError: a folder without classes or videos, a single class, or one that is not among
            ``classes``.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected {root}/<class>/<video files>")
    with os.scandir(root) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not folders:
        raise ValueError(
            f"{root}: no class folders in it; expected {root}/<class>/<video files>,"
            " the sub-folders' names being the classes"
        )
    names = folders if classes is None else list(classes)
    numbers = _number(root, folders, names)
    items = []
    for folder, number in numbers.items():
        items += [VideoItem(root / folder / file, (number,)) for file in videos_in(root / folder)]
    if not items:
        raise ValueError(
            f"{root}: no video files in its class folders, {folders[0]} and so on"
            f" (known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))})"
        )
    return VideoList("folder", root, names, items, [])


def _number(root: Path, folders: list[str], classes: list[str]) -> dict[str, int]:
    """The index into ``classes`` of each folder."""
    if len(classes) < 2:
        raise ValueError(
            f"{root}: a single class ({', '.join(classes)}) leaves nothing to tell apart;"
            " expected at least two class folders"
        )
    numbers = match_classes(folders, classes)
    if unknown := [folder for folder in folders if folder not in numbers]:
        raise ValueError(
            f"{root}: folders {', '.join(unknown)} are not among the {len(classes)} labels"
            f" ({shortened(classes)}); rename or remove them" + nearest(unknown, classes)
        )
    return numbers
