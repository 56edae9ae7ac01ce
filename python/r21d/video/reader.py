"""From a video file to uint8 clips."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch.utils.data import get_worker_info

from r21d.video.decoder import Decoder, VideoError, available_cpus, import_av
from r21d.video.order import UnsureError
from r21d.video.packets import read_packets
from r21d.video.resize import FrameSize, resize_frames, scaled_size
from r21d.video.sampling import (
    TOLERANCE,
    Selection,
    check_clip_len,
    check_frame_rate,
    check_frame_stride,
    check_short,
    clip_span,
    clip_starts,
    looped,
)
from r21d.video.torchcodec_decoder import read_with_torchcodec

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["VideoError", "VideoInfo", "probe", "read_clip", "read_clips", "read_video"]

logger = logging.getLogger(__name__)

_MAX_THREADS = 4

# These give every stream the duration of the file: the sound may go on after the picture.
_FILE_WIDE_DURATION = frozenset({"asf"})

Read = TypeVar("Read")


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video stream, after its first frame has been decoded.

    ``frames`` is None where the container does not count them. ``duration`` is in seconds of the
    picture, not of the sound: as the header states it, else up to the last packet of video.
    ``width`` and ``height`` in pixels as displayed (rotation applied), ``rotation`` the
    counter-clockwise degrees by which the stored picture is turned for display.
    """

    path: Path
    frames: int | None
    duration: float
    frame_rate: float
    width: int
    height: int
    rotation: int
    codec: str

    def clip_starts(
        self, clip_len: int, frame_rate: float | None, clips: int, frame_stride: int = 1
    ) -> list[float]:
        """Start times (seconds) of ``clips`` evenly spaced clips, as `r21d.video.clip_starts`.

        The last of several clips ends on the video's last frame.
        """
        span = clip_span(clip_len, frame_rate or self.frame_rate, frame_stride)
        # That frame is on display for one more period.
        return clip_starts(self.duration, span + 1 / self.frame_rate, clips)


def probe(path: str | os.PathLike[str], *, threads: int = 1) -> VideoInfo:
    """Describe a video. Raises VideoError when not even its first frame can be decoded."""
    with Decoder(path, threads=threads) as decoder:
        first = next(decoder.frames(), None)
        if first is None:
            raise _nothing_decoded(decoder)
        frame = first[1]
        height, width, _ = decoder.rgb(frame).shape
        stream = decoder.stream
        return VideoInfo(
            path=decoder.path,
            frames=stream.frames or None,
            duration=_stated_duration(decoder)
            or _coded_duration(decoder, frame)
            or _counted_duration(decoder),
            frame_rate=decoder.frame_rate,
            width=width,
            height=height,
            rotation=round(frame.rotation),
            codec=stream.codec_context.codec.canonical_name,
        )


def read_clip(
    path: str | os.PathLike[str],
    clip_len: int = 16,
    frame_rate: float | None = 15.0,
    start: float = 0.0,
    *,
    frame_stride: int = 1,
    short: str = "pad",
    decoder: str = "pyav",
    threads: int | None = None,
) -> torch.Tensor:
    """Read one clip: uint8 (T, H, W, 3), RGB, upright, T = ``clip_len``.

    Frame i is the one on display at ``start + i * frame_stride / frame_rate`` seconds after the
    first frame; ``frame_rate=None`` takes every ``frame_stride``-th frame from the one on display
    at ``start``. Where the video ends before the clip does, its last frame is repeated
    (``short="pad"``) or it begins again (``"loop"``). Packets that cannot be decoded are skipped
    with one warning in the log.

    ``decoder`` is "pyav" or "torchcodec". ``threads`` bounds the decoding threads; None is 1 in a
    DataLoader's worker, else as many as this process has CPUs, at most 4.

    Raises VideoError when nothing can be decoded, ValueError for an argument out of range.
    """
    return read_clips(
        path,
        [start],
        clip_len,
        frame_rate,
        frame_stride=frame_stride,
        short=short,
        decoder=decoder,
        threads=threads,
    )[0]


def read_clips(
    path: str | os.PathLike[str],
    starts: Sequence[float],
    clip_len: int = 16,
    frame_rate: float | None = 15.0,
    *,
    frame_stride: int = 1,
    short: str = "pad",
    size: FrameSize | None = None,
    antialias: bool = True,
    decoder: str = "pyav",
    threads: int | None = None,
    on_damage: str = "warn",
) -> torch.Tensor:
    """Read K = ``len(starts)`` clips in one pass over the file: uint8 (K, T, H, W, 3).

    As `read_clip`, for several start times (seconds, any order). ``size``, (h, w) or the shorter
    side, scales each frame as it is decoded, with the values `resize_frames` gives for that
    ``antialias``, so that many clips of a large video need little memory.

    The frames are those of decoding the whole file, bit for bit. What no clip needs is left out
    where the file shows that this changes nothing: decoding goes on from the last keyframe before
    each clip. Where packets that the clips needed cannot be decoded, or the file was cut short of
    them, ``on_damage`` is "warn" (once, in the log) or "raise" (VideoError); what FFmpeg puts in
    their place can depend on the number of threads.

    torchcodec decodes the same frames or raises VideoError; it reports damage as an error.
    """
    _check_request(decoder, starts, clip_len, frame_rate, frame_stride, short, on_damage)

    if decoder == "torchcodec":
        clips, last, period = read_with_torchcodec(
            path,
            starts,
            clip_len,
            frame_rate,
            frame_stride=frame_stride,
            short=short,
            size=size,
            antialias=antialias,
            threads=_thread_count(threads),
        )
        if short == "pad":
            _warn_about_late_starts(path, starts, last, period)
        return clips

    def read(source: Decoder) -> list[list[torch.Tensor]]:
        convert = _FrameConverter(source, size, antialias)
        selection = Selection(starts, clip_len, frame_rate, convert, frame_stride=frame_stride)
        if short == "loop":
            period = 1 / source.frame_rate
            return selection.run(looped(source.frames, selection.wanted, period))
        chosen = selection.run(source.frames(selection.wanted))
        if chosen[0]:
            _warn_about_late_starts(path, starts, selection.last, 1 / source.frame_rate)
        return chosen

    chosen = _decoded(path, threads, on_damage, read)
    return torch.stack([frame for clip in chosen for frame in clip]).unflatten(0, (-1, clip_len))


def read_video(
    path: str | os.PathLike[str],
    *,
    size: FrameSize | None = None,
    antialias: bool = True,
    threads: int | None = None,
    on_damage: str = "warn",
) -> tuple[torch.Tensor, list[float]]:
    """Read every frame: uint8 (F, H, W, 3) and F times in seconds since the first frame.

    ``size`` as in `read_clips`. Raises VideoError when nothing can be decoded.
    """
    _check_on_damage(on_damage)

    def read(source: Decoder) -> list[tuple[float, torch.Tensor]]:
        convert = _FrameConverter(source, size, antialias)
        return [(time, convert(frame)) for time, frame in source.frames()]

    timed = _decoded(path, threads, on_damage, read)
    return torch.stack([frame for _, frame in timed]), [time for time, _ in timed]


def _decoded(
    path: str | os.PathLike[str],
    threads: int | None,
    on_damage: str,
    read: Callable[[Decoder], list[Read]],
) -> list[Read]:
    """What ``read`` makes of a file: the quick way where that is sure to give the same frames."""
    count = _thread_count(threads)
    decoder = Decoder(path, threads=count, quick=True)
    while True:
        try:
            with decoder:
                result = read(decoder)
            break
        except UnsureError as reason:
            logger.debug("%s: decoded in another way: %s", path, reason)
            # One thread is less particular; the index may have been wrong; else one by one.
            if count > 1:
                count = 1
                decoder = Decoder(path, quick=True)
            elif decoder.has_sought:
                decoder = Decoder(path, quick=True, seek=False)
            else:
                decoder = Decoder(path)
    if not result or result[0] == []:
        raise _nothing_decoded(decoder)
    _report_failures(decoder, on_damage)
    return result


def _thread_count(threads: int | None) -> int:
    if threads is None:
        return 1 if get_worker_info() else min(_MAX_THREADS, available_cpus())
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a whole number, at least 1, or None, got {threads!r}")
    return threads


class _FrameConverter:
    """Decoded frame -> uint8 (H, W, 3) of one size for the whole clip.

    A stream may change its picture size on the way; later frames are scaled to the first one's.
    """

    def __init__(self, decoder: Decoder, size: FrameSize | None, antialias: bool) -> None:
        self._decoder = decoder
        self._size = size
        self._antialias = antialias

    def __call__(self, frame: VideoFrame) -> torch.Tensor:
        pixels = self._decoder.rgb(frame)
        height, width = pixels.shape[:2]
        # Settled by the first frame: the shorter side alone would follow each frame's own ratio.
        wanted = (height, width) if self._size is None else self._size
        self._size = scaled_size(height, width, wanted)
        return resize_frames(pixels, self._size, antialias=self._antialias)


def _check_request(
    decoder: str,
    starts: Sequence[float],
    clip_len: int,
    frame_rate: float | None,
    frame_stride: int,
    short: str,
    on_damage: str,
) -> None:
    if decoder not in ("pyav", "torchcodec"):
        raise ValueError(f"decoder must be 'pyav' or 'torchcodec', got {decoder!r}")
    check_clip_len(clip_len)
    check_frame_rate(frame_rate)
    check_frame_stride(frame_stride)
    check_short(short)
    _check_on_damage(on_damage)
    if not len(starts):
        raise ValueError("starts is empty: give at least one start time in seconds")
    for start in starts:
        if not (math.isfinite(start) and start >= 0):
            raise ValueError(f"start must be a finite number of seconds, at least 0, got {start}")


def _check_on_damage(on_damage: str) -> None:
    if on_damage not in ("warn", "raise"):
        raise ValueError(f"on_damage must be 'warn' or 'raise', got {on_damage!r}")


def _stated_duration(decoder: Decoder) -> float | None:
    """Seconds of video by the header; None where it speaks at most of the whole file."""
    stream = decoder.stream
    if decoder.container.format.name in _FILE_WIDE_DURATION:
        return None
    if stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska states a duration per track only as a tag.
    parts = stream.metadata.get("DURATION", "").split(":")
    if len(parts) == 3:
        try:
            hours, minutes, seconds = (float(part) for part in parts)
        except ValueError:
            return None
        return hours * 3600 + minutes * 60 + seconds or None
    return None


def _coded_duration(decoder: Decoder, first: VideoFrame) -> float | None:
    """Seconds up to the end of the last packet, without decoding; None without time stamps."""
    container, stream = decoder.container, decoder.stream
    if first.pts is None or not stream.time_base:
        return None
    error = import_av().FFmpegError
    if container.duration and container.duration > 0:
        with contextlib.suppress(error):  # without an index, everything is read
            container.seek(container.duration + max(0, container.start_time or 0))
    last = None
    with contextlib.suppress(error):  # what cannot be read cannot be shown, either
        for packet in read_packets(container, stream):
            if packet.pts is not None and (last is None or packet.pts > last):
                last = packet.pts
    if last is None or last < first.pts:
        return None
    return float((last - first.pts) * stream.time_base) + 1 / decoder.frame_rate


def _counted_duration(decoder: Decoder) -> float:
    """Seconds of video found by decoding all, for files that have no times."""
    last = max((time for time, _ in decoder.frames()), default=0.0)
    return last + 1 / decoder.frame_rate


def _warn_about_late_starts(
    path: str | os.PathLike[str], starts: Sequence[float], last: float, period: float
) -> None:
    if max(starts) - last - period > TOLERANCE:
        logger.warning(
            "%s: a clip was asked for at %.2f s, but the last frame is at %.2f s; it is repeated",
            path,
            max(starts),
            last,
        )


def _nothing_decoded(decoder: Decoder) -> VideoError:
    reason = decoder.failures[0] if decoder.failures else "the stream holds no frames"
    return VideoError(f"{decoder.path}: no frame can be decoded ({reason})")


def _report_failures(decoder: Decoder, on_damage: str) -> None:
    if not decoder.failures:
        return
    message = (
        f"{decoder.path}: damaged, {len(decoder.failures)} part(s) could not be decoded and the"
        f" frames around them stand in (first: {decoder.failures[0]})"
    )
    if on_damage == "raise":
        raise VideoError(message)
    logger.warning("%s", message)
