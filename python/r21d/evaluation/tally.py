"""What one process found out about its videos, and how several processes' findings join."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from r21d.evaluation import metrics


@dataclass
class Tally:
    """Findings by video, in the order they came; `merge` sorts them.

    Attributes:
        videos: numbers of the videos.
        labels: true classes of each.
        means: float64 (classes,) each: mean of its clips' softmax scores.
        ranks: int64 (K,) each: `metrics.label_ranks` of its clips.
        losses: cross-entropy of its clips, summed.
        scores: float32 (K, classes) each: softmax scores of its clips; empty unless kept.
        failed: number, path and reason of each that could not be decoded.
    """

    videos: list[int] = field(default_factory=list)
    labels: list[tuple[int, ...]] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    ranks: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    failed: list[tuple[int, str, str]] = field(default_factory=list)

    def add(
        self, video: int, name: str, labels: tuple[int, ...], logits: Tensor, keep_scores: bool
    ) -> None:
        """Count one video's clips, logits (K, classes).

        Raises:
            ValueError: it has no label, or one that is not among the classes.
            FloatingPointError: a logit is infinite or NaN.
        """
        classes = logits.shape[1]
        if not labels:
            raise ValueError(f"{name} has no label")
        if outside := [label for label in labels if not 0 <= label < classes]:
            raise ValueError(
                f"{name} has label {outside[0]}, but the network has {classes} outputs"
            )
        if not logits.isfinite().all():
            raise FloatingPointError(f"the network's scores for {name} are not finite")
        scores = logits.double().softmax(1)
        self.videos.append(video)
        self.labels.append(labels)
        self.means.append(scores.mean(0))
        # Of logits: softmax may round different ones to equal scores.
        self.ranks.append(metrics.label_ranks(logits, [labels] * len(logits)))
        self.losses.append(metrics.cross_entropy(logits, labels).sum().item())
        if keep_scores:
            self.scores.append(scores.float())

    def packed(self) -> Packed:
        """The same in few tensors, which travel faster between processes than many."""
        return Packed(
            self.videos,
            self.labels,
            torch.stack(self.means) if self.means else None,
            torch.cat(self.ranks) if self.ranks else None,
            [len(ranks) for ranks in self.ranks],
            self.losses,
            torch.cat(self.scores) if self.scores else None,
            self.failed,
        )


@dataclass(frozen=True)
class Packed:
    """A `Tally` in few tensors; None stands for those without rows."""

    videos: list[int]
    labels: list[tuple[int, ...]]
    means: Tensor | None
    ranks: Tensor | None
    counts: list[int]
    losses: list[float]
    scores: Tensor | None
    failed: list[tuple[int, str, str]]

    def unpacked(self) -> Tally:
        """The `Tally` of which this was made."""
        return Tally(
            self.videos,
            self.labels,
            [] if self.means is None else list(self.means),
            [] if self.ranks is None else list(self.ranks.split(self.counts)),
            self.losses,
            [] if self.scores is None else list(self.scores.split(self.counts)),
            self.failed,
        )


def merge(parts: list[Packed]) -> Tally:
    """The findings of all processes in the order of the videos."""
    tallies = [part.unpacked() for part in parts]
    joined = Tally(failed=sorted(row for tally in tallies for row in tally.failed))
    places = [
        (video, part, i)
        for part, tally in enumerate(tallies)
        for i, video in enumerate(tally.videos)
    ]
    for video, part, i in sorted(places):
        tally = tallies[part]
        joined.videos.append(video)
        joined.labels.append(tally.labels[i])
        joined.means.append(tally.means[i])
        joined.ranks.append(tally.ranks[i])
        joined.losses.append(tally.losses[i])
        if tally.scores:
            joined.scores.append(tally.scores[i])
    return joined
