"""UCF101: 101 classes, three splits into training and test."""

from __future__ import annotations

import os
from pathlib import Path

from r21d.video.lists.files import named_videos
from r21d.video.lists.text import bad_line, check_class, check_path, read_lines
from r21d.video.lists.video_list import VideoItem, VideoList

UCF101_SPLITS = ("1", "2", "3")


def list_ucf101(
    root: str | os.PathLike[str], annotations: str | os.PathLike[str], split: str, train: bool
) -> VideoList:
    """One side of one of the three splits.

    ``annotations`` is the folder of the official lists: ``classInd.txt`` (``1 ApplyEyeMakeup``),
    ``trainlist01.txt`` (``ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1``) and ``testlist01.txt``
    (the same, mostly without the number). Videos are ``root/<class>/<file>``; files coded anew
    with another suffix count, too. Classes are in ``classInd.txt``'s order.

    Raises:
        ValueError: the split is unknown, a list cannot be read, a line is malformed, repeats a
            path or contradicts ``classInd.txt``, or no video at all is there.
    """
    root, folder = Path(root), Path(annotations)
    if split not in UCF101_SPLITS:
        raise ValueError(f"split {split!r} is not one of UCF101's: {', '.join(UCF101_SPLITS)}")
    classes = _read_classes(folder / "classInd.txt")
    file = folder / f"{'train' if train else 'test'}list0{split}.txt"
    names = _read_list(file, {name: number for number, name in enumerate(classes)})
    paths = named_videos(root, list(names))
    items = [VideoItem(path, (label,)) for path, label in zip(paths, names.values(), strict=True)]
    return VideoList("ucf101", root, classes, items, [], split=split)


def _read_classes(file: Path) -> list[str]:
    classes: list[str] = []
    for line, text in read_lines(file):
        number, *names = text.split(None, 1)
        if number != str(len(classes) + 1) or not names:
            raise bad_line(
                file, line, f"{text!r}; expected number {len(classes) + 1}, a space and a name"
            )
        if check_class(file, line, names[0]) in classes:
            raise bad_line(file, line, f"class {names[0]} is named twice")
        classes.append(names[0])
    return classes


def _read_list(file: Path, numbers: dict[str, int]) -> dict[str, int]:
    """The label of each video, by its path as listed."""
    videos: dict[str, int] = {}
    for line, text in read_lines(file):
        parts = text.split()
        path = check_path(file, line, parts[0])
        name, slash, rest = path.partition("/")
        if len(parts) > 2 or not slash or "/" in rest:
            raise bad_line(file, line, f"{text!r}; expected <class>/<file> and the class's number")
        if name not in numbers:
            raise bad_line(file, line, f"class {name} is not in classInd.txt")
        if parts[1:] not in ([], [str(numbers[name] + 1)]):
            raise bad_line(
                file, line, f"{name} is {parts[1]} here and {numbers[name] + 1} in classInd.txt"
            )
        if path in videos:
            raise bad_line(file, line, f"{path} is listed twice")
        videos[path] = numbers[name]
    return videos
