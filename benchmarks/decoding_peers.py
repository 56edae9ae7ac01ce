"""The ways to read a clip that :mod:`benchmarks.decoding` compares, each at its best settings."""

from __future__ import annotations

import importlib
import importlib.metadata
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r21d.video import InputSpec, read_clips
from r21d.video.resize import resize_frames


@dataclass(frozen=True)
class Reader:
    """``read(path, start, spec)`` gives uint8 (T, *spec.resize, 3); ``module`` is what it needs."""

    read: Callable[[Path, float, InputSpec], Tensor]
    module: str
    package: str

    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        try:
            importlib.import_module(self.module)
        except (ImportError, OSError, RuntimeError) as error:
            return str(error).strip().splitlines()[0][:200] or type(error).__name__
        return None

    def version(self) -> str | None:
        """Of the package it rests on; None where that is absent."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def _r21d(path: Path, start: float, spec: InputSpec) -> Tensor:
    clips = read_clips(path, [start], spec.clip_len, spec.frame_rate, size=spec.resize, threads=1)
    return clips[0]


def _pyav_whole(path: Path, start: float, spec: InputSpec) -> Tensor:
    """Decodes the whole file; converts and scales (in one step) the clip's frames alone."""
    import av

    height, width = _size(spec)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        frames = list(container.decode(stream))
        first = frames[0].time
        chosen = _shown([frame.time - first for frame in frames], start, spec)
        scaled = {
            index: frames[index]
            .reformat(width, height, "rgb24", interpolation="BILINEAR")
            .to_ndarray()
            for index in set(chosen)
        }
    return torch.from_numpy(np.stack([scaled[index] for index in chosen]))


def _opencv(seek: bool) -> Callable[[Path, float, InputSpec], Tensor]:
    """Whole file: grabs every frame, converts the clip's. Seeking: begins at the clip's first."""

    def read(path: Path, start: float, spec: InputSpec) -> Tensor:
        import cv2

        cv2.setNumThreads(1)
        height, width = _size(spec)
        options = [cv2.CAP_PROP_N_THREADS, 1]
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, options)
        if not capture.isOpened():
            raise RuntimeError(f"OpenCV cannot open {path}")
        rate = capture.get(cv2.CAP_PROP_FPS)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        chosen = _shown([number / rate for number in range(count)], start, spec)
        if seek:
            capture.set(cv2.CAP_PROP_POS_FRAMES, chosen[0])
        scaled: dict[int, Any] = {}
        for number in range(chosen[0] if seek else 0, chosen[-1] + 1 if seek else count):
            if not capture.grab():
                break
            if number in chosen:
                _, frame = capture.retrieve()
                small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
                scaled[number] = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
        capture.release()
        return torch.from_numpy(np.stack([scaled[number] for number in chosen]))

    return read


def _torchcodec(path: Path, start: float, spec: InputSpec) -> Tensor:
    """Seeks by the container's own figures."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(
        str(path),
        num_ffmpeg_threads=1,
        seek_mode="approximate",
        dimension_order="NHWC",
    )
    rate = spec.frame_rate or 1.0
    begin = decoder.metadata.begin_stream_seconds or 0.0
    end = decoder.metadata.end_stream_seconds
    instants = [begin + start + number / rate + 1e-3 for number in range(spec.clip_len)]
    frames = decoder.get_frames_played_at([min(t, end - 1e-3) for t in instants]).data
    return resize_frames(frames, _size(spec))


def _size(spec: InputSpec) -> tuple[int, int]:
    assert not isinstance(spec.resize, int)
    return spec.resize


def _shown(times: list[float], start: float, spec: InputSpec) -> list[int]:
    """Numbers of the frames on display at the clip's instants, a millisecond allowed."""
    rate = spec.frame_rate or 1.0
    instants = [start + number / rate + 1e-3 for number in range(spec.clip_len)]
    return [max(0, bisect_right(times, instant) - 1) for instant in instants]


PEERS = {
    "r21d": Reader(_r21d, "av", "av"),
    "PyAV, whole file": Reader(_pyav_whole, "av", "av"),
    "OpenCV, whole file": Reader(_opencv(seek=False), "cv2", "opencv-python-headless"),
    "OpenCV, seeking": Reader(_opencv(seek=True), "cv2", "opencv-python-headless"),
    "torchcodec": Reader(_torchcodec, "torchcodec.decoders", "torchcodec"),
}
