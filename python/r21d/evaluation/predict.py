"""What is in a video, by the mean score of its clips."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from r21d.evaluation.evaluate import class_names
from r21d.evaluation.forward import score_clips
from r21d.models import VideoModel

if TYPE_CHECKING:
    from r21d.video import InputSpec


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
    model: VideoModel,
    path: str | os.PathLike[str],
    clips: int = 10,
    topk: int = 5,
    sampling: str = "even",
    crops: int = 1,
    *,
    seed: int = 0,
    spec: InputSpec | None = None,
) -> Prediction:
    """Classify a video by several clips, scores averaged after softmax.

    Ten clips are the paper's test protocol (section 4.1); ``sampling``, ``clips``, ``crops`` and
    ``seed`` are those of :class:`r21d.video.ClipSampling`. Random clips depend on the file's name;
    those of a data set on the path below its root, and so they may be others. The input is made as
    ``spec`` says, by default ``model.input_spec``, which checkpoints bring along (without one:
    ``InputSpec()``), and classes are named by ``model.classes`` (without: their numbers).

    Raises:
        ValueError: ``topk``, ``clips``, ``sampling`` or ``crops`` is out of range.
        VideoError: the file cannot be decoded.
        FloatingPointError: the network's scores are not finite.
    """
    from r21d.video import ClipSampling, ClipTransform, InputSpec, probe
    from r21d.video.clips import read_input

    if topk < 1:
        raise ValueError(f"topk is {topk}, expected at least 1")
    spec = spec or model.input_spec or InputSpec()
    chosen = ClipSampling(sampling, clips, crops, seed)
    parts = chosen.parts(probe(path), spec, Path(path).name)
    transform = ClipTransform(spec, crops=crops, normalize=False)
    clips_read = (transform(read_input(path, starts, spec)) for starts in parts)
    scores = score_clips(model, clips_read, spec=spec).mean(0)
    names = class_names(None, model, len(scores))
    best = torch.sort(scores, descending=True, stable=True)
    order = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Prediction(
        path=os.fspath(path),
        top=[(names[index], score) for index, score in order[:topk]],
        scores=scores,
        starts=[start for starts in parts for start in starts],
    )
