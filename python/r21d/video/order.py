"""Shows that decoding lost and displaced no frame: each packet gives one, in order of time."""

from __future__ import annotations

import heapq
import math


class UnsureError(Exception):
    """Nothing shows that the frames are those of decoding everything, one packet after the other.

    Doing so gives them.
    """


class FrameOrder:
    """What frames are due, told by the time stamps of the packets that were decoded.

    Beginning in the middle of a stream, several threads and damage each show here, where they
    change what comes out.
    """

    def __init__(self) -> None:
        self._due: list[int] = []  # a heap
        self._begin: int | None = None
        self._leading = False  # the frame that decoding began with has not come yet
        self._latest = -math.inf

    def begin_anew(self) -> None:
        """Decoding goes on with a later keyframe; what is shown before that one is not whole."""
        self._due.clear()
        self._begin = None
        self._leading = True

    def expect(self, pts: int | None) -> None:
        """A packet that shows a frame at ``pts`` is about to be decoded."""
        if pts is None:
            raise UnsureError("a packet without a time stamp")
        if self._begin is None:
            self._begin = pts
        if not (self._leading and pts < self._begin):
            heapq.heappush(self._due, pts)

    def admit(self, pts: int | None, is_key: bool, is_corrupt: bool) -> int | None:
        """``pts`` of a frame that was decoded; None to leave the frame out, as it is not whole.

        Raises UnsureError where the frame was not due.
        """
        if pts is not None and self._leading and self._begin is not None and pts < self._begin:
            return None
        due = heapq.heappop(self._due) if self._due else None
        if pts is None or pts != due or pts < self._latest or is_corrupt:
            raise UnsureError("frames do not come as their packets say")
        if self._leading and not is_key:
            raise UnsureError("decoding began with a frame that needs others")
        self._leading = False
        self._latest = pts
        return pts

    def end(self) -> None:
        """There are no more frames. Raises UnsureError if there should be."""
        if self._due:
            raise UnsureError("frames are missing")
