"""Holding out some videos of each class for validation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from r21d.video import InputSpec, VideoFolder


def split_folder(
    root: str | os.PathLike[str],
    spec: InputSpec,
    fraction: float,
    *,
    clips: int = 1,
    flip: bool = True,
    seed: int = 0,
) -> tuple[VideoFolder, VideoFolder]:
    """Split the videos of one folder into a training and a validation set.

    Of each class ``fraction`` of the videos is held out at random, but at least one and never
    all. Files that cannot be decoded are on neither side; the training set's ``failed`` lists
    them. Files are split, not recordings: where several files are pieces of one recording, make
    two folders by hand, or validation flatters.

    Raises:
        ValueError: ``fraction`` is not between 0 and 1, or a class has fewer than two videos that
            can be decoded.
    """
    from r21d.video import VideoFolder

    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected above 0 and below 1")
    folder = VideoFolder(root, spec, train=True, flip=flip, seed=seed)
    held_out: set[int] = set()
    generator = torch.Generator().manual_seed(seed)
    for label, name in enumerate(folder.classes):
        videos = [index for index, (_, own) in enumerate(folder.samples) if own == label]
        if len(videos) < 2:
            count = "one video" if videos else "no video"
            raise ValueError(
                f"class {name} of {root} has {count} that can be decoded, so none can be held out;"
                " add videos or give a validation folder"
            )
        number = min(len(videos) - 1, max(1, round(fraction * len(videos))))
        order = torch.randperm(len(videos), generator=generator)[:number]
        held_out |= {videos[index] for index in order.tolist()}
    kept = [index for index in range(len(folder)) if index not in held_out]
    train_set = folder.subset(kept, train=True)
    train_set.failed = folder.failed
    return train_set, folder.subset(sorted(held_out), train=False, clips=clips)
