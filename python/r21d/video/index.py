"""The index of a folder of videos: what each file holds and what is wrong with it.

A text file of JSON lines: a header, then a row a video, `IndexRow`'s fields. `scan` writes it,
`VideoIndex.load` reads it, and datasets ask it instead of opening every file themselves.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r21d.atomic import write_atomically
from r21d.video.reader import VideoInfo

__all__ = ["INDEX_NAME", "IndexRow", "VideoIndex", "find_index", "write_index"]

logger = logging.getLogger(__name__)

INDEX_NAME = ".r21d-index.jsonl"
"""Name of a folder's index, in the folder itself."""

_FORMAT = "r21d video index"
_VERSION = 1


@dataclass(frozen=True)
class IndexRow:
    """What is known of one file; its state when it was looked at is ``size`` and ``mtime_ns``.

    A file that the system would not let be read has -1 for both, so that such a row never counts
    as current. ``full`` rows come of decoding the whole file; of the others only the header and
    the first frame were seen: ``frames``, ``last`` and ``variable_rate`` are None, and ``damage``
    tells at most that the file is cut short.
    """

    path: str
    """Relative to the index's root, with forward slashes."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, as ``os.stat`` gives it."""
    info: VideoInfo | None
    """None where nothing can be decoded; ``error`` then says why, without the path."""
    error: str | None = None
    damage: tuple[str, ...] = ()
    """What is wrong with a video of which some frames can be decoded."""
    frames: int | None = None
    """Frames that were decoded."""
    last: float | None = None
    """Seconds from the first frame to the last one."""
    variable_rate: bool | None = None
    """Whether the steps between the frames differ; None where they were not looked at."""
    full: bool = False

    @property
    def problem(self) -> str | None:
        """Why the file should be left out, in one line; None for a sound one."""
        if self.error is not None or not self.damage:
            return self.error
        more = f" (and {len(self.damage) - 1} more)" if len(self.damage) > 1 else ""
        return f"damaged: {self.damage[0]}{more}"

    def to_json(self) -> str:
        """One line; bytes of the name that are not UTF-8 are lone surrogates, escaped."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.info is not None:
            values["info"] = _info_values(self.info)
        return json.dumps(values)

    @classmethod
    def from_json(cls, line: str, root: Path) -> IndexRow:
        """The row of a line, its ``info.path`` below ``root``. Raises ValueError for any other."""
        try:
            values = json.loads(line)
            info = values["info"]
            if info is not None:
                values["info"] = VideoInfo(path=root / values["path"], **info)
            values["damage"] = tuple(values["damage"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a row of an index ({error})") from error


class VideoIndex:
    """The rows of one index, by path relative to ``root``."""

    def __init__(self, root: str | os.PathLike[str], rows: Iterable[IndexRow] = ()) -> None:
        self.root = Path(root)
        self._rows = {row.path: row for row in rows}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[IndexRow]:
        """Every row, sorted by path."""
        return [self._rows[path] for path in sorted(self._rows)]

    @classmethod
    def load(
        cls, file: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
    ) -> VideoIndex:
        """Read an index. ``root`` is the folder of the videos; by default the one it was made of.

        Of several rows for a path the last one counts, and a line that cannot be read, such as
        the last one of a scan that was killed, counts as a video that is not in the index.

        Raises ValueError for a file that is not an index, OSError for one that cannot be read.
        """
        file = Path(file)
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        own = _root_of(file, lines[0])
        home = own if root is None else Path(root)
        index = cls(home)
        unread = 0
        for line in lines[1:]:
            if line:
                try:
                    index.add(IndexRow.from_json(line, home))
                except ValueError:
                    unread += 1
        # A torn last line is how an interrupted scan ends, and no news.
        if unread > bool(lines[-1]):
            logger.warning("%s: %d lines cannot be read; r21d index mends them", file, unread)
        return index

    def add(self, row: IndexRow) -> None:
        """Put ``row`` in the place of any other for its path."""
        self._rows[row.path] = row

    def row(self, path: str | os.PathLike[str]) -> IndexRow | None:
        """The row of a file, given as an absolute path or relative to the working directory.

        None where there is no row, or where the file has changed, or gone, since it was made.
        """
        relative = relative_name(path, self.root)
        row = None if relative is None else self._rows.get(relative)
        return row if row is not None and is_current(row, Path(path)) else None

    def __contains__(self, path: object) -> bool:
        """Whether there is a row for a file, current or not."""
        if not isinstance(path, str | os.PathLike):
            return False
        return relative_name(path, self.root) in self._rows

    def rooted(self, root: str | os.PathLike[str]) -> VideoIndex:
        """The rows for another name of this index's folder, a folder below it or one above it.

        Links are resolved to find that out; the index itself where ``root`` is none of these.
        """
        root = Path(root)
        own, other = Path(os.path.realpath(self.root)), Path(os.path.realpath(root))
        below = relative_name(other, own)
        above = relative_name(own, other)
        index = VideoIndex(root)
        for row in self._rows.values():
            if below is not None:
                prefix = "" if below == "." else f"{below}/"
                if not row.path.startswith(prefix):
                    continue
                path = row.path[len(prefix) :]
            elif above is not None:
                path = f"{above}/{row.path}"
            else:
                return self
            info = row.info and dataclasses.replace(row.info, path=root / path)
            index.add(dataclasses.replace(row, path=path, info=info))
        return index

    def gone(self) -> list[Path]:
        """The files that were there when the index was made and no longer are."""
        paths = (self.root / row.path for row in self.rows)
        return [path for path in paths if not os.path.lexists(path)]


def write_index(file: Path, index: VideoIndex) -> None:
    """Write every row, sorted; the file appears whole or not at all. Raises OSError."""
    home = os.path.abspath(index.root)
    own = os.path.abspath(file.parent) == home
    header = json.dumps({"format": _FORMAT, "version": _VERSION, "root": "." if own else home})
    lines = [header, *(row.to_json() for row in index.rows)]
    write_atomically(file, "".join(f"{line}\n" for line in lines).encode("ascii"))


def find_index(root: str | os.PathLike[str]) -> Path | None:
    """The index that lies in ``root`` itself, or None."""
    file = Path(root) / INDEX_NAME
    return file if file.is_file() else None


def relative_name(path: str | os.PathLike[str], root: Path) -> str | None:
    """``path`` relative to ``root`` with forward slashes, None where it lies elsewhere.

    Links are not resolved: a file is where its name says.
    """
    absolute, home = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return absolute.relative_to(home).as_posix() if absolute.is_relative_to(home) else None


def is_current(row: IndexRow, path: Path) -> bool:
    """Whether the file still has the size and the time of its row."""
    try:
        state = path.stat()
    except OSError:
        return False
    return (row.size, row.mtime_ns) == (state.st_size, state.st_mtime_ns)


def _info_values(info: VideoInfo) -> dict[str, Any]:
    values = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
    del values["path"]  # the row's own
    return values


def _root_of(file: Path, header: str) -> Path:
    """The folder that an index was made of; ValueError where ``header`` is not an index's."""
    try:
        values = json.loads(header)
        form, version, root = values["format"], values["version"], file.parent / values["root"]
    except (ValueError, TypeError, KeyError):
        form = None
    if form != _FORMAT:
        raise ValueError(f"{file}: not an index of videos; r21d index DIR makes one")
    if version != _VERSION:
        raise ValueError(
            f"{file}: an index of version {version}, and this program reads {_VERSION};"
            " remove it and run r21d index again"
        )
    return root
