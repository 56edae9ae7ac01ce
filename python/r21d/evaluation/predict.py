"""What is in a video, by the mean score of its clips."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch import Tensor

from r21d.evaluation.evaluate import class_names, score_clips
from r21d.models import VideoModel


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The classes a network sees in one video."""

    path: str
    top: list[tuple[str, float]]
    """(class, score), best first; scores of all classes add up to one."""
    scores: Tensor
    """float32 (classes,): mean over clips of the softmax scores."""
    starts: list[float]
    """Where each clip begins, in seconds."""

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON values, without ``scores``."""
        top = [{"label": label, "score": score} for label, score in self.top]
        return {"path": self.path, "top": top, "starts": self.starts}


def predict(
    model: VideoModel, path: str | os.PathLike[str], clips: int = 10, topk: int = 5
) -> Prediction:
    """Classify a video by ``clips`` evenly spaced clips, scores averaged after softmax.

    Ten clips are the paper's test protocol (section 4.1). The input is made as
    ``model.input_spec`` says, which checkpoints bring along (without one: ``InputSpec()``), and
    classes are named by ``model.classes`` (without: their numbers).

    Raises:
        ValueError: ``clips`` or ``topk`` is below 1.
        VideoError: the file cannot be decoded.
        FloatingPointError: the network's scores are not finite.
    """
    from r21d.video import ClipTransform, InputSpec, probe, read_clips

    for name, value in (("clips", clips), ("topk", topk)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    spec = model.input_spec or InputSpec()
    starts = probe(path).clip_starts(spec.clip_len, spec.frame_rate, clips)
    frames = read_clips(path, starts, spec.clip_len, spec.frame_rate, size=spec.resize)
    scores = score_clips(model, ClipTransform(spec)(frames)).mean(0)
    names = class_names(None, model, len(scores))
    best = torch.sort(scores, descending=True, stable=True)
    order = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Prediction(
        path=os.fspath(path),
        top=[(names[index], score) for index, score in order[:topk]],
        scores=scores,
        starts=starts,
    )
