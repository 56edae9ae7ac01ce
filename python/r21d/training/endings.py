"""What a run that ends before its time says: why, what is good on disk, and how to go on."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import torch

from r21d.training.signals import TrainingStopped
from r21d.training.state import TrainingInterrupted
from r21d.training.step import TrainingDiverged

Newest = tuple[int, Path] | None
"""Step and file of the newest good state; None where none is saved."""

_CHANGE = "a lower lr, or with clip_gradients"
_RESUME = f"resume with allow_changes=True (--allow-changes) and {_CHANGE}"
_LONGEST = 200
"""Characters of a compiler's message that are told."""


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


def failed(error: Exception, step: int, strict: bool, saved: str | None) -> Exception | None:
    """What an ``error`` of a video, memory, a decoding process or a compiler means for the run.

    ``strict``: no other videos are drawn. ``saved``: what is good on disk, as `kept` says it.
    None for other errors.
    """
    from r21d.video.reader import VideoError

    more = "" if saved is None else f"; {saved}"
    if isinstance(error, VideoError) and strict:
        more = f"; strict=False (--no-strict) draws another one instead{more}"
    if isinstance(error, (ChildProcessError, VideoError)):
        return type(error)(f"{error}{more}")
    if _is_of_memory(error):
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        told = f"out of memory after step {step}{f', {size[1]} more were needed' if size else ''}"
        less = (
            "a lower batch_size with as much more accumulate needs less for as many clips a step "
            "(of which BatchNorm then sees fewer at once), a lower eval_batch_size for validation"
        )
        return MemoryError(f"{told}; {less}{more}")
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        # What follows an empty line is advice on debugging.
        reason = " ".join(str(error).strip().split("\n\n")[0].split())[:_LONGEST]
        return ValueError(
            f"torch.compile fails here ({reason or type(error).__name__}); leave compile out"
            f" (--no-compile){more}"
        )
    return None


def _is_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def stopped(number: int, step: int, total: int, newest: Newest) -> TrainingStopped:
    """Signal ``number`` ended the run after ``step`` of ``total`` steps."""
    told = f"stopped by {signal.Signals(number).name} after step {step} of {total}"
    return TrainingStopped(f"{told}; {kept(newest, 'resume')}", number, step)


def diverged(told: str, newest: Newest) -> TrainingDiverged:
    """Something is no longer finite, as ``told``; unchanged the run would come to that again."""
    if newest is None:
        return TrainingDiverged(f"{told}; start with {_CHANGE}: {kept(newest, '')}")
    return TrainingDiverged(f"{told}; {kept(newest, _RESUME)}")


def unusable(told: str, newest: Newest, before: Newest) -> TrainingDiverged:
    """The weights of the newest state give what is ``told``; ``before`` is the state before it."""
    if newest is None:
        return diverged(told, None)
    told = f"{told}; the newest state, {newest[1]}, has the weights that give it"
    if before is None:
        return TrainingDiverged(f"{told}, and no state before it is left: start with {_CHANGE}")
    how = f"delete {newest[1].name}, then {_RESUME}"
    return TrainingDiverged(f"{told}; {kept(before, how)}")
