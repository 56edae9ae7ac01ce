"""What the processes that torchrun started say: the first one speaks of what concerns all."""

from __future__ import annotations

import logging

_OF_OWN_FILES = ("r21d.evaluation.evaluate", "r21d.video.dataset", "r21d.video.reader")
"""Loggers that speak of files which the process reads, and no other."""


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
