"""The packets of a video stream in order, and how to leave out those that nobody needs."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from r21d.video.keyframes import IsEntry, entry_test
from r21d.video.order import UnsureError

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video.stream import VideoStream

_Timed = tuple[int, "Packet[VideoStream]"]

# Looking ahead for a place to begin keeps coded packets in memory, up to this many bytes.
_LOOK_AHEAD = 64 << 20

# Reading on is cheaper than asking the container's index for a place this near (seconds).
_NEAR = 10

# H.264 and HEVC in AVI have the times of their coding order, not of their display.
_WRONG_TIMES = {("avi", "h264"), ("avi", "hevc")}


def read_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The packets of a stream but for the empty ones, which to FFmpeg's decoders mean the end.

    Recorders write such for frames they dropped, and PyAV makes one behind the last.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):  # PyAV, where streams turned up on the way
            return
        if packet.size:
            yield packet


class PacketQueue:
    """Iterates over the packets of ``stream``; `skip` jumps ahead to where decoding may begin.

    Time stamps are in the stream's time base. ``reopen`` opens the file once more, to read the
    file's index; None has the index left alone. ``has_sought`` says that it was used. Raises
    UnsureError for a packet without a time stamp, and where the index turns out to be wrong.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        reopen: Callable[[], InputContainer] | None,
    ) -> None:
        self._container = container
        self._stream = stream
        self._reopen = reopen
        self.has_sought = False
        self._kind = container.format.name.split(",")[0]
        self._source = read_packets(container, stream)
        self._ahead: deque[_Timed] = deque()
        self._is_entry: IsEntry | None = None
        self._index: Callable[[int], int | None] | None = None
        self._begun = self._ended = False
        self._given = self._read = -(1 << 62)  # the latest time stamps handed out and read
        self._lead = 0  # by how much decoding runs ahead of display, at most

    def __iter__(self) -> Iterator[Packet[VideoStream]]:
        while timed := self._ahead.popleft() if self._ahead else self._next():
            pts, packet = timed
            self._given = max(self._given, pts)
            yield packet

    def skip(self, until: int) -> bool:
        """Leave out packets, so that the next one is the last place to begin not after ``until``.

        Returns False, having left out none, where that place is behind the packets handed out.
        """
        if self._is_entry is None:
            return False
        found = self._seek(until)
        latest, size = self._given, 0
        kept: deque[_Timed] = deque()
        while size < _LOOK_AHEAD:
            timed = self._ahead.popleft() if self._ahead else self._next()
            if timed is None:
                break
            pts, packet = timed
            if latest < pts <= until and self._may_begin(packet):
                kept.clear()
                found, size = True, 0
            kept.append(timed)
            size += packet.size
            latest = max(latest, pts)
            # No place follows: all that comes before one is also shown before it.
            if pts > until:
                break
        self._ahead.extendleft(reversed(kept))
        return found

    def _next(self) -> _Timed | None:
        """The next packet of the file with its time stamp; None at the file's end."""
        packet = None if self._ended else next(self._source, None)
        if packet is None:
            self._ended = True
            return None
        if packet.pts is None:
            raise UnsureError("a packet without a time stamp")
        self._read = max(self._read, packet.pts)
        if packet.dts is not None:
            self._lead = max(self._lead, packet.pts - packet.dts)
        if not self._begun:
            self._begun = True
            self._is_entry = self._entry_test(packet)
        return packet.pts, packet

    def _entry_test(self, first: Packet[VideoStream]) -> IsEntry | None:
        context = self._stream.codec_context
        codec = context.codec.canonical_name
        if (self._kind, codec) in _WRONG_TIMES:
            return None
        return entry_test(codec, context.codec.intra_only, context.extradata or b"", bytes(first))

    def _may_begin(self, packet: Packet[VideoStream]) -> bool:
        if not packet.is_keyframe or packet.is_discard or packet.is_corrupt:
            return False
        return self._is_entry is not None and self._is_entry(bytes(packet))

    def _seek(self, until: int) -> bool:
        """Let the container jump where ``until`` is far off; False where it cannot."""
        near = int(_NEAR / (self._stream.time_base or Fraction(1)))
        if self._reopen is None or self._ended or until - self._read < near:
            return False
        if self._index is None:
            self._index = self._load_index(self._reopen)
        place = self._index(until - self._lead)
        if place is None or place <= self._read:
            return False
        latest = self._read
        self.has_sought = True
        self._container.seek(place + self._lead, stream=self._stream, backward=True)
        timed = self._next()
        if timed is None or not max(latest + 1, place) <= timed[0] <= until:
            raise UnsureError("the file's index is wrong")
        if not self._may_begin(timed[1]):
            raise UnsureError("the file's index names a packet with which decoding cannot begin")
        self._ahead.clear()
        self._ahead.append(timed)
        self._given = timed[0] - 1
        return True

    def _load_index(self, reopen: Callable[[], InputContainer]) -> Callable[[int], int | None]:
        """What finds the time stamp of the last keyframe not after another, or None."""
        entries = self._stream.index_entries
        if self._kind == "mov" and 0 < self._stream.frames == len(entries):

            def search(time: int) -> int | None:
                number = entries.search_timestamp(time)
                return None if number < 0 else entries[number].timestamp

            return search
        times: list[int] = []
        if self._kind == "matroska":
            times = self._matroska_index(reopen)

        def bisect(time: int) -> int | None:
            number = bisect_right(times, time)
            return times[number - 1] if number else None

        return bisect

    def _matroska_index(self, reopen: Callable[[], InputContainer]) -> list[int]:
        """Matroska's index is read by the first seek, which must not disturb the reading here."""
        with reopen() as container:
            stream = container.streams[self._stream.index]
            container.seek(0, stream=stream, backward=True)
            places = [
                (entry.timestamp, entry.pos) for entry in stream.index_entries if entry.is_keyframe
            ]
        in_order = [place for _, place in places] == sorted(place for _, place in places)
        return [time for time, _ in places] if in_order else []
