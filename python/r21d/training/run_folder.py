"""The folder of a run: the names of its files, and who may write there."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

CONFIG_FILE = "config.toml"
"""The settings, as the command line resolved them."""
ENVIRONMENT_FILE = "environment.json"
"""Versions and machine, an entry for each start."""
HISTORY_FILE = "history.jsonl"
"""A row an epoch."""
VIDEOS_FILE = "videos.json"
"""Names and labels of the videos that the run has begun with."""
METRICS_FILE = "metrics.csv"
"""The same as a table."""
STEPS_FILE = "steps.csv"
"""A row every few steps."""
TENSORBOARD_FOLDER = "tensorboard"
CURVES_FILE = "curves.png"
CONFUSION_FILE = "confusion.png"
REPORT_FILE = "report.html"
LAST_FILE = "last.safetensors"
"""The checkpoint after the last epoch."""
BEST_FILE = "best.safetensors"
"""The checkpoint after the epoch that validated best."""
BEST_RESULT_FILE = "best.json"
"""How that epoch validated."""
STATES_FOLDER = "states"
"""What resuming reads."""
LOCK_FILE = ".lock"
LAUNCH_FILE = ".launch"
"""Who has started the run's processes, by which a restart knows the run for its own."""
OLD_STATE_FILE = "state.safetensors"
"""The state of runs before ``states``."""

_STATE = re.compile(r"step_(\d{9})\.safetensors")
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class ResumeError(ValueError):
    """A run cannot go on from the state found; the message says why and what to do."""


def state_file(folder: Path, step: int) -> Path:
    """Where the state after ``step`` steps lies."""
    return folder / STATES_FOLDER / f"step_{step:09}.safetensors"


def state_files(folder: str | Path) -> dict[int, Path]:
    """The states of a run by their step, newest first; whether they can be read is not looked at.

    None where the folder is not there.
    """
    states = Path(folder) / STATES_FOLDER
    found = {}
    if states.is_dir():
        for file in states.iterdir():
            if name := _STATE.fullmatch(file.name):
                found[int(name[1])] = file
    return dict(sorted(found.items(), reverse=True))


def held_run(folder: str | Path) -> list[Path]:
    """The files by which ``folder`` holds a run, those that training itself writes.

    Settings and environment do not count: alone they are no loss.
    """
    names = (HISTORY_FILE, LAST_FILE, BEST_FILE, BEST_RESULT_FILE, OLD_STATE_FILE)
    files = [Path(folder) / name for name in names]
    return [*state_files(folder).values(), *(file for file in files if file.exists())]


def empty(folder: Path) -> None:
    """Remove what a run left in ``folder``, but for its settings and environment."""
    pages = (CURVES_FILE, CONFUSION_FILE, REPORT_FILE)
    names = (METRICS_FILE, STEPS_FILE, *pages, LAUNCH_FILE, VIDEOS_FILE)
    events = (folder / TENSORBOARD_FOLDER).glob("events.out.tfevents.*")
    for file in [*held_run(folder), *(folder / name for name in names), *events]:
        file.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while it wrote."""
    for place in (folder, folder / STATES_FOLDER):
        for file in place.glob(".*.tmp"):
            if _UNFINISHED.fullmatch(file.name):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(folder: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make ``folder`` this process's run for as long as this lasts.

    What it holds stays: a run to be replaced goes by `empty`, once its successor can begin.

    Raises:
        FileExistsError: it holds a run that is neither to go on nor to be replaced.
        BlockingIOError: another process trains there.
        OSError: it cannot be made.
    """
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise ResumeError(f"there is no run to resume: {folder} does not exist")
    with locked(folder):
        held = held_run(folder)
        if held and not resume and not overwrite:
            raise FileExistsError(
                f"{folder} already holds a run ({held[0].name}): resume=True goes on with it, "
                "overwrite=True replaces it; or choose another folder"
            )
        remove_unfinished(folder)
        yield


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process from training in ``folder`` for as long as this lasts.

    The kernel lets go of it whichever way this process ends.

    Raises:
        BlockingIOError: another process trains there.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock.
        yield
        return
    with (folder / LOCK_FILE).open("a") as file:
        try:
            # A record lock: unlike flock's, decoding processes that outlive this one for a few
            # seconds do not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(
                    f"another process is training in {folder} right now; wait for it, or choose "
                    "another folder"
                ) from error
            _log.warning("%s cannot be locked (%s): start no second run there", folder, error)
        yield
