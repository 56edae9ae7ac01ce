"""Videos that carry the scores they shall be given, and the network that reads them off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from r21d.video import VideoError


class Written(nn.Module):
    """Reads its logits off the clip: the first row of the first frame's red."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.classes_out = classes
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return x[:, 0, 0, 0, : self.classes_out] * self.scale


class Scored(Dataset[tuple[Tensor, Any, int]]):
    """Videos as (label or labels, the probabilities of each clip); without clips, a broken one."""

    def __init__(self, videos: list[tuple[Any, list[list[float]] | None]]) -> None:
        self.videos = videos
        self.classes = ["x", "y", "z"]
        self.multilabel = any(isinstance(labels, tuple) for labels, _ in videos)
        self.items: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        label, clips = self.videos[index]
        if clips is None:
            raise VideoError(f"video {index} is damaged")
        if isinstance(label, tuple):
            label = torch.zeros(3).index_fill(0, torch.tensor(label, dtype=torch.int64), 1)
        if index in self.items:
            return self.items[index], label, index
        frames = torch.zeros(len(clips), 3, 1, 1, 8)
        frames[:, 0, 0, 0, : len(clips[0])] = torch.tensor(clips).log()
        return frames, label, index


class PartedScored(Scored):
    """The same, each clip a part; ``read`` notes how many clips came at once."""

    def __init__(self, videos: list[tuple[Any, list[list[float]] | None]]) -> None:
        super().__init__(videos)
        self.broken_parts: set[tuple[int, int]] = set()
        self.read: list[int] = []

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        item = super().__getitem__(index)
        self.read.append(len(item[0]))
        return item

    def part_count(self, index: int) -> int:
        return len(self.videos[index][1] or [0])

    def read_part(self, index: int, part: int) -> tuple[Tensor, Any, int]:
        if (index, part) in self.broken_parts:
            raise VideoError(f"part {part} of video {index} is damaged")
        frames, label, _ = super().__getitem__(index)
        self.read.append(1)
        return frames[part : part + 1], label, index
