"""Clip and video accuracy of a network on a folder of videos."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from r21d.evaluation.progress import progress_bar

_log = logging.getLogger(__name__)


class ClipDataset(Protocol):
    """What training and evaluation ask of a dataset; :class:`r21d.video.VideoFolder` has it.

    Item i is ``(clips, label, video)``: float32 (K, 3, T, h, w), the class index, and the number
    of the video. Optional attributes: ``classes`` (names), ``spec`` (the InputSpec), ``failed``
    (files found undecodable as ``(path, reason)``), ``samples`` (``(path, label)`` by video).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int, int]: ...


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Accuracies as fractions of one.

    Clip@k counts clips, video@k counts videos by the mean of their clips' softmax scores (the
    paper's Table 2 measures; averaging after softmax is VMZ's). With fewer than five classes the
    top-5 figures are one by definition. Equal scores rank the lower class index first.
    """

    clip_top1: float
    clip_top5: float
    video_top1: float
    video_top5: float
    loss: float
    """Mean cross-entropy over clips."""
    clips: int
    videos: int
    per_class: dict[str, float]
    """video@1 of each class that has videos."""
    confusion: Tensor
    """int64 (classes, classes): videos by true class (row) and top class (column)."""
    classes: list[str]
    failed: list[tuple[str, str]]
    """Files left out, as (path, reason)."""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        failed = [{"path": path, "reason": reason} for path, reason in self.failed]
        return {**values, "confusion": self.confusion.tolist(), "failed": failed}


def evaluate(
    model: nn.Module, dataset: ClipDataset, *, batch_size: int = 32, workers: int = 0
) -> EvalResult:
    """Classify every clip of every video of ``dataset`` with ``model`` in eval mode.

    Runs on the device and in the dtype of the model's first parameter; the model's mode is put
    back. A video that cannot be decoded is left out and listed in ``failed``.

    Args:
        model: Maps (N, 3, T, H, W) to logits (N, classes).
        dataset: See :class:`ClipDataset`.
        batch_size: Clips a forward pass.
        workers: Decoding processes; 0 decodes in this one.

    Raises:
        ValueError: no video could be decoded, or a label is not among the model's outputs.
        FloatingPointError: a score is infinite or NaN; the message names the video.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    tally: _Tally | None = None
    failed = [(str(path), reason) for path, reason in getattr(dataset, "failed", [])]
    with evaluating(model), progress_bar("evaluating", len(dataset)) as advance:
        for batch, broken in _video_batches(dataset, batch_size, workers):
            failed += broken
            if batch:
                logits = _logits(model, torch.cat([clips for clips, _, _ in batch]), batch_size)
                tally = tally or _Tally(logits.shape[1])
                sizes = [len(clips) for clips, _, _ in batch]
                for rows, (_, label, video) in zip(logits.split(sizes), batch, strict=True):
                    tally.add(rows, label, _name(dataset, video))
            advance(len(batch) + len(broken))
    if tally is None:
        first = f", the first: {failed[0][1]}" if failed else ""
        raise ValueError(f"no video could be evaluated ({len(failed)} failed{first})")
    return tally.result(class_names(dataset, model, tally.classes), failed)


def class_names(dataset: object, model: object, classes: int | None = None) -> list[str]:
    """Names of the classes: the dataset's, else the model's, else their numbers."""
    for owner in (dataset, model):
        names = getattr(owner, "classes", None)
        if names is not None and classes in (None, len(names)):
            return [str(name) for name in names]
    if classes is None:
        config = getattr(model, "config", {})
        classes = int(config.get("num_classes", 0))
    return [str(number) for number in range(classes)]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; each module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def score_clips(model: nn.Module, clips: Tensor, batch_size: int = 16) -> Tensor:
    """Softmax scores, float32 (K, classes) on the CPU, of float32 clips (K, 3, T, h, w).

    Raises:
        FloatingPointError: a score is infinite or NaN.
    """
    with evaluating(model):
        scores = _logits(model, clips, batch_size).softmax(1)
    if not scores.isfinite().all():
        raise FloatingPointError("the network's scores are not finite; its weights are damaged")
    return scores


def _logits(model: nn.Module, clips: Tensor, batch_size: int) -> Tensor:
    """Float32 logits on the CPU, ``batch_size`` clips at a time."""
    home = next(model.parameters())
    outputs = []
    for part in clips.split(batch_size):
        part = part.to(device=home.device, dtype=home.dtype)
        outputs.append(model(part.contiguous(memory_format=torch.channels_last_3d)).float().cpu())
    return torch.cat(outputs)


class _Tally:
    """Running counts over videos."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.clips = self.videos = 0
        self.clip_hits = {1: 0, 5: 0}
        self.video_hits = {1: 0, 5: 0}
        self.loss = 0.0

    def add(self, logits: Tensor, label: int, video: str) -> None:
        """Count one video's clips, logits (K, classes)."""
        if not 0 <= label < self.classes:
            raise ValueError(
                f"{video} has label {label}, but the network has {self.classes} outputs"
            )
        if not logits.isfinite().all():
            raise FloatingPointError(f"the network's scores for {video} are not finite")
        scores = logits.double().softmax(1)
        mean = scores.mean(0, keepdim=True)
        labels = torch.full((len(logits),), label)
        self.loss += nn.functional.cross_entropy(logits.double(), labels, reduction="sum").item()
        for k in (1, 5):
            self.clip_hits[k] += int((_rank(scores, label) < k).sum())
            self.video_hits[k] += int((_rank(mean, label) < k).sum())
        self.confusion[label, _top(mean)] += 1
        self.clips += len(logits)
        self.videos += 1

    def result(self, classes: list[str], failed: list[tuple[str, str]]) -> EvalResult:
        totals = self.confusion.sum(1).tolist()
        hits = self.confusion.diagonal().tolist()
        return EvalResult(
            clip_top1=self.clip_hits[1] / self.clips,
            clip_top5=self.clip_hits[5] / self.clips,
            video_top1=self.video_hits[1] / self.videos,
            video_top5=self.video_hits[5] / self.videos,
            loss=self.loss / self.clips,
            clips=self.clips,
            videos=self.videos,
            per_class={
                name: hit / total
                for name, hit, total in zip(classes, hits, totals, strict=True)
                if total
            },
            confusion=self.confusion,
            classes=classes,
            failed=failed,
        )


def _rank(scores: Tensor, label: int) -> Tensor:
    """How many classes come before ``label`` in each row of ``scores``."""
    own = scores[:, label : label + 1]
    return (scores > own).sum(1) + (scores[:, :label] == own).sum(1)


def _top(scores: Tensor) -> int:
    """The class of rank 0; ``argmax`` leaves open which of equal scores it takes."""
    return int((scores[0] == scores[0].max()).nonzero()[0])


_Video = tuple[Tensor, int, int]


def _video_batches(
    dataset: ClipDataset, batch_size: int, workers: int
) -> Iterator[tuple[list[_Video], list[tuple[str, str]]]]:
    """Videos gathered until they hold a batch of clips, and the files that failed meanwhile."""
    loader = DataLoader(_Guarded(dataset), batch_size=None, num_workers=workers)
    batch: list[_Video] = []
    broken: list[tuple[str, str]] = []
    for item in loader:
        if isinstance(item[0], str):
            _log.warning("left out: %s", item[1])
            broken.append((item[0], item[1]))
        else:
            batch.append(item)
        if sum(len(clips) for clips, _, _ in batch) >= batch_size:
            yield batch, broken
            batch, broken = [], []
    if batch or broken:
        yield batch, broken


class _Guarded(Dataset[Any]):
    """``dataset``, where a video that fails to decode is ``(path, reason)`` and not an exception.

    An exception in a worker process would end the whole pass.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        from r21d.video import VideoError

        try:
            clips, label, video = self.dataset[index]
        except VideoError as error:
            return _name(self.dataset, index), str(error)
        return clips, int(label), int(video)


def _name(dataset: object, video: int) -> str:
    samples: Sequence[tuple[Any, int]] | None = getattr(dataset, "samples", None)
    return f"video {video}" if samples is None else str(samples[video][0])
