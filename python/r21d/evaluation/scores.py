"""The scores of an evaluation and their file: for fusing networks, and for metrics of one's own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from r21d.atomic import write_atomically
from r21d.weights.state_dict import import_safetensors

VERSION = 1
_KEY = "r21d_scores"


@dataclass(frozen=True)
class Scores:
    """What a network made of each video, in the data set's order.

    Attributes:
        names: the V videos' paths relative to the data set's root (posix), which tell which rows
            of two files belong together.
        classes: names of the C columns.
        labels: true classes of each video; one, or several where the set is multi-label.
        video_scores: float32 (V, C), mean over a video's clips and crops of their softmax scores.
        clip_counts: how many of them each video has, int64 (V,).
        clip_scores: float32 (sum of ``clip_counts``, C), softmax scores in the order of videos,
            clips, crops; None where they were not kept.
        protocol: how the clips were made, as `EvalResult.protocol`.
    """

    names: list[str]
    classes: list[str]
    labels: list[tuple[int, ...]]
    video_scores: Tensor
    clip_counts: Tensor
    clip_scores: Tensor | None = None
    protocol: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        videos, clips = len(self.names), int(self.clip_counts.sum())
        shapes = {"video_scores": (self.video_scores, (videos, len(self.classes)))}
        if self.clip_scores is not None:
            shapes["clip_scores"] = (self.clip_scores, (clips, len(self.classes)))
        for name, (tensor, shape) in shapes.items():
            if tensor.shape != shape or tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name} must be float32 {shape}, got {tensor.dtype} {tuple(tensor.shape)}"
                )
        if not videos == len(self.labels) == len(self.clip_counts):
            raise ValueError(
                f"{videos} names, {len(self.labels)} labels and {len(self.clip_counts)} counts of"
                " clips; expected as many"
            )


def save_scores(path: str | os.PathLike[str], scores: Scores) -> None:
    """Write ``scores`` as safetensors; the file appears whole or not at all.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    safetensors = import_safetensors()
    tensors = {
        "video_scores": scores.video_scores.contiguous(),
        "clip_counts": scores.clip_counts,
        "labels": torch.tensor([label for row in scores.labels for label in row]),
        "label_counts": torch.tensor([len(row) for row in scores.labels]),
    }
    if scores.clip_scores is not None:
        tensors["clip_scores"] = scores.clip_scores.contiguous()
    # ASCII: a name's bytes that are no UTF-8 survive as escapes. One text: safetensors writes
    # several in any order, and equal scores shall be equal files.
    values = {"names": scores.names, "classes": scores.classes, "protocol": scores.protocol}
    metadata = {_KEY: json.dumps({"version": VERSION, **values})}
    write_atomically(path, safetensors.torch.save(tensors, metadata=metadata))


def is_scores(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that `save_scores` wrote, by its header.

    Raises OSError where it cannot be read.
    """
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except safetensors.SafetensorError:
        return False


def load_scores(path: str | os.PathLike[str]) -> Scores:
    """Read what `save_scores` wrote.

    Raises:
        ValueError: the file is damaged, or no file of scores, or of a later version.
        OSError: it cannot be read.
    """
    safetensors = import_safetensors()
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of scores")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: no file of scores, or a damaged one ({error})") from error
    if _KEY not in metadata:
        raise ValueError(f"{path}: no file of scores; r21d eval --scores FILE writes them")
    values = json.loads(metadata[_KEY])
    if values["version"] != VERSION:
        raise ValueError(
            f"{path}: scores of version {values['version']}, this r21d reads {VERSION};"
            " use the r21d that wrote them, or a later one"
        )
    labels = tensors["labels"].split(tensors["label_counts"].tolist())
    return Scores(
        names=values["names"],
        classes=values["classes"],
        labels=[tuple(row.tolist()) for row in labels],
        video_scores=tensors["video_scores"],
        clip_counts=tensors["clip_counts"],
        clip_scores=tensors.get("clip_scores"),
        protocol=values["protocol"],
    )
