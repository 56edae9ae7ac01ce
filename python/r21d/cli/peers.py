"""What the processes that torchrun started say: the first one speaks of what concerns all."""

from __future__ import annotations

import logging
import os
import time

from r21d.cli.errors import USAGE_EXIT, one_line, print_error

_OF_OWN_FILES = ("r21d.evaluation.evaluate", "r21d.video.dataset", "r21d.video.reader")
"""Loggers that speak of files which the process reads, and no other."""
_MOMENT = 1.0
"""Seconds that the first process has to say what has failed."""


def speak_of_own_files_alone() -> None:
    """Silence this process, one that is not the first, but for videos that it cannot read.

    Errors are told in any case.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):  # Not of names between those of loggers.
            handler.addFilter(_is_own)


def _is_own(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING or record.name in _OF_OWN_FILES


def fail_after_the_first(error: Exception) -> int:
    """The exit code of another process than the first, which tells what they agreed on.

    torchrun ends all processes of a machine when one has failed, so it comes a moment later. On
    other machines it has to fail, too: else it would not take part when torchrun starts all again.
    """
    from r21d.evaluation.distributed import was_told

    if not was_told(error):
        print_error(f"process {os.environ['RANK']}: {one_line(error)}")
    time.sleep(_MOMENT)
    return USAGE_EXIT


def is_first() -> bool:
    """Whether this is the first process of those that torchrun started, or the only one."""
    import torch.distributed as dist

    several = dist.is_available() and dist.is_torchelastic_launched()
    return not several or os.environ["RANK"] == "0"
