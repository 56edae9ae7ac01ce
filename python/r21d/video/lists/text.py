"""Reading the text files in which data sets list their videos."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path


def read_text(file: Path) -> str:
    """The content of a list: UTF-8, a byte order mark dropped.

    Bytes that are not UTF-8 stay as surrogates, as in `os.fsdecode`: a file may be named so.

    Raises:
        ValueError: the file is missing, no file, cannot be read, or is UTF-16 or binary.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from error
    if b"\0" in content:
        raise ValueError(f"{file}: it holds zero bytes, so it is no text in UTF-8; save it as such")
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1, without space at either end.

    Raises:
        ValueError: as `read_text`; or there is no such line.
    """
    empty = True
    # Not splitlines: it also parts at characters that a file's name may hold.
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if stripped := line.strip():
            empty = False
            yield number, stripped
    if empty:
        raise ValueError(f"{file}: the list is empty")


def bad_line(file: Path, number: int, message: str) -> ValueError:
    """The error for line ``number`` of a list."""
    return ValueError(f"{file}, line {number}: {message}")


def check_path(file: Path, number: int, path: str, absolute: bool = False) -> str:
    """``path`` as line ``number`` names it, without ``.`` and double slashes.

    Raises:
        ValueError: it is empty, leads out of the folder of the videos by ``..``, or is
            ``absolute`` where that is not allowed.
    """
    if not path:
        raise bad_line(file, number, "no path")
    if ".." in path and ".." in path.split("/"):
        raise bad_line(file, number, f"{path} leads out of a folder by '..'; name it without")
    if os.path.isabs(path) and not absolute:
        raise bad_line(file, number, f"{path} is absolute; expected it relative to the videos")
    return posixpath.normpath(path) if "./" in path or "//" in path else path


def check_class(file: Path, number: int, name: str) -> str:
    """``name``, a class as line ``number`` names it.

    Raises:
        ValueError: it is empty or not UTF-8, which checkpoints could not hold.
    """
    if not name:
        raise bad_line(file, number, "no class")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise bad_line(
                file, number, f"class {name!a} is not UTF-8; save the file as UTF-8"
            ) from error
    return name
