"""torchcodec in PyAV's place: the same frames are chosen, and torchcodec decodes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType

import torch

from r21d.video.decoder import Decoder, VideoError, import_av
from r21d.video.keyframes import shows_picture
from r21d.video.packets import read_packets
from r21d.video.resize import FrameSize, resize_frames, scaled_size
from r21d.video.sampling import select_frames

# Seconds by which a time stamp may differ in floating point.
_SAME_TIME = 1e-6


def import_torchcodec() -> ModuleType:
    """Import torchcodec's decoders, or raise ImportError saying how to install them."""
    try:
        from torchcodec import decoders
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise ImportError(
            "decoder='torchcodec' needs torchcodec, built for this torch, and FFmpeg's shared"
            " libraries: pip install 'r21d[torchcodec]', and FFmpeg 4 to 8 from the system's"
            " packages (apt-get install ffmpeg). torchcodec 0.14 and later load with CUDA's torch"
            " alone; with CPU torch take torchcodec<0.14."
            f" It did not load here: {reason[0] if reason else type(error).__name__}"
        ) from error
    return decoders


def read_with_torchcodec(
    path: str | os.PathLike[str],
    starts: Sequence[float],
    clip_len: int,
    frame_rate: float | None,
    *,
    frame_stride: int,
    short: str,
    size: FrameSize | None,
    antialias: bool,
    threads: int,
) -> tuple[torch.Tensor, float, float]:
    """The clips of `r21d.video.read_clips`, the last frame's time and for how long that one shows.

    Frames are chosen by the time stamps that PyAV reads, so that they are those that PyAV decodes.
    Raises VideoError for a file without them, and where torchcodec finds other frames or damage.
    """
    decoders = import_torchcodec()
    stamps, base, period, index = _time_stamps(path)
    times = [(stamp - stamps[0]) * base for stamp in stamps]
    timed = list(zip(times, range(len(times)), strict=True))
    numbers = torch.tensor(
        select_frames(
            timed,
            starts,
            clip_len,
            frame_rate,
            int,
            frame_stride=frame_stride,
            short=short,
            period=period,
        )
    )
    wanted, places = numbers.unique(return_inverse=True)
    try:
        # An open file, as names may be neither UTF-8 nor look like files.
        with open(path, "rb") as file:
            video = decoders.VideoDecoder(
                file, stream_index=index, dimension_order="NHWC", num_ffmpeg_threads=threads
            )
            found = video.metadata.num_frames
            batch = video.get_frames_at(wanted.tolist())
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise VideoError(f"{path}: torchcodec cannot decode it ({error})") from error
    expected = torch.tensor([stamps[number] * base for number in wanted.tolist()])
    late = (batch.pts_seconds - expected).abs().max()
    if found != len(stamps) or late > _SAME_TIME:
        raise VideoError(
            f"{path}: torchcodec gives other frames than those asked for; decoder='pyav' reads it"
        )
    frames = batch.data
    if size is not None:
        target = scaled_size(frames.shape[1], frames.shape[2], size)
        frames = resize_frames(frames, target, antialias=antialias)
    return frames[places], times[-1], period


def _time_stamps(path: str | os.PathLike[str]) -> tuple[list[int], float, float, int]:
    """The frames' time stamps in order, seconds per tick, seconds per frame, the stream's number.

    Without decoding: each packet that shows a picture gives one frame.
    """
    with Decoder(path) as source:
        codec = source.stream.codec_context.codec.canonical_name
        try:
            stamps = [
                packet.pts
                for packet in read_packets(source.container, source.stream)
                if not packet.is_discard and shows_picture(codec, memoryview(packet)[0])
            ]
        except import_av().FFmpegError as error:
            raise VideoError(f"{path}: torchcodec cannot decode it ({error})") from error
        known = [stamp for stamp in stamps if stamp is not None]
        if not known or len(known) < len(stamps) or not source.stream.time_base:
            raise VideoError(
                f"{path}: torchcodec needs the time stamps that this file lacks;"
                " decoder='pyav' reads it"
            )
        return (
            sorted(known),
            float(source.stream.time_base),
            1 / source.frame_rate,
            source.stream.index,
        )
