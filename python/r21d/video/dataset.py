"""A folder of videos, one sub-folder a class, as a dataset of clips."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from r21d.video.reader import VideoError, VideoInfo, probe, read_clips, read_video
from r21d.video.sampling import clip_span, random_clip_start, select_frames
from r21d.video.transforms import ClipTransform, InputSpec

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv"}
)


class VideoFolder(Dataset[tuple[torch.Tensor, int, int]]):
    """Clips of the videos under ``root/<class>/``, labelled by folder.

    Item i is ``(clips, label, video)``: float32 (K, 3, T, h, w) as `ClipTransform` makes them, the
    index into ``classes``, and i itself, which names the video in ``samples``. In training K = 1,
    starting at a random moment (temporal jitter) and cropped at random; in test K = ``clips``,
    evenly spaced and cropped at the centre.

    ``classes`` are the sorted folder names, or ``labels`` where given (a checkpoint's), of which
    the folders may then be some. Files are told to be videos by their suffix.

    Every file is opened at construction. Those that cannot be decoded are reported once, as a
    warning, left out of ``samples`` and listed in ``failed`` as ``(path, reason)``. A file that
    fails only later, having been removed meanwhile, say, raises VideoError in test; in training it
    is warned about each time and another video drawn instead.

    Random draws depend on ``seed`` and on torch's global generator alone, so ``torch.manual_seed``
    makes them repeatable and restoring torch's state resumes them.
    ``cache=True`` keeps every video in memory after its first decoding, as uint8 frames already
    scaled to ``spec.resize``: for small sets, read by the main process.

    Raises ValueError for a folder without classes, a single class, a class without videos, a class
    not among ``labels``, a ``spec`` of optical flow, or when no file can be decoded.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        spec: InputSpec,
        train: bool,
        clips: int = 1,
        flip: bool = True,
        labels: Sequence[str] | None = None,
        seed: int = 0,
        *,
        cache: bool = False,
    ) -> None:
        _check_clips(clips, train)
        self.root = Path(root)
        self.spec = spec
        self._centred = ClipTransform(spec)
        self.train = train
        self.clips = clips
        self.flip = flip
        self.seed = seed
        self.classes, self.samples = _scan(self.root, labels)
        self.failed: list[tuple[Path, str]] = []
        self._infos: list[VideoInfo] = []
        self._cache: dict[int, _DecodedVideo] | None = {} if cache else None
        self._probe()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        if not 0 <= index < len(self.samples):
            raise IndexError(f"index {index} is outside 0..{len(self.samples) - 1}")
        if not self.train:
            frames = self._read(index, None)
            return self._centred(frames), self.samples[index][1], index
        generator = self._generator()
        for candidate in self._candidates(index, generator):
            try:
                frames = self._read(candidate, generator)
            except VideoError as error:
                logger.warning("another video is drawn instead: %s", error)
                continue
            transform = ClipTransform(self.spec, True, self.flip, generator)
            return transform(frames), self.samples[candidate][1], candidate
        raise VideoError(f"{self.root}: none of the {len(self.samples)} videos can be decoded")

    def subset(self, indices: Sequence[int], train: bool, clips: int = 1) -> VideoFolder:
        """The videos at ``indices`` as a set of their own, without opening any file again.

        ``train`` and ``clips`` as in the constructor. ``failed`` is empty: those files are in no
        subset.
        """
        _check_clips(clips, train)
        part = copy.copy(self)
        part.train, part.clips = train, clips
        part.samples = [self.samples[index] for index in indices]
        part.failed = []
        part._infos = [self._infos[index] for index in indices]
        part._cache = None if self._cache is None else {}
        return part

    def _probe(self) -> None:
        """Open every file; keep those that can be decoded."""
        found = self.samples
        self.samples = []
        for path, label in found:
            try:
                self._infos.append(probe(path))
            except VideoError as error:
                self.failed.append((path, str(error)))
                logger.warning("skipped: %s", error)
            else:
                self.samples.append((path, label))
        if not self.samples:
            raise ValueError(
                f"{self.root}: none of the {len(found)} video files can be decoded;"
                f" the first: {self.failed[0][1]}"
            )

    def _candidates(self, index: int, generator: torch.Generator) -> Iterator[int]:
        """``index``, then the others in random order."""
        yield index
        for other in torch.randperm(len(self.samples), generator=generator).tolist():
            if other != index:
                yield other

    def _generator(self) -> torch.Generator:
        """A fresh source of randomness for one item."""
        draw = int(torch.randint(2**62, (), dtype=torch.int64))
        return torch.Generator().manual_seed(draw ^ self.seed)

    def _read(self, index: int, generator: torch.Generator | None) -> torch.Tensor:
        """uint8 (K, T, h, w, 3), scaled to ``spec.resize``."""
        info = self._infos[index]
        if generator is None:
            starts = info.clip_starts(self.spec.clip_len, self.spec.frame_rate, self.clips)
        else:
            span = clip_span(self.spec.clip_len, self.spec.frame_rate or info.frame_rate)
            starts = [random_clip_start(info.duration, span, generator)]
        if self._cache is None:
            return read_clips(
                info.path, starts, self.spec.clip_len, self.spec.frame_rate, size=self.spec.resize
            )
        if index not in self._cache:
            self._cache[index] = _DecodedVideo(*read_video(info.path, size=self.spec.resize))
        return self._cache[index].clips(starts, self.spec)


@dataclass(frozen=True)
class _DecodedVideo:
    """A whole video in memory: uint8 (F, h, w, 3) and F times in seconds."""

    frames: torch.Tensor
    times: list[float]

    def clips(self, starts: Sequence[float], spec: InputSpec) -> torch.Tensor:
        timed = zip(self.times, range(len(self.times)), strict=True)
        chosen = select_frames(timed, starts, spec.clip_len, spec.frame_rate, int)
        return self.frames[torch.tensor(chosen)]


def _check_clips(clips: int, train: bool) -> None:
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}")
    if train and clips != 1:
        raise ValueError(f"training draws one clip a video: clips must be 1, got {clips}")


def _scan(root: Path, labels: Sequence[str] | None) -> tuple[list[str], list[tuple[Path, int]]]:
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected {root}/<class>/<video files>")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise ValueError(
            f"{root}: no class folders in it; expected {root}/<class>/<video files>,"
            " the sub-folders' names being the classes"
        )
    classes = _classes(root, folders, labels)
    samples = []
    for folder in folders:
        files = sorted(f for f in folder.iterdir() if _is_video(f))
        if not files:
            raise ValueError(
                f"{folder}: no video files in it; put some there or remove the folder"
                f" (known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))})"
            )
        samples += [(file, classes.index(folder.name)) for file in files]
    return classes, samples


def _classes(root: Path, folders: list[Path], labels: Sequence[str] | None) -> list[str]:
    names = [folder.name for folder in folders]
    classes = names if labels is None else list(labels)
    if len(classes) < 2:
        raise ValueError(
            f"{root}: a single class ({', '.join(classes)}) leaves nothing to tell apart;"
            " expected at least two class folders"
        )
    if unknown := sorted(set(names) - set(classes)):
        raise ValueError(
            f"{root}: folders {', '.join(unknown)} are not among the {len(classes)} labels"
            f" ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''});"
            " rename or remove them"
        )
    return classes


def _is_video(file: Path) -> bool:
    hidden = file.name.startswith(".")
    return file.suffix.lower() in VIDEO_SUFFIXES and not hidden and not file.is_dir()
