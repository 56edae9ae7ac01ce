"""Which moments of a video make up a clip, and which frames are shown at those moments.

Pure arithmetic on seconds: nothing here opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

# Containers store times rounded to their own tick: Matroska and FLV keep whole milliseconds, so
# the frame meant for 66.67 ms carries 67 ms. Looking this far ahead (seconds) undoes the rounding.
TOLERANCE = 1e-3

Frame = TypeVar("Frame")
Picked = TypeVar("Picked")


def clip_span(clip_len: int, rate: float) -> float:
    """Seconds between the first and the last sampling instant of a clip: ``(clip_len - 1) / rate``.

    ``rate`` is the clip's own frame rate, or the video's where the clip takes consecutive frames.
    """
    return (check_clip_len(clip_len) - 1) / check_frame_rate(rate)


def clip_starts(duration: float, clip_duration: float, clips: int) -> list[float]:
    """Start times (seconds) of ``clips`` evenly spaced clips; one clip is the middle one.

    The first clip starts with the video and the last one ends with it (paper, section 4.3:
    clips taken uniformly over the video). Where the video is no longer than a clip, every start
    is 0. Raises ValueError for a negative or non-finite duration and for ``clips < 1``.
    """
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}")
    slack = _slack(duration, clip_duration)
    if clips == 1:
        return [slack / 2]
    return [slack * i / (clips - 1) for i in range(clips)]


def random_clip_start(
    duration: float, clip_duration: float, generator: torch.Generator | None = None
) -> float:
    """A start time (seconds) drawn uniformly from those which keep the clip inside the video.

    This is the paper's temporal jitter. 0 where the video is no longer than a clip. Raises
    ValueError for a negative or non-finite duration.
    """
    slack = _slack(duration, clip_duration)
    return slack * float(torch.rand((), dtype=torch.float64, generator=generator))


def select_frames(
    frames: Iterable[tuple[float, Frame]],
    starts: Sequence[float],
    clip_len: int,
    frame_rate: float | None,
    pick: Callable[[Frame], Picked],
) -> list[list[Picked]]:
    """Choose the frames of several clips in one pass over ``(time, frame)`` pairs in time order.

    With a ``frame_rate``, clip k takes for each instant ``starts[k] + i / frame_rate`` the frame
    on display then: the last one whose time is not later (`TOLERANCE` allowed), or the first
    frame for an instant before it. With None, clip k takes the frame on display at ``starts[k]``
    and those that follow it. After the last frame, the last frame repeats.

    ``pick`` is called once for each frame that some clip uses, and reading stops as soon as every
    clip is complete. Returns ``len(starts)`` lists of ``clip_len`` picks; empty lists when there
    was no frame at all.
    """
    check_clip_len(clip_len)
    check_frame_rate(frame_rate)
    clips: list[list[Picked]] = [[] for _ in starts]
    for frame, end in _displayed(frames):
        counts = [
            _frames_wanted(start, len(clip), clip_len, frame_rate, end)
            for start, clip in zip(starts, clips, strict=True)
        ]
        if any(counts):
            picked = pick(frame)
            for clip, count in zip(clips, counts, strict=True):
                clip.extend([picked] * count)
        if all(len(clip) == clip_len for clip in clips):
            break
    return clips


def check_clip_len(clip_len: int) -> int:
    """Return ``clip_len`` or raise ValueError when it is not a whole number of at least 1."""
    if isinstance(clip_len, bool) or not isinstance(clip_len, int) or clip_len < 1:
        raise ValueError(f"clip_len must be a whole number of frames, at least 1, got {clip_len!r}")
    return clip_len


def check_frame_rate(frame_rate: float | None) -> float:
    """Return ``frame_rate`` (0 for None) or raise ValueError when it is not positive and finite."""
    if frame_rate is None:
        return 0.0
    if not isinstance(frame_rate, int | float) or isinstance(frame_rate, bool):
        raise ValueError(f"frame_rate must be a number or None, got {frame_rate!r}")
    if not (math.isfinite(frame_rate) and frame_rate > 0):
        raise ValueError(
            f"frame_rate must be positive frames a second, or None for consecutive frames,"
            f" got {frame_rate}"
        )
    return float(frame_rate)


def _slack(duration: float, clip_duration: float) -> float:
    for name, value in (("duration", duration), ("clip_duration", clip_duration)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of seconds, at least 0, got {value}")
    return max(0.0, duration - clip_duration)


def _displayed(frames: Iterable[tuple[float, Frame]]) -> Iterator[tuple[Frame, float]]:
    """Pair each frame with the time at which the next one replaces it (never, for the last)."""
    iterator = iter(frames)
    try:
        _, current = next(iterator)
    except StopIteration:
        return
    for time, following in iterator:
        yield current, time
        current = following
    yield current, math.inf


def _frames_wanted(
    start: float, taken: int, clip_len: int, frame_rate: float | None, end: float
) -> int:
    """How often a clip with ``taken`` frames uses the frame that is on display until ``end``."""
    missing = clip_len - taken
    if end == math.inf:
        return missing
    if frame_rate is None:
        return min(missing, 1 if taken or start + TOLERANCE < end else 0)
    count = 0
    while count < missing and start + (taken + count) / frame_rate + TOLERANCE < end:
        count += 1
    return count
