"""Encodes small files of many codecs and containers, and decodes whole files with PyAV alone."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

HEIGHT, WIDTH = 48, 64
TOLERANCE = 1e-3  # the library's own: containers round their times to milliseconds


@dataclass(frozen=True)
class Coding:
    """How a file is coded; ``times`` of the frames are in milliseconds, else ``rate`` a second."""

    codec: str
    container: str
    options: dict[str, str] = field(default_factory=dict)
    frames: int = 70
    rate: Fraction = Fraction(25)
    pixels: str = "yuv420p"
    gop: int = 12
    b_frames: int | None = None
    times: tuple[int, ...] | None = None
    muxer: dict[str, str] = field(default_factory=dict)
    skips: bool = True  # whether decoding can begin in the middle


def _x264(container: str, parameters: str, **more: Any) -> Coding:
    base = "keyint=12:min-keyint=12:scenecut=0:"
    return Coding(
        "libx264", container, {"preset": "medium", "x264-params": base + parameters}, **more
    )


def _x265(container: str, parameters: str, **more: Any) -> Coding:
    base = "keyint=12:min-keyint=12:scenecut=0:log-level=none:pools=none:frame-threads=1:"
    return Coding(
        "libx265", container, {"preset": "fast", "x265-params": base + parameters}, **more
    )


_VARIABLE = tuple(i * 40 + i * i * 7 % 31 + i // 20 * 400 for i in range(70))
_LONG_RUN = {"sc_threshold": "1000000000"}

CODINGS = {
    "h264.mp4": _x264("mp4", "bframes=3"),
    "h264_pyramid.mp4": _x264("mp4", "open-gop=1:bframes=7:b-pyramid=normal:ref=6:direct=temporal"),
    "h264_open.mkv": _x264("matroska", "open-gop=1:bframes=4:ref=4", rate=Fraction(24000, 1001)),
    "h264_open.ts": _x264("mpegts", "open-gop=1:bframes=3:slices=3"),
    "h264_interlaced.ts": _x264("mpegts", "bframes=2:tff=1"),
    "h264_refresh.mp4": _x264("mp4", "intra-refresh=1:bframes=0", skips=False),
    "h264_refresh.mkv": _x264("matroska", "intra-refresh=1:bframes=2", skips=False),
    "h264_one_keyframe.mp4": _x264("mp4", "keyint=infinite:bframes=3", skips=False),
    "h264_intra.mov": _x264("mov", "keyint=1", rate=Fraction(30000, 1001)),
    "h264_fragments.mp4": _x264("mp4", "bframes=3", muxer={"movflags": "frag_keyframe+empty_moov"}),
    "h264_no_edit.mp4": _x264("mp4", "bframes=3", muxer={"use_editlist": "0"}),
    "h264_variable.mp4": _x264("mp4", "bframes=3", times=_VARIABLE),
    "h264_late.mkv": _x264("matroska", "bframes=3", times=tuple(900 + t for t in _VARIABLE)),
    "h264_live.mkv": _x264("matroska", "bframes=3", muxer={"live": "1"}),
    "h264.flv": _x264("flv", "bframes=3"),
    "h264.avi": _x264("avi", "bframes=3", skips=False),
    "h264.h264": _x264("h264", "bframes=3", skips=False),
    "hevc.mp4": _x265("mp4", "bframes=4"),
    "hevc_leading.mkv": _x265("matroska", "open-gop=0:radl=2"),
    "hevc.ts": _x265("mpegts", "bframes=4"),
    "hevc.hevc": _x265("hevc", "bframes=4", skips=False),
    "vp8.webm": Coding("libvpx", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9.webm": Coding("libvpx-vp9", "webm", {"lag-in-frames": "25", "cpu-used": "8"}),
    "vp9.mp4": Coding("libvpx-vp9", "mp4", {"lag-in-frames": "25", "cpu-used": "8"}),
    "mpeg4.avi": Coding("mpeg4", "avi", _LONG_RUN, b_frames=2),
    "mpeg4_interlaced.avi": Coding(
        "mpeg4", "avi", {**_LONG_RUN, "flags": "+ildct+ilme"}, b_frames=2, skips=False
    ),
    "mpeg4.mp4": Coding("mpeg4", "mp4", {"flags": "+qpel+mv4"}, b_frames=2),
    "mpeg2.mpg": Coding("mpeg2video", "mpeg", _LONG_RUN, b_frames=3),
    "mpeg2.ts": Coding("mpeg2video", "mpegts", {"flags": "+ildct+ilme"}, b_frames=2),
    "mpeg2.m2v": Coding("mpeg2video", "mpeg2video", b_frames=2),
    "mpeg1.mpg": Coding("mpeg1video", "mpeg", b_frames=2),
    "mjpeg.avi": Coding("mjpeg", "avi", pixels="yuvj420p"),
    "wmv2.wmv": Coding("wmv2", "asf"),
    "msmpeg4.avi": Coding("msmpeg4", "avi"),
    "flv1.flv": Coding("flv", "flv"),
    "animation.gif": Coding("gif", "gif", pixels="rgb8", rate=Fraction(20), skips=False),
    "pictures.mov": Coding("png", "mov", pixels="rgb24", skips=False),
}


@cache
def _pictures(count: int) -> tuple[np.ndarray, ...]:
    """A photograph-like plane under a moving camera, with a band that jumps."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (2 * HEIGHT // 8, 2 * WIDTH // 8, 3), dtype=np.uint8)
    plane = coarse.repeat(8, 0).repeat(8, 1)
    pictures = []
    for i in range(count):
        top, left = 3 * i % HEIGHT, 5 * i % WIDTH
        picture = plane[top : top + HEIGHT, left : left + WIDTH].copy()
        picture[7 * i % HEIGHT :][:8] = rng.integers(0, 256, 3)
        pictures.append(picture)
    return tuple(pictures)


def encode(path: Path, coding: Coding, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """Write the file; every frame of it is different."""
    base = 1 / coding.rate if coding.times is None else Fraction(1, 1000)
    with av.open(str(path), "w", format=coding.container, options=coding.muxer) as container:
        stream = container.add_stream(coding.codec, rate=coding.rate, options=coding.options)
        stream.height, stream.width, stream.pix_fmt = *size, coding.pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = base
        stream.codec_context.gop_size = coding.gop
        if coding.b_frames is not None:
            stream.codec_context.max_b_frames = coding.b_frames
        for i, picture in enumerate(_pictures(coding.frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(size[1], size[0], format=coding.pixels)
            frame.pts = i if coding.times is None else coding.times[i]
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def trim(source: Path, target: Path, seconds: float) -> Path:
    """The same packets, of which an edit list (or times below zero) hides the first ``seconds``."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        shift = int(seconds / stream.time_base)
        for packet in reader.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                writer.mux(packet)
    return target


class WholeVideo:
    """A file decoded from its first packet to its last by PyAV in one thread, nothing else.

    ``frames`` are RGB as stored, ``times`` the seconds since the first; a time stamp that steps
    back counts as the latest before it, and frames without one follow each other evenly.
    """

    def __init__(self, path: Path) -> None:
        self.frames: list[np.ndarray] = []
        self.times: list[float] = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            self.rate = float(stream.average_rate or stream.guessed_rate)
            first = None
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    continue
                for frame in decoded:
                    if frame.pts is None:
                        time = len(self.times) / self.rate
                    else:
                        first = frame.pts if first is None else first
                        time = float((frame.pts - first) * stream.time_base)
                    self.times.append(max(time, *self.times[-1:], 0.0))
                    self.frames.append(
                        np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    )

    def numbers(
        self, start: float, clip_len: int, rate: float | None, stride: int, short: str
    ) -> list[int]:
        """The frames of a clip by definition."""
        if rate is None:
            first = self._shown_at(start, short)
            numbers = [first + i * stride for i in range(clip_len)]
            if short == "loop":
                return [number % len(self.times) for number in numbers]
            return [min(number, len(self.times) - 1) for number in numbers]
        return [self._shown_at(start + i * stride / rate, short) for i in range(clip_len)]

    def _shown_at(self, instant: float, short: str) -> int:
        length = self.times[-1] + 1 / self.rate
        while short == "loop" and instant + TOLERANCE >= length:
            instant -= length
        return max(0, bisect_right(self.times, instant + TOLERANCE) - 1)
