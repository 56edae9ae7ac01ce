"""Files that a command writes: refused before the work where they would replace another's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from r21d.cli.errors import UserError, printable


@dataclass(frozen=True)
class Kind:
    """What is written: how it is called, how its name ends, and how to tell that a file is one."""

    name: str
    suffix: str
    is_one: Callable[[Path], bool]


def check_output(option: str, path: str | Path, kind: Kind, inputs: Iterable[str | Path]) -> None:
    """Refuse a ``path`` that cannot be written, or not without harm.

    Raises:
        UserError: it lies in no writable folder, or as `check_replaced`.
    """
    folder = Path(path).parent
    if not Path(path).is_dir() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"{option} {printable(path)} needs a writable folder {printable(folder)}")
    check_replaced(option, path, kind, inputs)


def check_folder(option: str, path: str | Path) -> None:
    """Refuse a folder that cannot be made, or not be written into.

    Raises:
        UserError: its name is taken, or too long, or permission is lacking.
    """
    named = f"{option} {printable(path)}"
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{named} cannot be a folder: {error.strerror}") from error
    place = Path(os.path.abspath(path))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{named} needs a folder, and {printable(place)} is none")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{named} needs a writable folder, and {printable(place)} is none")


def check_replaced(option: str, path: str | Path, kind: Kind, inputs: Iterable[str | Path]) -> None:
    """Refuse to replace anything but an older output of the same kind.

    Raises:
        UserError: ``path`` is a folder, has not the kind's suffix, is one of the ``inputs`` (which
            may be no files at all, such as names of weights), or holds something else.
    """
    path = Path(path)
    named = f"{option} {printable(path)}"
    if path.is_dir():
        raise UserError(f"{named} is a folder; name a file")
    if not path.name.lower().endswith(kind.suffix):
        raise UserError(f"{named} must end in {kind.suffix}, as {kind.name} does")
    for file in inputs:
        if os.path.realpath(file) == os.path.realpath(path) or _same(file, path):
            raise UserError(f"{named} would replace {printable(file)}, which the command reads")
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return
    if not path.is_file() or not kind.is_one(path):
        raise UserError(f"{named} exists and is not {kind.name}; choose another name or remove it")


def _same(file: str | Path, path: Path) -> bool:
    try:
        return os.path.samefile(file, path)
    except OSError:
        return False


def _is_png(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def _is_result(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and ("clip_top1" in content or "splits" in content)


def _is_scores(path: Path) -> bool:
    from r21d.evaluation.scores import is_scores

    return is_scores(path)


PICTURE = Kind("a PNG picture", ".png", _is_png)
RESULT = Kind("a result of r21d eval in JSON", "", _is_result)
SCORES = Kind("a file of scores", ".safetensors", _is_scores)
