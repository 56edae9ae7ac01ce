"""From a video file to uint8 clips."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from r21d.video.decoder import Decoder, VideoError
from r21d.video.resize import FrameSize, resize_frames, scaled_size
from r21d.video.sampling import (
    TOLERANCE,
    check_clip_len,
    check_frame_rate,
    clip_span,
    clip_starts,
    select_frames,
)

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["VideoError", "VideoInfo", "probe", "read_clip", "read_clips", "read_video"]

logger = logging.getLogger(__name__)

_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video stream, after its first frame has been decoded.

    ``frames`` is None where the container does not count them. ``duration`` is in seconds,
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

    def clip_starts(self, clip_len: int, frame_rate: float | None, clips: int) -> list[float]:
        """Start times (seconds) of ``clips`` evenly spaced clips, as `r21d.video.clip_starts`.

        The last of several clips ends on the video's last frame.
        """
        span = clip_span(clip_len, frame_rate or self.frame_rate)
        # That frame is on display for one more period.
        return clip_starts(self.duration, span + 1 / self.frame_rate, clips)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Describe a video. Raises VideoError when not even its first frame can be decoded."""
    with Decoder(path) as decoder:
        frames = decoder.frames()
        first = next(frames, None)
        if first is None:
            raise _nothing_decoded(decoder)
        frame = first[1]
        height, width, _ = decoder.rgb(frame).shape
        stream = decoder.stream
        return VideoInfo(
            path=decoder.path,
            frames=stream.frames or None,
            duration=_stated_duration(decoder) or _counted_duration(decoder, frames),
            frame_rate=decoder.frame_rate or 25.0,
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
) -> torch.Tensor:
    """Read one clip: uint8 (T, H, W, 3), RGB, upright, T = ``clip_len``.

    Frame i is the one on display at ``start + i / frame_rate`` seconds after the first frame;
    ``frame_rate=None`` takes consecutive frames from ``start`` on. Where the video ends before
    the clip does, its last frame is repeated. Packets that cannot be decoded are skipped with one
    warning in the log.

    Raises VideoError when nothing can be decoded, ValueError for an argument out of range.
    """
    return read_clips(path, [start], clip_len, frame_rate)[0]


def read_clips(
    path: str | os.PathLike[str],
    starts: Sequence[float],
    clip_len: int = 16,
    frame_rate: float | None = 15.0,
    *,
    size: FrameSize | None = None,
) -> torch.Tensor:
    """Read K = ``len(starts)`` clips in one pass over the file: uint8 (K, T, H, W, 3).

    As `read_clip`, for several start times (seconds, any order). ``size``, (h, w) or the shorter
    side, scales each frame as it is decoded, with the values `resize_frames` gives, so that many
    clips of a large video need little memory.
    """
    _check_request(starts, clip_len, frame_rate)
    with Decoder(path) as decoder:
        convert = _FrameConverter(decoder, size)
        last = 0.0

        def timed() -> Iterator[tuple[float, VideoFrame]]:
            nonlocal last
            for time, frame in decoder.frames(min(starts)):
                last = time
                yield time, frame

        clips = select_frames(timed(), starts, clip_len, frame_rate, convert)
        if not clips[0]:
            raise _nothing_decoded(decoder)
        _warn_about_failures(decoder)
        late = max(starts) - last - 1 / (decoder.frame_rate or 25.0)
    if late > TOLERANCE:
        logger.warning(
            "%s: a clip was asked for at %.2f s, but the last frame is at %.2f s; it is repeated",
            path,
            max(starts),
            last,
        )
    return torch.stack([torch.stack(clip) for clip in clips])


def read_video(
    path: str | os.PathLike[str], *, size: FrameSize | None = None
) -> tuple[torch.Tensor, list[float]]:
    """Read every frame: uint8 (F, H, W, 3) and F times in seconds since the first frame.

    ``size`` as in `read_clips`. Raises VideoError when nothing can be decoded.
    """
    with Decoder(path) as decoder:
        convert = _FrameConverter(decoder, size)
        timed = [(time, convert(frame)) for time, frame in decoder.frames()]
        if not timed:
            raise _nothing_decoded(decoder)
        _warn_about_failures(decoder)
    return torch.stack([frame for _, frame in timed]), [time for time, _ in timed]


class _FrameConverter:
    """Decoded frame -> uint8 (H, W, 3) of one size for the whole clip.

    A stream may change its picture size on the way; later frames are scaled to the first one's.
    """

    def __init__(self, decoder: Decoder, size: FrameSize | None) -> None:
        self._decoder = decoder
        self._size = size

    def __call__(self, frame: VideoFrame) -> torch.Tensor:
        pixels = self._decoder.rgb(frame)
        height, width = pixels.shape[:2]
        # Settled by the first frame: the shorter side alone would follow each frame's own ratio.
        wanted = (height, width) if self._size is None else self._size
        self._size = scaled_size(height, width, wanted)
        return resize_frames(pixels, self._size)


def _check_request(starts: Sequence[float], clip_len: int, frame_rate: float | None) -> None:
    check_clip_len(clip_len)
    check_frame_rate(frame_rate)
    if not len(starts):
        raise ValueError("starts is empty: give at least one start time in seconds")
    for start in starts:
        if not (math.isfinite(start) and start >= 0):
            raise ValueError(f"start must be a finite number of seconds, at least 0, got {start}")


def _stated_duration(decoder: Decoder) -> float | None:
    """Seconds of video by the header, or None."""
    stream = decoder.stream
    if stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska states a duration per track only as a tag; its file-wide one may be the sound's.
    parts = stream.metadata.get("DURATION", "").split(":")
    if len(parts) == 3:
        try:
            hours, minutes, seconds = (float(part) for part in parts)
        except ValueError:
            pass
        else:
            return hours * 3600 + minutes * 60 + seconds or None
    if decoder.container.duration and decoder.container.duration > 0:
        return decoder.container.duration / _MICROSECONDS
    return None


def _counted_duration(decoder: Decoder, rest: Iterator[tuple[float, VideoFrame]]) -> float:
    """Seconds of video found by decoding the rest, for files whose header is silent."""
    last = max((time for time, _ in rest), default=0.0)
    return last + 1 / (decoder.frame_rate or 25.0)


def _nothing_decoded(decoder: Decoder) -> VideoError:
    reason = decoder.failures[0] if decoder.failures else "the stream holds no frames"
    return VideoError(f"{decoder.path}: no frame can be decoded ({reason})")


def _warn_about_failures(decoder: Decoder) -> None:
    if decoder.failures:
        logger.warning(
            "%s: damaged, %d part(s) could not be decoded and the frames around them stand in"
            " (first: %s)",
            decoder.path,
            len(decoder.failures),
            decoder.failures[0],
        )
