"""Which clips stand for a whole video in test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from r21d.seeds import text_seed
from r21d.video.reader import VideoInfo, read_clips
from r21d.video.resize import scaled_size
from r21d.video.sampling import clip_span, random_clip_start
from r21d.video.transforms import InputSpec, check_crops

MODES = ("even", "random", "dense")

_PART_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ClipSampling:
    """The clips of a video whose scores are averaged.

    ``mode`` is ``"even"``: ``clips`` of them evenly spaced, the first starting with the video, the
    last ending with it, a single one in the middle (the paper's Fig. 5); ``"random"``: ``clips``
    of them anywhere (its Table 2), drawn from ``seed`` and the video's name; or ``"dense"``: laid
    end to end over the whole video, however many that takes, ``clips`` then being unused (VMZ's
    dense prediction, whose step is not published; ours is a clip's length). What a dense video has
    left over at its end, half a frame or more, is covered by one more clip, which ends with the
    video's last frame and overlaps the clip before it.

    Each clip is cropped once, at the centre, or ``crops`` = 3 times, see `ClipTransform`.

    Raises ValueError for an unknown mode, ``clips`` below 1 and other numbers of crops.
    """

    mode: str = "even"
    clips: int = 10
    crops: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if type(self.clips) is not int or self.clips < 1:
            raise ValueError(f"clips must be at least 1, got {self.clips!r}")
        if type(self.seed) is not int:
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        check_crops(self.crops)

    @property
    def views(self) -> int | None:
        """Crops of all clips of a video, None where that depends on the video (dense)."""
        return None if self.mode == "dense" else self.clips * self.crops

    def starts(self, info: VideoInfo, spec: InputSpec, key: str) -> list[float]:
        """Start times (seconds, ascending) of the clips of one video.

        Random ones depend on ``seed``, ``key`` and the video's length alone: not on the other
        videos, their order, or what was drawn before. ``key`` is the video's name, of a kind that
        is the same on every machine.
        """
        if self.mode == "even":
            return info.clip_starts(
                spec.clip_len, spec.frame_rate, self.clips, frame_stride=spec.frame_stride
            )
        if self.mode == "dense":
            return _dense_starts(info, spec)
        span = clip_span(spec.clip_len, spec.frame_rate or info.frame_rate, spec.frame_stride)
        generator = seeded_generator(f"{self.seed} {key}")
        return sorted(random_clip_start(info.duration, span, generator) for _ in range(self.clips))

    def parts(
        self, info: VideoInfo, spec: InputSpec, key: str, *, normalized: bool = False
    ) -> list[list[float]]:
        """`starts` in as few parts as leave each with about 256 MB of pixels, or a single clip.

        These are a part's frames, scaled, and its crops, uint8 or ``normalized`` to float32: the
        clips of a long video together could fill the memory.
        """
        height, width = scaled_size(info.height, info.width, spec.resize)
        crop = spec.crop[0] * spec.crop[1] * (4 if normalized else 1)
        size = 3 * spec.clip_len * (height * width + self.crops * crop)
        starts, length = self.starts(info, spec, key), max(1, _PART_BYTES // size)
        return [starts[i : i + length] for i in range(0, len(starts), length)]


def _dense_starts(info: VideoInfo, spec: InputSpec) -> list[float]:
    rate = spec.frame_rate or info.frame_rate
    length = clip_span(spec.clip_len + 1, rate, spec.frame_stride)
    # From here a clip ends on the video's last frame.
    (_, last) = info.clip_starts(spec.clip_len, spec.frame_rate, 2, frame_stride=spec.frame_stride)
    # Durations are rounded; what is left over counts from half a frame on.
    rounding = 0.5 / info.frame_rate
    whole = max(1, int((last + rounding) / length) + 1)
    starts = [length * i for i in range(whole)]
    if info.duration - (starts[-1] + length) > rounding and last > starts[-1]:
        starts.append(last)
    return starts


def seeded_generator(text: str) -> torch.Generator:
    """A source of random numbers that are others for each text."""
    return torch.Generator().manual_seed(text_seed(text))


def read_input(
    path: str | os.PathLike[str],
    starts: Sequence[float],
    spec: InputSpec,
    *,
    decoder: str = "pyav",
    threads: int | None = None,
    on_damage: str = "warn",
) -> torch.Tensor:
    """The clips at ``starts`` (seconds) as ``spec`` asks, scaled: uint8 (K, T, h, w, 3).

    The options and what is raised are `read_clips`'s.
    """
    return read_clips(
        path,
        starts,
        spec.clip_len,
        spec.frame_rate,
        frame_stride=spec.frame_stride,
        short=spec.short,
        size=spec.resize,
        antialias=spec.antialias,
        decoder=decoder,
        threads=threads,
        on_damage=on_damage,
    )
