"""Kinetics-400, -600 and -700: clips of YouTube videos, of which everyone has only a part."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from r21d.video.lists.class_names import match_classes, nearest
from r21d.video.lists.files import videos_by_id
from r21d.video.lists.text import bad_line, check_class, read_text
from r21d.video.lists.video_list import VideoItem, VideoList, shortened

logger = logging.getLogger(__name__)

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


class _Clip(NamedTuple):
    line: int
    name: str
    label: str
    split: str


def list_kinetics(
    root: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
) -> VideoList:
    """The clips of one of the official CSV files of Kinetics-400, -600 or -700.

    Its columns are ``label,youtube_id,time_start,time_end,split`` and, in some releases,
    ``is_cc``. The clip of a row is the file ``<youtube_id>_<start>_<end>.*`` (whole seconds, six
    digits) in whatever folder below ``root``, as the usual downloaders write it. Clips that are
    not there are ``missing``. Classes are ``classes`` where given, else the file's own, sorted.

    Raises:
        ValueError: the file is no such CSV, has no labels (the test lists as first published), or
            rows of several splits; a row is malformed or names an unknown class; a clip is listed
            under two classes; or no clip at all is below ``root``.
    """
    file, root = Path(annotations), Path(root)
    clips = _read(file)
    names = sorted({clip.label for clip in clips}) if classes is None else list(classes)
    numbers = match_classes({clip.label for clip in clips}, names)
    found = videos_by_id(root)
    items, missing = [], []
    for clip in clips:
        if clip.label not in numbers:
            raise bad_line(
                file,
                clip.line,
                f"class {clip.label} is not among the {len(names)} labels ({shortened(names)})"
                + nearest([clip.label], names),
            )
        if path := found.get(clip.name):
            items.append(VideoItem(root / path, (numbers[clip.label],)))
        else:
            missing.append(root / f"{clip.name}.mp4")
    if not items:
        raise ValueError(
            f"{root}: none of the {len(clips)} clips of {file} is there;"
            f" expected names such as {clips[0].name}.mp4, in any folder below"
        )
    return VideoList("kinetics", root, names, items, missing)


def _read(file: Path) -> list[_Clip]:
    """The clips in the file's order, each once."""
    clips: dict[str, _Clip] = {}
    repeated = 0
    split = None
    for clip in _rows(file):
        split = split or clip.split
        if clip.split != split:
            message = f"split {clip.split} after {split}; give each split a file of its own"
            raise bad_line(file, clip.line, message)
        first = clips.setdefault(clip.name, clip)
        if first.label != clip.label:
            raise bad_line(
                file,
                clip.line,
                f"{clip.name} is {clip.label} here and {first.label} on line {first.line}",
            )
        repeated += first is not clip
    if repeated:
        logger.warning("%s: %d clips are listed twice; each counts once", file, repeated)
    if not clips:
        raise ValueError(f"{file}: the list is empty")
    return list(clips.values())


def _rows(file: Path) -> Iterator[_Clip]:
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        label, *times = _positions(file, header)
        split = header.index("split") if "split" in header else None
        for row in filter(any, reader):
            line = reader.line_num
            if len(row) != len(header):
                raise bad_line(file, line, f"{len(row)} columns; expected {len(header)}")
            yield _Clip(
                line,
                _clip_name(file, line, *(row[column] for column in times)),
                check_class(file, line, row[label].strip()),
                "" if split is None else row[split],
            )
    except csv.Error as error:
        raise bad_line(file, reader.line_num, f"malformed: {error}") from error


def _positions(file: Path, header: list[str]) -> list[int]:
    lacking = [name for name in _COLUMNS if name not in header]
    if lacking == ["label"]:
        raise ValueError(
            f"{file}: no column 'label': a test list without its answers, which can neither be"
            " trained on nor evaluated"
        )
    if lacking:
        raise ValueError(
            f"{file}, line 1: no column {', '.join(lacking)}; expected Kinetics' CSV:"
            f" {','.join(_COLUMNS)},split"
        )
    return [header.index(name) for name in _COLUMNS]


def _clip_name(file: Path, line: int, youtube_id: str, start: str, end: str) -> str:
    try:
        # Some releases write the seconds as 10.0.
        seconds = int(float(start)), int(float(end))
    except (ValueError, OverflowError):
        seconds = -1, -1
    if min(seconds) < 0:
        raise bad_line(file, line, f"time_start {start!r} and time_end {end!r} are no seconds")
    if not youtube_id or "/" in youtube_id:
        raise bad_line(file, line, f"youtube_id {youtube_id!r} names no video")
    return f"{youtube_id}_{seconds[0]:06d}_{seconds[1]:06d}"
