"""Sports-1M: YouTube videos with one or several of 487 labels, of which everyone has a part."""

from __future__ import annotations

import os
import re
from pathlib import Path

from r21d.video.lists.files import videos_by_id
from r21d.video.lists.text import bad_line, check_class, read_lines
from r21d.video.lists.video_list import VideoItem, VideoList

_LINE = re.compile(
    r"https?://www\.youtube\.com/watch\?v=([\w-]+)\s+([0-9]{1,9}(?:,[0-9]{1,9})*)", re.ASCII
)


def list_sports1m(
    root: str | os.PathLike[str],
    partition: str | os.PathLike[str],
    labels: str | os.PathLike[str],
) -> VideoList:
    """The videos of one of the official lists, ``train_partition.txt``, say.

    Its lines are ``http://www.youtube.com/watch?v=<id> <label>[,<label>...]``, the labels being
    line numbers, from 0, of ``labels``, the file ``labels.txt``. A video that is listed more than
    once has all the labels of its lines. It is the file ``<id>.*`` in whatever folder below
    ``root``. Videos that are not there are ``missing``.

    Raises:
        ValueError: a file cannot be read, a line is malformed, a label is outside ``labels``, or
            no video at all is below ``root``.
    """
    root, file = Path(root), Path(partition)
    classes = _read_classes(Path(labels))
    videos: dict[str, tuple[int, ...]] = {}
    # A million lines, but few combinations of labels.
    labels_of: dict[str, tuple[int, ...]] = {}
    for line, text in read_lines(file):
        match = _LINE.fullmatch(text)
        if match is None:
            raise bad_line(
                file,
                line,
                f"{text!r}; expected http://www.youtube.com/watch?v=<id> and labels as in 24,25",
            )
        name, text = match.groups()
        if text not in labels_of:
            labels_of[text] = _labels(file, line, text, len(classes))
        own = labels_of[text]
        videos[name] = tuple(dict.fromkeys(videos[name] + own)) if name in videos else own
    found = videos_by_id(root)
    items = [VideoItem(root / found[name], own) for name, own in videos.items() if name in found]
    missing = [root / f"{name}.mp4" for name in videos if name not in found]
    if not items:
        raise ValueError(
            f"{root}: none of the {len(videos)} videos of {file} is there;"
            f" expected names such as {missing[0].name}, in any folder below"
        )
    return VideoList("sports1m", root, classes, items, missing, multilabel=True)


def _labels(file: Path, line: int, text: str, classes: int) -> tuple[int, ...]:
    labels = tuple(dict.fromkeys(map(int, text.split(","))))
    if max(labels) >= classes:
        raise bad_line(file, line, f"label {max(labels)} is outside 0..{classes - 1}")
    return labels


def _read_classes(file: Path) -> list[str]:
    classes: dict[str, int] = {}
    for line, name in read_lines(file):
        if (first := classes.setdefault(check_class(file, line, name), line)) != line:
            raise bad_line(file, line, f"class {name} is already on line {first}")
    return list(classes)
