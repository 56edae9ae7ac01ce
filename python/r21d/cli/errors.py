"""Errors as users see them: one line."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys

_log = logging.getLogger(__name__)

SOME_FAILED_EXIT = 1
"""Exit code of a command that served some of its files but not all."""
USAGE_EXIT = 2
"""Exit code of a command that could not do what was asked for."""


class UserError(Exception):
    """A request that cannot be served; the message says why and what to do."""


def user_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is meant for the user."""
    import torch

    from r21d.evaluation.distributed import RankFailed
    from r21d.training import TrainingDiverged
    from r21d.weights import CheckpointError, WeightsUnavailable
    from r21d_ops.backends import BackendError

    kinds: list[type[Exception]] = [
        UserError,
        ValueError,
        OSError,
        ImportError,
        MemoryError,
        torch.OutOfMemoryError,
        FloatingPointError,
        RankFailed,
        TrainingDiverged,
        CheckpointError,
        WeightsUnavailable,
        BackendError,
    ]
    if importlib.util.find_spec("av") is not None:
        from r21d.video import VideoError

        kinds.append(VideoError)
    return tuple(kinds)


def one_line(error: BaseException) -> str:
    """The message of ``error`` without line breaks; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(path: str | bytes | os.PathLike[str]) -> str:
    """A path as one line of characters that can be shown, whatever bytes the name is made of.

    Line breaks and other control characters become escapes (``\\n``), as do bytes that are not
    UTF-8 (``\\xff``).
    """
    return "".join(map(_shown, os.fsdecode(path)))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-ins for bytes 0x80 to 0xff
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def print_error(message: str) -> None:
    """One line on stderr, if anybody is there to read it."""
    with contextlib.suppress(OSError):
        print(f"r21d: error: {printable(message)}", file=sys.stderr, flush=True)


def say(message: str) -> None:
    """Print what is worth less than the work that it tells of, and ends that in no case.

    The reader of a pipe may be gone, the disk be full, or the terminal closed.
    """
    try:
        print(message, flush=True)
    except OSError as error:
        _log.warning("nothing more can be printed (%s); the work goes on", error.strerror)
        discard_output()


def discard_output() -> None:
    """Let all that is printed from now on go nowhere, so that Python does not complain at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
