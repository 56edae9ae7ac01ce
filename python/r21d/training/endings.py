"""What a run that ends before its time says: why, what is good on disk, and how to go on."""

from __future__ import annotations

import signal
from pathlib import Path

from r21d.training.signals import TrainingStopped
from r21d.training.state import TrainingInterrupted
from r21d.training.step import TrainingDiverged

Newest = tuple[int, Path] | None
"""Step and file of the newest good state; None where none is saved."""


def kept(newest: Newest, how: str) -> str:
    """What is good on disk; ``how`` says what to do to go on from it."""
    if newest is None:
        return "no state of the run is saved"
    return f"the last good state is {newest[1]}: {how}, to go on from step {newest[0]}"


def interrupted(error: OSError, step: int, newest: Newest) -> TrainingInterrupted:
    """A file could not be written after ``step`` steps."""
    place = error.filename or "a file of the run"
    told = f"cannot write {place} ({error.strerror or error}), after step {step}"
    found = TrainingInterrupted(f"{told}; {kept(newest, 'make room, then resume')}")
    found.errno = error.errno
    return found


def stopped(number: int, step: int, total: int, newest: Newest) -> TrainingStopped:
    """Signal ``number`` ended the run after ``step`` of ``total`` steps."""
    told = f"stopped by {signal.Signals(number).name} after step {step} of {total}"
    return TrainingStopped(f"{told}; {kept(newest, 'resume')}", number, step)


def diverged(told: str, newest: Newest, holds_it: bool = False) -> TrainingDiverged:
    """Something is no longer finite, as ``told``; unchanged the run would come to that again.

    ``holds_it``: so are the weights of the newest state, which then is no good one.
    """
    change = "a lower lr, or with clip_gradients"
    if newest is None:
        return TrainingDiverged(f"{told}; start with {change}: {kept(newest, '')}")
    how = f"resume with allow_changes=True (--allow-changes) and {change}"
    if holds_it:
        return TrainingDiverged(
            f"{told}; the newest state, {newest[1]}, has the weights that give it: delete it, then "
            f"{how}, to go on from the state before"
        )
    return TrainingDiverged(f"{told}; {kept(newest, how)}")
