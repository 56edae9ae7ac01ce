"""The video stream of a file: upright RGB frames with their times."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import torch

from r21d.video.keyframes import shows_picture
from r21d.video.order import FrameOrder, UnsureError
from r21d.video.packets import PacketQueue, read_packets
from r21d.video.sampling import TOLERANCE
from r21d.video.truncation import cut_short

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# FFmpeg opens these as "video" although nobody means one: ANSI art from .txt and .nfo files.
_TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})

# Several threads decode these to the same values as one; of interlaced MPEG-4 they do not.
_THREADED = frozenset({"av1", "h264", "hevc", "mpeg1video", "mpeg2video", "vp8", "vp9"})


class VideoError(RuntimeError):
    """A file cannot be decoded as a video; the message names the file and the reason."""


def import_av() -> ModuleType:
    """Import PyAV, or raise ImportError saying how to install it."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "reading and writing video needs PyAV: pip install 'r21d[video]'"
        ) from error
    return av


def available_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Decoder:
    """The best video stream of a file, opened for reading; a context manager.

    Packets that cannot be decoded are skipped, as players do, and noted in ``failures``
    (a line each), as are frames that FFmpeg had to patch up; what follows them is still decoded.
    ``decoded`` counts the packets that were decoded.

    ``quick=True`` leaves out what nobody wants, see `frames`, and raises UnsureError instead of
    noting a failure, or where nothing shows that the frames are those of decoding everything.
    ``seek=False`` keeps it from using the file's index, ``has_sought`` says that it did.

    Raises VideoError when the file is missing, no regular file, no video or a still image.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 1,
        quick: bool = False,
        seek: bool = True,
    ) -> None:
        self.path = Path(path)
        self.failures: list[str] = []
        self.decoded = 0
        self._threads = threads
        self._quick = quick
        self._seek = seek
        self.has_sought = False
        self._used = False
        self._av = import_av()
        self._converter = self._av.video.reformatter.VideoReformatter()
        self._open()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    @property
    def container(self) -> InputContainer:
        return self._container

    @property
    def stream(self) -> VideoStream:
        return self._stream

    @property
    def frame_rate(self) -> float:
        """Mean frames a second as the file states or FFmpeg guesses it; 25 if neither."""
        return float(self._stream.average_rate or self._stream.guessed_rate or 25)

    def frames(
        self, wanted: Callable[[], float] | None = None
    ) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (seconds since the first frame, frame) in display order, from the first frame on.

        ``wanted()`` is asked after each frame for the earliest instant that still matters. A quick
        decoder leaves out frames before the one on display then: it goes on from the last
        keyframe before it, where the file allows that.
        """
        if self._used:
            self._container.close()
            self._open()
        self._used = True
        if self._quick:
            yield from self._quick_frames(wanted or (lambda: -math.inf))
        else:
            yield from self._all_frames()

    def rgb(self, frame: VideoFrame) -> torch.Tensor:
        """uint8 (H, W, 3) RGB of one frame, turned and mirrored as the file asks for."""
        try:
            converted = self._converter.reformat(frame, format="rgb24", threads=1)
            pixels = torch.from_numpy(converted.to_ndarray())
        except self._av.FFmpegError as error:
            raise VideoError(
                f"{self.path}: a decoded frame cannot be converted to RGB ({_reason(error)})"
            ) from error
        return _upright(pixels, _display_matrix(frame)).contiguous()

    def _open(self) -> None:
        self._origin: int | None = None
        self._container = self._open_container()
        try:
            self._stream = self._find_stream()
        except BaseException:
            self._container.close()
            raise

    def _open_container(self) -> InputContainer:
        try:
            if not self.path.exists():
                raise VideoError(f"{self.path}: no such file")
            if not self.path.is_file():
                raise VideoError(f"{self.path}: not a regular file")
            if self.path.stat().st_size == 0:
                raise VideoError(f"{self.path}: the file is empty")
        except OSError as error:
            raise VideoError(f"{self.path}: cannot be opened ({_reason(error)})") from error
        try:
            # "file:" and the whitelist keep names such as "http:x.mp4", and playlists that point
            # elsewhere, from being anything but local files.
            container: InputContainer = self._av.open(
                f"file:{self.path.absolute()}",
                options={"protocol_whitelist": "file"},
                metadata_errors="replace",
            )
        except (self._av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self.path}: cannot be opened as a video ({_reason(error)})"
            ) from error
        return container

    def _find_stream(self) -> VideoStream:
        kind = self._container.format.name
        if kind == "image2" or kind.endswith("_pipe"):
            raise VideoError(f"{self.path}: a still image ({kind}), not a video")
        if kind in _TEXT_FORMATS:
            raise VideoError(f"{self.path}: a text file, not a video")
        covers = self._av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & covers]
        if not streams:
            raise VideoError(f"{self.path}: the file has no video stream")
        best = self._container.streams.best("video")
        stream: VideoStream = best if best in streams else streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{self.path}: this FFmpeg has no decoder for its video stream")
        codec = stream.codec_context.codec
        threaded = codec.intra_only or codec.canonical_name in _THREADED
        stream.codec_context.thread_count = self._threads if threaded else 1
        stream.thread_type = "AUTO"
        if self._quick and stream.codec_context.thread_count > 1:
            # Refuse damaged pictures instead of patching them up: with several threads FFmpeg now
            # and then loses the mark that it did. It refuses some sound open groups, too.
            stream.codec_context.options = {"err_detect": "explode"}
        return stream

    def _all_frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Every frame there is; time stamps that are missing or step back are mended."""
        period = 1 / self.frame_rate
        clock: float | None = None
        for frame in self._decoded_frames():
            if frame.pts is None:
                time = 0.0 if clock is None else clock + period
            else:
                time = self._seconds(frame.pts)
            if frame.is_corrupt:
                self._note(f"damaged frame near {time:.2f} s")
            # Broken files step back in time; frames stay in the order they are shown.
            clock = time if clock is None else max(clock, time)
            yield clock, frame

    def _decoded_frames(self) -> Iterator[VideoFrame]:
        for packet in self._packets():
            try:
                frames = self._decode(packet)
            except self._av.FFmpegError as error:
                where = "" if packet is None else self._where(packet.pts)
                self._note(f"undecodable packet{where}: {_reason(error)}")
                continue
            yield from frames

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        """All packets of the file, and None for its end."""
        packets = read_packets(self._container, self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError as error:
                self._note(f"reading broke off: {_reason(error)}")
                packet = None
            if packet is None:
                self._note_missing_end()
                yield None
                return
            yield packet

    def _quick_frames(self, wanted: Callable[[], float]) -> Iterator[tuple[float, VideoFrame]]:
        """The frames that are wanted, as long as `FrameOrder` shows that they are right."""
        queue = PacketQueue(
            self._container, self._stream, self._open_container if self._seek else None
        )
        order = FrameOrder()
        codec = self._stream.codec_context.codec
        turn: bytes | None = None
        jumped = False
        for packet in self._sound_packets(queue):
            if packet is not None and self._shows_picture(packet):
                order.expect(packet.pts)
            for frame in self._decode_sound(packet):
                pts = order.admit(frame.pts, frame.key_frame or codec.intra_only, frame.is_corrupt)
                if pts is None:
                    continue
                # An H.264 stream may state its orientation once for all that follows.
                if jumped and _display_matrix(frame) != turn:
                    raise UnsureError("another orientation")
                jumped = False
                time = self._seconds(pts)
                yield time, frame
                until = wanted()
                if until > time and self._may_skip(frame) and self._skip(queue, until):
                    order.begin_anew()
                    turn, jumped = _display_matrix(frame), True
                    break
        order.end()
        self._note_missing_end()

    def _skip(self, queue: PacketQueue, until: float) -> bool:
        try:
            skipped = queue.skip(self._ticks(until))
        except self._av.FFmpegError as error:
            raise UnsureError("reading broke off") from error
        finally:
            self.has_sought = self.has_sought or queue.has_sought
        if skipped:
            self._stream.codec_context.flush_buffers()
        return skipped

    def _sound_packets(self, queue: PacketQueue) -> Iterator[Packet[VideoStream] | None]:
        """All packets of the queue, and None for its end."""
        packets = iter(queue)
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError as error:
                raise UnsureError("reading broke off") from error
            if packet is not None and packet.is_corrupt:
                raise UnsureError("a damaged packet")
            yield packet
            if packet is None:
                return

    def _shows_picture(self, packet: Packet[VideoStream]) -> bool:
        codec = self._stream.codec_context.codec.canonical_name
        return not packet.is_discard and shows_picture(codec, memoryview(packet)[0])

    def _decode_sound(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        try:
            return self._decode(packet)
        except self._av.FFmpegError as error:
            raise UnsureError("an undecodable packet") from error

    def _decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """The frames that a packet brings forth; None brings forth the last ones."""
        self.decoded += packet is not None
        return self._stream.codec_context.decode(packet)

    def _may_skip(self, frame: VideoFrame) -> bool:
        # FFmpeg interpolates interlaced MPEG-4 by clock times that it counts from the start.
        codec = self._stream.codec_context.codec.canonical_name
        return not (codec == "mpeg4" and frame.interlaced_frame)

    def _note_missing_end(self) -> None:
        try:
            missing = cut_short(self.path)
        except OSError as error:
            missing = f"reading broke off: {_reason(error)}"
        if missing:
            self._note(missing)

    def _note(self, failure: str) -> None:
        # A second pass over the file meets the same ones.
        if failure not in self.failures:
            self.failures.append(failure)

    def _where(self, pts: int | None) -> str:
        if self._origin is None:
            return " before the first frame"
        return "" if pts is None else f" near {self._seconds(pts):.2f} s"

    def _seconds(self, pts: int) -> float:
        """Since the first frame, whose time stamp the first call gives."""
        if self._origin is None:
            self._origin = pts
        base = self._stream.time_base or Fraction(0)
        return (pts - self._origin) * base.numerator / base.denominator

    def _ticks(self, seconds: float) -> int:
        """The last time stamp that is not later, with `TOLERANCE`."""
        if math.isinf(seconds):
            return 1 << 62
        base = self._stream.time_base or Fraction(1)
        return (self._origin or 0) + math.floor(Fraction(seconds + TOLERANCE) / base)


def _display_matrix(frame: VideoFrame) -> bytes | None:
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else bytes(data)


def _upright(pixels: torch.Tensor, matrix: bytes | None) -> torch.Tensor:
    """Apply a display matrix, to the nearest quarter turn or mirror image, to (H, W, 3).

    The matrix (ISO/IEC 14496-12, track header) maps pixel (p, q) to (a p + c q, b p + d q).
    """
    if matrix is None:
        return pixels
    a, b, _, c, d = memoryview(matrix).cast("i")[:5]
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels = pixels.transpose(0, 1)
        a, d = c, b
    flips = [axis for axis, direction in ((0, d), (1, a)) if direction < 0]
    return pixels.flip(flips) if flips else pixels


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
