"""Holding out some videos of each class for validation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

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
) -> tuple[VideoFolder, VideoSubset]:
    """Split the videos of one folder into a training and a validation set.

    Of each class ``fraction`` of the videos is held out at random, but at least one and never
    all. Files are split, not recordings: where several files are pieces of one recording, make
    two folders by hand, or validation flatters.

    Raises:
        ValueError: ``fraction`` is not between 0 and 1, or a class has a single video.
    """
    from r21d.video import VideoFolder

    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected above 0 and below 1")
    train_set = VideoFolder(root, spec, train=True, flip=flip, seed=seed)
    held_out: set[Path] = set()
    generator = torch.Generator().manual_seed(seed)
    for label, name in enumerate(train_set.classes):
        files = [path for path, own in train_set.samples if own == label]
        if len(files) < 2:
            raise ValueError(
                f"class {name} of {root} has one video, so none can be held out; add videos or "
                "give a validation folder"
            )
        number = min(len(files) - 1, max(1, round(fraction * len(files))))
        order = torch.randperm(len(files), generator=generator)[:number]
        held_out |= {files[index] for index in order.tolist()}
    val_folder = VideoFolder(root, spec, train=False, clips=clips)
    kept = [i for i, (path, _) in enumerate(val_folder.samples) if path in held_out]
    failed = [(path, reason) for path, reason in val_folder.failed if path in held_out]
    train_set.samples = [sample for sample in train_set.samples if sample[0] not in held_out]
    if not kept:
        raise ValueError(f"none of the {len(held_out)} videos held out of {root} can be decoded")
    return train_set, VideoSubset(val_folder, kept, failed)


class VideoSubset(Dataset[tuple[Tensor, int, int]]):
    """Some videos of a test folder; ``classes``, ``spec``, ``samples``, ``failed`` as there."""

    def __init__(
        self, folder: VideoFolder, indices: Sequence[int], failed: list[tuple[Path, str]]
    ) -> None:
        self.folder = folder
        self.indices = list(indices)
        self.classes = folder.classes
        self.spec = folder.spec
        self.samples = [folder.samples[index] for index in self.indices]
        self.failed = failed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        clips, label, _ = self.folder[self.indices[index]]
        return clips, label, index
