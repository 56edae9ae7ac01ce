"""HMDB51: 51 classes, three splits into training and test, a list for each class and split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from r21d.video.lists.files import named_videos
from r21d.video.lists.text import bad_line, read_lines
from r21d.video.lists.video_list import VideoItem, VideoList

HMDB51_SPLITS = ("1", "2", "3")

_LIST = re.compile(r"(.+)_test_split([0-9]+)\.txt")
_UNUSED, _TRAIN, _TEST = "0", "1", "2"


def list_hmdb51(
    root: str | os.PathLike[str], annotations: str | os.PathLike[str], split: str, train: bool
) -> VideoList:
    """One side of one of the three splits.

    ``annotations`` is the folder of the official lists, ``<class>_test_split<1|2|3>.txt``, whose
    lines name a file and its use: 1 training, 2 test, 0 neither. Videos are
    ``root/<class>/<file>``; files coded anew with another suffix count, too. Classes are sorted
    by name.

    Raises:
        ValueError: the split is unknown, a class lacks its list, a list cannot be read, a line is
            malformed or repeats a file, or no video at all is there.
    """
    root, folder = Path(root), Path(annotations)
    if split not in HMDB51_SPLITS:
        raise ValueError(f"split {split!r} is not one of HMDB51's: {', '.join(HMDB51_SPLITS)}")
    classes = _classes(folder)
    wanted = _TRAIN if train else _TEST
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _used(folder / f"{name}_test_split{split}.txt", wanted)
        names += (used := [f"{name}/{file}" for file in files])
        labels += [label] * len(used)
    if not names:
        raise ValueError(f"{folder}: no video has the use {wanted} in split {split}")
    paths = named_videos(root, names)
    items = [VideoItem(path, (label,)) for path, label in zip(paths, labels, strict=True)]
    return VideoList("hmdb51", root, classes, items, [], split=split)


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected HMDB51's split files in it")
    matches = (_LIST.fullmatch(file.name) for file in folder.iterdir())
    classes = sorted({match[1] for match in matches if match})
    if not classes:
        raise ValueError(f"{folder}: no <class>_test_split<1|2|3>.txt in it")
    return classes


def _used(file: Path, wanted: str) -> Iterator[str]:
    """The files of one class and split that have the use ``wanted``."""
    seen = set()
    for line, text in read_lines(file):
        *names, use = text.rsplit(None, 1)
        if not names or "/" in names[0] or use not in (_UNUSED, _TRAIN, _TEST):
            raise bad_line(file, line, f"{text!r}; expected a file's name and 0, 1 or 2")
        name = names[0]
        if name in seen:
            raise bad_line(file, line, f"{name} is listed twice")
        seen.add(name)
        if use == wanted:
            yield name
