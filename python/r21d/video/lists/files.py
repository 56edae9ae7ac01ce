"""Which files are videos, and where below a folder they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv"}
)


def has_video_suffix(name: str) -> bool:
    """Whether ``name`` ends as a video's does."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is named like a video, not hidden and no folder."""
    return _named_like_video(os.path.basename(path)) and not os.path.isdir(path)


def videos_in(folder: Path) -> list[str]:
    """The names of the videos in ``folder`` itself, sorted; links count as what they lead to."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if _named_like_video(e.name) and not e.is_dir())


def find_videos(root: str | os.PathLike[str]) -> Iterator[str]:
    """The videos below ``root``, at any depth, as posix paths relative to it.

    The order is that of the names, folder by folder. Hidden files and folders are left out; links
    to folders are followed, each folder once. Costs one pass over the folders; no file is looked
    at.

    Raises:
        ValueError: ``root`` is no folder.
        OSError: it, or a folder below it, cannot be read.
    """
    if not os.path.isdir(root):
        raise ValueError(f"{root}: no such folder; expected the folder of the videos")
    return _below(os.fspath(root), "", set())


def _below(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    # A link may lead back to a folder above it.
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in shown:
        if entry.is_dir():
            yield from _below(entry.path, f"{prefix}{entry.name}/", seen)
        elif _named_like_video(entry.name):
            yield prefix + entry.name


def videos_by_id(root: Path) -> dict[str, str]:
    """The videos below ``root`` by what their names say before the first dot.

    Downloads come as ``ID.mp4``, but also as ``ID.mp4.webm``, in whatever folders. Of several with
    one name the first in `find_videos`'s order counts.
    """
    found: dict[str, str] = {}
    for path in find_videos(root):
        found.setdefault(path[path.rfind("/") + 1 :].partition(".")[0], path)
    return found


def named_videos(root: Path, names: Sequence[str]) -> list[Path]:
    """The files that a list names ``<class>/<file>``, below ``root``.

    A file counts, too, if it lies deeper or was coded anew with another suffix. Of several the one
    of the very path is taken, else of those of the very name, if any, the one that lies least
    deep. A name that has none of these stays as it is, a path that does not exist.

    Raises:
        ValueError: there is not one file of all the names, or a name has equally good ones in
            several folders.
    """
    found: dict[str, list[str]] = {_class_and_stem(name): [] for name in names}
    for path in find_videos(root):
        if (paths_of := found.get(_class_and_stem(path))) is not None:
            paths_of.append(path)
    paths = [_best(root, name, found[_class_and_stem(name)]) for name in names]
    if not any(paths):
        raise ValueError(
            f"{root}: none of the {len(names)} listed videos is there;"
            f" expected {root}/{names[0]} and so on"
        )
    return [root / (path or name) for path, name in zip(paths, names, strict=True)]


def _best(root: Path, name: str, paths: list[str]) -> str | None:
    """The file that a list means by ``name``, of those of its class and stem."""
    if name in paths:
        return name
    paths = [path for path in paths if path.endswith(f"/{name}")] or paths
    least = min((path.count("/") for path in paths), default=0)
    paths = [path for path in paths if path.count("/") == least]
    other = [path for path in paths if os.path.dirname(path) != os.path.dirname(paths[0])]
    if other:
        raise ValueError(
            f"{root}: {name} may be {paths[0]} or {other[0]}; name a folder that holds one of them"
        )
    return paths[0] if paths else None


def _class_and_stem(path: str) -> str:
    return os.path.splitext("/".join(path.rsplit("/", 2)[-2:]))[0]


def _named_like_video(name: str) -> bool:
    return has_video_suffix(name) and not name.startswith(".")
