"""Lists of videos as datasets of clips."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from r21d.video.clips import ClipSampling, read_input, seeded_generator
from r21d.video.decoder import available_cpus
from r21d.video.index import VideoIndex, relative_name
from r21d.video.lists import VideoItem, VideoList, list_folder
from r21d.video.lookup import Index, check_class_folders, gone_from, load_index, look_up
from r21d.video.reader import VideoError, VideoInfo, read_video
from r21d.video.sampling import clip_span, random_clip_start, select_frames
from r21d.video.transforms import ClipTransform, InputSpec

Listed = tuple[str, int | tuple[int, ...]]
"""A video by its name below the root (else its path), and its label or labels."""

logger = logging.getLogger(__name__)

_MOST_WARNINGS = 10
_MANY_FILES = 1000
_MOST_THREADS = 8


class VideoDataset(Dataset[tuple[torch.Tensor, Any, int]]):
    """Clips of the videos of a list (`r21d.video.lists`).

    Item i is ``(clips, label, i)``. ``clips`` is (K, 3, T, h, w) as `ClipTransform` makes them:
    float32, or uint8 where ``normalize`` is False, for `Normalize` to finish where the network
    runs. ``label`` is the index into ``classes``, or for a list with several labels a video a
    float32 (classes,) of ones and zeros. i names the video in ``samples``.

    In training K = 1: a clip from a random moment (temporal jitter), cropped at random and, with
    ``flip``, mirrored half of the time; ``sampling`` is None. In test ``sampling`` says which
    clips and crops (None: `ClipSampling`'s own, ten even clips); K is their product, the crops of
    a clip following each other, and ``clips`` holds it (None where it depends on the video).

    Every file is looked up in ``index`` (see `Index`; ``r21d index`` makes one) or, where that
    knows nothing of the file as it is now, opened at construction. Those that cannot be decoded or
    that are known to be damaged (a full index has decoded them to the end) are warned about once,
    left out of ``samples`` and listed in ``failed`` as ``(path, reason)``; ``missing`` are files
    which the list, or for a folder its index, knows and that are not there. A file that turns out
    broken or damaged only when it is read raises VideoError in test; in training another video is
    drawn instead each time, which ``replaced`` counts, and the first time it is warned about (in
    the process that reads; worker processes have counts and warnings of their own).
    ``strict=True`` stops instead, with VideoError, in all of these cases but that of ``missing``.

    Training's random draws depend on ``seed`` and on torch's global generator alone, so
    ``torch.manual_seed`` makes them repeatable and restoring torch's state resumes them. A
    DataLoader seeds that generator anew in each worker process; after `set_epoch` they depend on
    ``seed``, the epoch and i alone, whatever the number of workers and the order. The clips of
    test depend on ``sampling.seed`` and the video's name alone.

    ``decoder`` and ``threads`` are `read_clips`'s. ``cache=True`` keeps every video in memory after
    its first decoding, as uint8 frames already scaled to ``spec.resize``: for small sets, read by
    the main process, by PyAV.

    Raises ValueError for a ``spec`` of optical flow, for options that contradict each other, when
    no file can be decoded, for an ``index`` that was given and knows none of the videos, or in
    training for a class folder without videos (in test a warning).
    """

    def __init__(
        self,
        videos: VideoList,
        spec: InputSpec,
        train: bool,
        sampling: ClipSampling | None = None,
        *,
        flip: bool = True,
        seed: int = 0,
        normalize: bool = True,
        index: Index = None,
        strict: bool = False,
        cache: bool = False,
        decoder: str = "pyav",
        threads: int | None = None,
    ) -> None:
        if cache and decoder != "pyav":
            raise ValueError(f"cache=True decodes by PyAV: decoder must be 'pyav', got {decoder!r}")
        self.videos = videos
        self.root = videos.root
        self.classes = videos.classes
        self.multilabel = videos.multilabel
        self.missing = list(videos.missing)
        self.spec = spec
        self.flip = flip
        self.seed = seed
        self.normalize = normalize
        self.strict = strict
        self.decoder = decoder
        self.threads = threads
        self.replaced = 0
        self._warned: set[Path] = set()
        # Shared, so that worker processes that outlive an epoch hear of the next one.
        self._epoch = torch.tensor(-1).share_memory_()
        self._cache: dict[int, _DecodedVideo] | None = {} if cache else None
        self._set_side(train, sampling)
        loaded = load_index(index, videos)
        if videos.name == "folder":
            gone = [] if loaded is None else gone_from(videos, loaded)
            check_class_folders(videos, gone, train)
            self.missing += gone
        self._open(videos.items, loaded)

    @property
    def clips(self) -> int | None:
        """Clips (times crops) an item; None where that depends on the video's length."""
        return 1 if self.sampling is None else self.sampling.views

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any, int]:
        if not 0 <= index < len(self.samples):
            raise IndexError(f"index {index} is outside 0..{len(self.samples) - 1}")
        if self.sampling is not None:
            starts = self.sampling.starts(self._info(index), self.spec, self._name(index))
            return self._test_transform(self._read(index, starts)), self._label(index), index
        generator = self._generator(index)
        for candidate in self._candidates(index, generator):
            try:
                frames = self._read(candidate, [self._random_start(candidate, generator)])
            except VideoError as error:
                if self.strict:
                    raise
                self.replaced += 1
                path = self.samples[candidate][0]
                if path not in self._warned:
                    self._warned.add(path)
                    logger.warning("another video is drawn instead: %s", error)
                continue
            transform = ClipTransform(
                self.spec, True, self.flip, generator, normalize=self.normalize
            )
            return transform(frames), self._label(candidate), candidate
        raise VideoError(f"{self.root}: none of the {len(self.samples)} videos can be decoded")

    def part_count(self, index: int) -> int:
        """In how many parts `read_part` reads item ``index``; 1 in training."""
        if self.sampling is None or isinstance(self._infos[index], str):
            return 1
        return len(self._parts(index, self.sampling))

    def read_part(self, index: int, part: int) -> tuple[torch.Tensor, Any, int]:
        """Item ``index`` with some of its clips only; those of all parts, in turn, are the item's.

        A part holds about 256 MB of pixels at most (`ClipSampling.parts`), whatever the video's
        length and the number of clips. In training part 0 is the item.
        """
        if self.sampling is None:
            return self[index]
        starts = self._parts(index, self.sampling)[part]
        return self._test_transform(self._read(index, starts)), self._label(index), index

    def set_epoch(self, epoch: int) -> None:
        """Draw the clips of this epoch of training, from 0, in the order of any DataLoader.

        Call it before each pass, as a DistributedSampler's; it reaches persistent workers, too,
        and the subsets of this set. Without a call torch's global generator decides.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self._epoch.fill_(epoch)

    def subset(
        self,
        indices: Sequence[int],
        train: bool,
        clips: int = 1,
        *,
        sampling: ClipSampling | None = None,
    ) -> VideoDataset:
        """The videos at ``indices`` as a set of their own, without opening any file again.

        ``train`` and ``sampling`` as in the constructor; ``clips`` is short for that many even
        ones. ``failed`` and ``missing`` are empty: those files are in no subset.
        """
        part = copy.copy(self)
        part._set_side(train, _sampling(train, clips, sampling))
        part.samples = [self.samples[index] for index in indices]
        part.failed, part.missing, part.replaced, part._warned = [], [], 0, set()
        part._infos = [self._infos[index] for index in indices]
        part._cache = None if self._cache is None else {}
        return part

    def listed(self) -> list[Listed]:
        """The names and labels of ``samples``, for `restored`."""
        return [(self._name(index), label) for index, (_, label) in enumerate(self.samples)]

    def restored(
        self, videos: Sequence[Listed], train: bool, *, sampling: ClipSampling | None = None
    ) -> VideoDataset:
        """The set that `listed` once told of, item by item, of the videos that are there now.

        ``train`` and ``sampling`` as in the constructor. One that is gone, or that can no longer be
        decoded, keeps its place and is listed in `unreadable`: reading it raises VideoError, and in
        training another is drawn instead, as for every broken file.

        Raises:
            ValueError: a video has another label now.
        """
        own = {name: index for index, (name, _) in enumerate(self.listed())}
        reasons = {path: reason.removeprefix(f"{path}: ") for path, reason in self.failed}
        samples, infos = [], []
        for name, label in videos:
            path, info = self.root / name, None
            if name in own:
                (path, now), info = self.samples[own[name]], self._infos[own[name]]
                if now != label:
                    raise ValueError(f"{path}: its label was {label} and is now {now}")
            samples.append((path, label))
            infos.append(info or reasons.get(path, "no such video"))
        part = self.subset([], train, sampling=sampling)
        part.samples, part._infos = samples, infos
        return part

    @property
    def unreadable(self) -> list[tuple[Path, str]]:
        """Of a set that was `restored`, the videos that were lost and why."""
        pairs = zip(self.samples, self._infos, strict=True)
        return [(path, info) for (path, _), info in pairs if isinstance(info, str)]

    def _set_side(self, train: bool, sampling: ClipSampling | None) -> None:
        if train and sampling is not None:
            raise ValueError(
                f"training draws one clip a video at random: sampling must be None, got {sampling}"
            )
        self.train = train
        self.sampling = None if train else sampling or ClipSampling()
        crops = 1 if self.sampling is None else self.sampling.crops
        self._test_transform = ClipTransform(self.spec, crops=crops, normalize=self.normalize)

    def _open(self, items: Sequence[VideoItem], index: VideoIndex | None) -> None:
        """Look every file up, or open it; keep those that can be decoded."""
        self.samples: list[tuple[Path, int | tuple[int, ...]]] = []
        self.failed: list[tuple[Path, str]] = []
        # The reason instead of a file that cannot be read.
        self._infos: list[VideoInfo | str] = []
        if index is None and len(items) > _MANY_FILES:
            logger.warning(
                "%s: no index, so each of %d files is opened first; r21d index does that once",
                self.root,
                len(items),
            )
        unknown = 0
        threads = min(_MOST_THREADS, available_cpus())
        with ThreadPoolExecutor(threads, "r21d-probe") as pool:
            paths = [item.path for item in items]
            rows = pool.map(partial(look_up, index), paths)
            for item, (row, opened) in zip(items, rows, strict=True):
                unknown += opened
                if row.info is None or row.problem is not None:
                    self._fail(item.path, f"{item.path}: {row.problem}")
                    continue
                self._infos.append(replace(row.info, path=item.path))
                label = item.labels if self.multilabel else item.labels[0]
                self.samples.append((item.path, label))
        if index is not None and unknown:
            logger.warning(
                "%s: %d of %d files are not in the index, or have changed since; r21d index"
                " brings it up to date",
                self.root,
                unknown,
                len(items),
            )
        if len(self.failed) > _MOST_WARNINGS:
            logger.warning(
                "skipped: %d more files, %d of %d in all",
                len(self.failed) - _MOST_WARNINGS,
                len(self.failed),
                len(items),
            )
        if self.missing:
            listed = len(items) + len(self.missing)
            logger.warning(
                "%s: %d of %d listed videos are missing", self.root, len(self.missing), listed
            )
        self._check_usable(len(items))

    def _fail(self, path: Path, reason: str) -> None:
        self.failed.append((path, reason))
        if len(self.failed) <= _MOST_WARNINGS:
            logger.warning("skipped: %s", reason)

    def _check_usable(self, files: int) -> None:
        if self.strict and self.failed:
            raise VideoError(
                f"{self.root}: {len(self.failed)} of {files} video files are broken or damaged;"
                f" the first: {self.failed[0][1]}"
            )
        if not self.samples:
            first = f"; the first: {self.failed[0][1]}" if self.failed else ""
            absent = f" ({len(self.missing)} more are missing)" if self.missing else ""
            if self.failed and all(reason.endswith(": no such file") for _, reason in self.failed):
                raise ValueError(
                    f"{self.root}: none of the {files} listed files is in this folder{absent}"
                    f"{first}; name the folder that the list's names are relative to"
                )
            raise ValueError(
                f"{self.root}: none of the {files} video files can be decoded{absent}{first}"
            )

    def _label(self, index: int) -> int | torch.Tensor:
        label = self.samples[index][1]
        if isinstance(label, int):
            return label
        ones = torch.zeros(len(self.classes))
        ones[list(label)] = 1
        return ones

    def _parts(self, index: int, sampling: ClipSampling) -> list[list[float]]:
        info, name = self._info(index), self._name(index)
        return sampling.parts(info, self.spec, name, normalized=self.normalize)

    def _info(self, index: int) -> VideoInfo:
        info = self._infos[index]
        if isinstance(info, str):
            raise VideoError(f"{self.samples[index][0]}: {info}")
        return info

    def _name(self, index: int) -> str:
        """The key of a video's random clips."""
        path = self.samples[index][0]
        return relative_name(path, self.root) or os.fspath(path)

    def _candidates(self, index: int, generator: torch.Generator) -> Iterator[int]:
        """``index``, then the others in random order."""
        yield index
        for other in torch.randperm(len(self.samples), generator=generator).tolist():
            if other != index:
                yield other

    def _generator(self, index: int) -> torch.Generator:
        """A fresh source of randomness for one item."""
        epoch = int(self._epoch)
        if epoch >= 0:
            return seeded_generator(f"{self.seed} {epoch} {index}")
        draw = int(torch.randint(2**62, (), dtype=torch.int64))
        return torch.Generator().manual_seed(draw ^ self.seed)

    def _random_start(self, index: int, generator: torch.Generator) -> float:
        if isinstance(self._infos[index], str):
            # What is drawn next is then the same as where the file broke amid the run.
            torch.rand((), dtype=torch.float64, generator=generator)
        info, spec = self._info(index), self.spec
        span = clip_span(spec.clip_len, spec.frame_rate or info.frame_rate, spec.frame_stride)
        return random_clip_start(info.duration, span, generator)

    def _read(self, index: int, starts: Sequence[float]) -> torch.Tensor:
        """uint8 (K, T, h, w, 3), scaled to ``spec.resize``."""
        path, spec = self.samples[index][0], self.spec
        if self._cache is None:
            return read_input(
                path,
                starts,
                spec,
                decoder=self.decoder,
                threads=self.threads,
                on_damage="raise",
            )
        if index not in self._cache:
            frames, times = read_video(
                path,
                size=spec.resize,
                antialias=spec.antialias,
                threads=self.threads,
                on_damage="raise",
            )
            period = 1 / self._info(index).frame_rate
            self._cache[index] = _DecodedVideo(frames, times, period)
        return self._cache[index].clips(starts, spec)


class VideoFolder(VideoDataset):
    """Clips of the videos under ``root/<class>/``, labelled by folder: `VideoDataset` of these.

    ``clips`` is short for ``sampling``: that many evenly spaced ones, cropped at the centre; in
    training it is 1. ``labels`` are the classes where given (a checkpoint's), of which the folders
    may then be some; else the sorted folder names are.

    Raises ValueError also for a folder without classes or videos, a single class, or one that is
    not among ``labels``.
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
        sampling: ClipSampling | None = None,
        normalize: bool = True,
        index: Index = None,
        strict: bool = False,
        cache: bool = False,
        decoder: str = "pyav",
        threads: int | None = None,
    ) -> None:
        sampling = _sampling(train, clips, sampling)
        super().__init__(
            list_folder(root, labels),
            spec,
            train,
            sampling,
            flip=flip,
            seed=seed,
            normalize=normalize,
            index=index,
            strict=strict,
            cache=cache,
            decoder=decoder,
            threads=threads,
        )


@dataclass(frozen=True)
class _DecodedVideo:
    """A whole video in memory: uint8 (F, h, w, 3), F times, the last one's period (s)."""

    frames: torch.Tensor
    times: list[float]
    period: float

    def clips(self, starts: Sequence[float], spec: InputSpec) -> torch.Tensor:
        chosen = select_frames(
            list(zip(self.times, range(len(self.times)), strict=True)),
            starts,
            spec.clip_len,
            spec.frame_rate,
            int,
            frame_stride=spec.frame_stride,
            short=spec.short,
            period=self.period,
        )
        return self.frames[torch.tensor(chosen)]


def _sampling(train: bool, clips: int, sampling: ClipSampling | None) -> ClipSampling | None:
    """``clips`` even ones where there is no ``sampling``; None for the one clip of training."""
    if sampling is not None and clips != 1:
        raise ValueError(f"sampling says how many clips: leave clips at 1, got {clips}")
    even = ClipSampling(clips=clips)
    if train and clips != 1:
        raise ValueError(f"training draws one clip a video: clips must be 1, got {clips}")
    return sampling if train or sampling is not None else even
