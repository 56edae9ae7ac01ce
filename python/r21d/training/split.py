"""Holding out some videos of each class for validation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from r21d.video import InputSpec, VideoDataset


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
    dataset: VideoDataset, fraction: float, *, clips: int = 1, seed: int = 0
) -> tuple[VideoDataset, VideoDataset]:
    """Split the videos of a data set into a training and a validation set.

    Of each class ``fraction`` of the videos is held out at random, but at least one and never
    all; a video of several classes counts for the first of them. Files that cannot be decoded are
    on neither side; the training set's ``failed`` lists them. Files are split, not recordings:
    where several files are pieces of one recording, make two folders by hand, or validation
    flatters.

    Raises:
        ValueError: ``fraction`` is not between 0 and 1, or a class has fewer than two videos that
            can be decoded.
    """
    _check_fraction(fraction)
    by_class: list[list[int]] = [[] for _ in dataset.classes]
    for index, (_, label) in enumerate(dataset.samples):
        by_class[label if isinstance(label, int) else label[0]].append(index)
    held_out: set[int] = set()
    generator = torch.Generator().manual_seed(seed)
    for name, videos in zip(dataset.classes, by_class, strict=True):
        if len(videos) < 2:
            count = "one video" if videos else "no video"
            raise ValueError(
                f"class {name} of {dataset.root} has {count} that can be decoded, so none can be"
                " held out; add videos or give a validation folder"
            )
        number = min(len(videos) - 1, max(1, round(fraction * len(videos))))
        order = torch.randperm(len(videos), generator=generator)[:number]
        held_out |= {videos[index] for index in order.tolist()}
    kept = [index for index in range(len(dataset)) if index not in held_out]
    train_set = dataset.subset(kept, train=True)
    train_set.failed, train_set.missing = dataset.failed, dataset.missing
    return train_set, dataset.subset(sorted(held_out), train=False, clips=clips)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected above 0 and below 1")
