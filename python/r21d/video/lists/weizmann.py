"""The Weizmann actions: ten actions by nine people, tested by leaving one person out."""

from __future__ import annotations

import os
from pathlib import Path

from r21d.video.lists.files import find_videos
from r21d.video.lists.video_list import VideoItem, VideoList

_ACTIONS = ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")


def list_weizmann(root: str | os.PathLike[str], split: str, train: bool) -> VideoList:
    """The videos of the person ``split``, or in training those of all others.

    Files are ``<person>_<action>.*`` below ``root``, in folders of the actions or not. Where a
    person does an action twice, the authors number the files: ``lena_walk1.avi``,
    ``lena_walk2.avi``.

    Raises:
        ValueError: there are no videos, one is named otherwise, or nobody is called ``split``.
    """
    root = Path(root)
    videos = _read(root)
    if split not in (people := _people(videos)):
        raise ValueError(f"split {split!r} is none of the people in {root}: {', '.join(people)}")
    classes = sorted({action for _, _, action in videos})
    items = [
        VideoItem(root / path, (classes.index(action),))
        for path, person, action in videos
        if (person != split) == train
    ]
    return VideoList("weizmann", root, classes, items, [], split=split)


def weizmann_people(root: str | os.PathLike[str]) -> list[str]:
    """The people in the videos below ``root``, sorted: each is a split.

    Raises:
        ValueError: there are no videos, or one is not named ``<person>_<action>``.
    """
    return _people(_read(Path(root)))


def _read(root: Path) -> list[tuple[str, str, str]]:
    """Path, person and action of each video."""
    videos = []
    for path in find_videos(root):
        person, _, action = path[path.rfind("/") + 1 :].rpartition(".")[0].partition("_")
        # wave1 and wave2 are actions, walk1 and walk2 are one action done twice.
        if action not in _ACTIONS and action[-1:] in ("1", "2"):
            action = action[:-1]
        if not person or action not in _ACTIONS:
            raise ValueError(
                f"{root / path}: expected a name such as daria_bend.avi: a person and one of"
                f" {', '.join(_ACTIONS)}"
            )
        videos.append((path, person, action))
    if not videos:
        raise ValueError(f"{root}: no video files in it; expected daria_bend.avi and so on")
    return videos


def _people(videos: list[tuple[str, str, str]]) -> list[str]:
    return sorted({person for _, person, _ in videos})
