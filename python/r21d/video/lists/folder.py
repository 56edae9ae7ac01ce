"""A folder of videos, one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from r21d.video.lists.files import VIDEO_SUFFIXES, videos_in
from r21d.video.lists.video_list import VideoItem, VideoList, shortened


def list_folder(root: str | os.PathLike[str], classes: Sequence[str] | None = None) -> VideoList:
    """The videos ``root/<class>/<video files>``, labelled by folder, both sorted by name.

    The classes are the folders' names, or ``classes`` where given (a checkpoint's), of which the
    folders may then be some. Videos are told by their suffix (`VIDEO_SUFFIXES`); hidden files and
    folders are left out, and folders within a class are not searched.

    Raises:
        ValueError: a folder without classes, a single class, a class without videos, or one that
            is not among ``classes``.
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
    names = _classes(root, folders, classes)
    items = []
    for folder in folders:
        files = videos_in(root / folder)
        if not files:
            raise ValueError(
                f"{root / folder}: no video files in it; put some there or remove the folder"
                f" (known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))})"
            )
        label = names.index(folder)
        items += [VideoItem(root / folder / file, (label,)) for file in files]
    return VideoList("folder", root, names, items, [])


def _classes(root: Path, names: list[str], given: Sequence[str] | None) -> list[str]:
    classes = names if given is None else list(given)
    if len(classes) < 2:
        raise ValueError(
            f"{root}: a single class ({', '.join(classes)}) leaves nothing to tell apart;"
            " expected at least two class folders"
        )
    if unknown := sorted(set(names) - set(classes)):
        raise ValueError(
            f"{root}: folders {', '.join(unknown)} are not among the {len(classes)} labels"
            f" ({shortened(classes)}); rename or remove them"
        )
    return classes
