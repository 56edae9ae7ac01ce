"""Holding out some videos of each class for validation."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from r21d.video import ClipSampling, InputSpec, VideoDataset

logger = logging.getLogger(__name__)


def split_folder(
    root: str | os.PathLike[str],
    spec: InputSpec,
    fraction: float,
    *,
    clips: int = 1,
    flip: bool = True,
    seed: int = 0,
) -> tuple[VideoDataset, VideoDataset]:
    """Split the videos of one folder as `split_videos` does.

    Raises:
        ValueError: as there; or the folder is none of videos by class.
    """
    from r21d.video import VideoFolder

    _check_fraction(fraction)  # before the files are opened
    folder = VideoFolder(root, spec, train=True, flip=flip, seed=seed)
    return split_videos(folder, fraction, clips=clips, seed=seed)


def split_videos(
    dataset: VideoDataset,
    fraction: float,
    *,
    clips: int = 1,
    seed: int = 0,
    sampling: ClipSampling | None = None,
) -> tuple[VideoDataset, VideoDataset]:
    """Split the videos of a data set into a training and a validation set.

    The latter takes ``clips`` even clips of a video, or those of ``sampling``.

    Of each class ``fraction`` of the videos is held out at random, but at least one and never
    all; a video of several classes counts for each. Classes of fewer than two videos that can be
    decoded have none held out, with one warning for all of them. Files that cannot be decoded are
    on neither side; the training set's ``failed`` lists them. Files are split, not recordings:
    where several files are pieces of one recording, make two folders by hand, or validation
    flatters.

    Raises:
        ValueError: ``fraction`` is not between 0 and 1, or none can be held out of any class.
    """
    from r21d.video.lists.video_list import shortened

    _check_fraction(fraction)
    labels = [(label,) if isinstance(label, int) else label for _, label in dataset.samples]
    held_out = _draw(labels, len(dataset.classes), fraction, seed)
    covered = {label for index in held_out for label in labels[index]}
    others = [name for number, name in enumerate(dataset.classes) if number not in covered]
    if not held_out:
        raise ValueError(
            f"no class of {dataset.root} has two videos that can be decoded, so none can be held"
            " out; add videos or give a validation folder"
        )
    if others:
        logger.warning(
            "%s: no video is held out of %d of %d classes, which have fewer than two to choose"
            " from: %s",
            dataset.root,
            len(others),
            len(dataset.classes),
            shortened(others),
        )
    train_set = dataset.subset([i for i in range(len(dataset)) if i not in held_out], train=True)
    train_set.failed, train_set.missing = dataset.failed, dataset.missing
    return train_set, dataset.subset(sorted(held_out), train=False, clips=clips, sampling=sampling)


def _draw(labels: Sequence[Sequence[int]], classes: int, fraction: float, seed: int) -> set[int]:
    """The videos to hold out, by their labels: every class keeps one at least."""
    by_class: list[list[int]] = [[] for _ in range(classes)]
    for index, own in enumerate(labels):
        for label in own:
            by_class[label].append(index)
    kept = [len(videos) for videos in by_class]
    held_out: set[int] = set()
    generator = torch.Generator().manual_seed(seed)
    for label, videos in enumerate(by_class):
        target = len(videos) - max(1, round(fraction * len(videos)))
        for position in torch.randperm(len(videos), generator=generator).tolist():
            index = videos[position]
            # Those that other classes gave up count here, too.
            if kept[label] <= max(1, target):
                break
            if index not in held_out and all(kept[other] > 1 for other in labels[index]):
                held_out.add(index)
                for other in labels[index]:
                    kept[other] -= 1
    return held_out


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected above 0 and below 1")
