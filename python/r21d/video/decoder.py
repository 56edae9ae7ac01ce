"""One pass over the video stream of a file: upright RGB frames with their times."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import torch

from r21d.video.sampling import TOLERANCE

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# A seek goes by decoding time, which B-frames put ahead of display time: aim this many seconds
# early so that the keyframe found is also displayed before the wanted instant.
_SEEK_MARGIN = 0.25

# FFmpeg opens these as "video" although nobody means one: ANSI art from .txt and .nfo files.
_TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})


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


class Decoder:
    """The best video stream of a file, opened for reading; a context manager.

    Packets that cannot be decoded are skipped, as players do, and noted in ``failures``
    (a line each); what follows them is still decoded. Raises VideoError when the file is
    missing, no regular file, no video or a still image.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.failures: list[str] = []
        self._av = import_av()
        self._matrix: tuple[int, ...] | None = None
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
    def frame_rate(self) -> float | None:
        """Mean frames a second as the file states or FFmpeg guesses it; None if neither."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else None

    def frames(self, start: float = 0.0) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (seconds since the first frame, frame) in display order.

        Begins with the frame on display at ``start`` or an earlier one: a keyframe where the file
        allows seeking, else the first frame of the file.
        """
        if start > _SEEK_MARGIN and self._seek(start - _SEEK_MARGIN):
            decoded = self._decode()
            first = next(decoded, None)
            if first is not None and first[0] <= start + TOLERANCE:
                yield first
                yield from decoded
                return
            self._container.close()
            self._open()
        yield from self._decode()

    def rgb(self, frame: VideoFrame) -> torch.Tensor:
        """uint8 (H, W, 3) RGB of one frame, turned and mirrored as the file asks for."""
        try:
            converted = self._converter.reformat(frame, format="rgb24")
            pixels = torch.from_numpy(converted.to_ndarray())
        except self._av.FFmpegError as error:
            raise VideoError(
                f"{self.path}: a decoded frame cannot be converted to RGB ({_reason(error)})"
            ) from error
        return _upright(pixels, self._display_matrix(frame)).contiguous()

    def _open(self) -> None:
        self.failures.clear()
        self._container = self._open_container()
        try:
            self._stream = self._find_stream()
        except BaseException:
            self._container.close()
            raise

    def _open_container(self) -> InputContainer:
        if not self.path.exists():
            raise VideoError(f"{self.path}: no such file")
        if not self.path.is_file():
            raise VideoError(f"{self.path}: not a regular file")
        if self.path.stat().st_size == 0:
            raise VideoError(f"{self.path}: the file is empty")
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
        stream.thread_type = "AUTO"
        return stream

    def _seek(self, start: float) -> bool:
        """Move to a keyframe at or before ``start``; False when the file cannot do that."""
        if self._stream.start_time is None or self._stream.time_base is None:
            return False
        offset = self._stream.start_time + int(start / self._stream.time_base)
        try:
            self._container.seek(offset, stream=self._stream, backward=True)
        except (self._av.FFmpegError, OverflowError):
            self._container.close()
            self._open()
            return False
        return True

    def _decode(self) -> Iterator[tuple[float, VideoFrame]]:
        period = 1 / (self.frame_rate or 25.0)
        clock: float | None = None
        for frame in self._decoded_frames():
            time = self._time(frame)
            if time is None:
                time = 0.0 if clock is None else clock + period
            # Broken files step back in time; frames stay in the order they are shown.
            clock = time if clock is None else max(clock, time)
            yield clock, frame

    def _decoded_frames(self) -> Iterator[VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError as error:
                self.failures.append(f"reading broke off: {_reason(error)}")
                return
            if packet is None:
                return
            try:
                frames = self._stream.decode(packet)
            except self._av.FFmpegError as error:
                where = "" if packet.pts is None else f" near {self._seconds(packet.pts):.2f} s"
                self.failures.append(f"undecodable packet{where}: {_reason(error)}")
                continue
            yield from frames

    def _time(self, frame: VideoFrame) -> float | None:
        return None if frame.pts is None else self._seconds(frame.pts)

    def _seconds(self, pts: int) -> float:
        base = self._stream.time_base
        return float((pts - (self._stream.start_time or 0)) * base) if base else 0.0

    def _display_matrix(self, frame: VideoFrame) -> tuple[int, ...] | None:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
        if data is not None:
            self._matrix = tuple(memoryview(bytes(data)).cast("i"))
        return self._matrix


def _upright(pixels: torch.Tensor, matrix: tuple[int, ...] | None) -> torch.Tensor:
    """Apply a display matrix, to the nearest quarter turn or mirror image, to (H, W, 3).

    The matrix (ISO/IEC 14496-12, track header) maps pixel (p, q) to (a p + c q, b p + d q).
    """
    if matrix is None:
        return pixels
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels = pixels.transpose(0, 1)
        a, d = c, b
    flips = [axis for axis, direction in ((0, d), (1, a)) if direction < 0]
    return pixels.flip(flips) if flips else pixels


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
