"""Which moments of a video make up a clip, and which frames are shown at those moments.

Pure arithmetic on seconds: nothing here opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

# Containers store times rounded to their own tick: Matroska and FLV keep whole milliseconds, so
# the frame meant for 66.67 ms carries 67 ms. Looking this far ahead (seconds) undoes the rounding.
TOLERANCE = 1e-3
_ROUNDING = 1e-6

Frame = TypeVar("Frame")
Picked = TypeVar("Picked")


def clip_span(clip_len: int, rate: float, frame_stride: int = 1) -> float:
    """Seconds from a clip's first sampling instant to its last.

    ``(clip_len - 1) * frame_stride / rate``, where ``rate`` is the clip's own frame rate, or the
    video's where the clip counts the video's own frames.
    """
    steps = (check_clip_len(clip_len) - 1) * check_frame_stride(frame_stride)
    return steps / check_frame_rate(rate)


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
    *,
    frame_stride: int = 1,
    short: str = "pad",
    period: float | None = None,
) -> list[list[Picked]]:
    """Choose the frames of several clips in one pass over ``(time, frame)`` pairs in time order.

    With a ``frame_rate``, clip k takes for each instant ``starts[k] + i * frame_stride /
    frame_rate`` the frame on display then: the last one whose time is not later (`TOLERANCE`
    allowed), or the first frame for an instant before it. With None, clip k takes the frame on
    display at ``starts[k]`` and every ``frame_stride``-th after it.

    After the last frame, that frame repeats (``short="pad"``) or the first frame follows
    (``"loop"``). To loop, ``frames`` must be a collection that can be read again, and ``period``
    the seconds for which the last frame is on display.

    ``pick`` is called once for each frame that some clip uses in a pass, and reading stops as soon
    as every clip is complete. Returns ``len(starts)`` lists of ``clip_len`` picks; empty lists
    when there was no frame at all.
    """
    selection = Selection(starts, clip_len, frame_rate, pick, frame_stride=frame_stride)
    if check_short(short) == "loop":
        if period is None:
            raise ValueError("short='loop' needs the period for which the last frame is on display")
        return selection.run(looped(lambda _: frames, selection.wanted, period))
    return selection.run(frames)


def looped(
    restart: Callable[[Callable[[], float]], Iterable[tuple[float, Frame]]],
    wanted: Callable[[], float],
    period: float,
) -> Iterator[tuple[float, Frame]]:
    """Repeat a video endlessly: its first frame follows ``period`` seconds after its last.

    ``restart(wanted)`` gives its ``(time, frame)`` pairs from the first on, of which it may leave
    out those before the one on display at ``wanted()``.
    """
    offset = 0.0
    while True:
        last = None
        # A little early: the sum of the offset and a time is rounded.
        for last, frame in restart(lambda: wanted() - offset - _ROUNDING):  # noqa: B023
            yield offset + last, frame
        if last is None:
            return
        length = last + period
        # The rounds in which nothing is wanted are not read.
        ahead = wanted() - offset
        offset += length * max(1, math.floor((ahead + TOLERANCE) / length) if ahead > 0 else 1)


class Selection(Generic[Frame, Picked]):
    """Clips in the making: `select_frames` for frames of which those not `wanted` may be missing.

    ``last`` is the time of the last frame that was read.
    """

    def __init__(
        self,
        starts: Sequence[float],
        clip_len: int,
        frame_rate: float | None,
        pick: Callable[[Frame], Picked],
        *,
        frame_stride: int = 1,
    ) -> None:
        check_frame_rate(frame_rate)
        self._starts = starts
        self._clip_len = check_clip_len(clip_len)
        self._frame_rate = frame_rate
        self._stride = check_frame_stride(frame_stride)
        self._pick = pick
        self._clips: list[list[Picked]] = [[] for _ in starts]
        # How many frames a clip that counts frames passes over before its next one.
        self._passed = [0] * len(starts)
        self.last = 0.0

    def run(self, frames: Iterable[tuple[float, Frame]]) -> list[list[Picked]]:
        """Fill the clips from ``(time, frame)`` pairs; see `select_frames`."""
        for frame, end in self._displayed(frames):
            counts = [self._count(k, end) for k in range(len(self._clips))]
            if any(counts):
                picked = self._pick(frame)
                for clip, count in zip(self._clips, counts, strict=True):
                    clip.extend([picked] * count)
            if all(len(clip) == self._clip_len for clip in self._clips):
                break
        return self._clips

    def _displayed(self, frames: Iterable[tuple[float, Frame]]) -> Iterator[tuple[Frame, float]]:
        """Pair each frame with the time at which the next one replaces it (never, for the last)."""
        iterator = iter(frames)
        try:
            self.last, current = next(iterator)
        except StopIteration:
            return
        for self.last, following in iterator:
            yield current, self.last
            current = following
        yield current, math.inf

    def wanted(self) -> float:
        """The earliest instant (seconds) for which a frame is still to come; inf for none.

        -inf when the very next frame is wanted, as it is to a clip that counts frames.
        """
        return min(self._next_instant(k) for k in range(len(self._clips)))

    def _next_instant(self, k: int) -> float:
        taken = len(self._clips[k])
        if taken == self._clip_len:
            return math.inf
        if not taken:
            return self._starts[k]
        if self._frame_rate is None:
            return -math.inf
        return self._instant(k, taken, self._frame_rate)

    def _instant(self, k: int, i: int, frame_rate: float) -> float:
        return self._starts[k] + i * self._stride / frame_rate

    def _count(self, k: int, end: float) -> int:
        """How often clip k uses the frame that is on display until ``end``."""
        taken = len(self._clips[k])
        missing = self._clip_len - taken
        if end == math.inf or not missing:
            return missing
        if self._frame_rate is None:
            if not taken and not self._starts[k] + TOLERANCE < end:
                return 0
            if self._passed[k]:
                self._passed[k] -= 1
                return 0
            self._passed[k] = self._stride - 1
            return 1
        count = 0
        while count < missing:
            if not self._instant(k, taken + count, self._frame_rate) + TOLERANCE < end:
                break
            count += 1
        return count


def check_clip_len(clip_len: int) -> int:
    """Return ``clip_len`` or raise ValueError when it is not a whole number of at least 1."""
    if isinstance(clip_len, bool) or not isinstance(clip_len, int) or clip_len < 1:
        raise ValueError(f"clip_len must be a whole number of frames, at least 1, got {clip_len!r}")
    return clip_len


def check_frame_stride(frame_stride: int) -> int:
    """Return ``frame_stride`` or raise ValueError when it is not a whole number of at least 1."""
    if isinstance(frame_stride, bool) or not isinstance(frame_stride, int) or frame_stride < 1:
        raise ValueError(f"frame_stride must be a whole number, at least 1, got {frame_stride!r}")
    return frame_stride


def check_short(short: str) -> str:
    """Return ``short`` or raise ValueError when it is neither "pad" nor "loop"."""
    if short not in ("pad", "loop"):
        raise ValueError(f"short must be 'pad' or 'loop', got {short!r}")
    return short


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
