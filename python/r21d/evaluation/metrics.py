"""Accuracies of scores: pure functions, for the scores of clips, of videos, or of a saved file.

Everywhere ``scores`` are (N, classes), a row a clip or a video, and ``labels`` its true classes:
one, or several where the data set is multi-label. Equal scores rank the lower class first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Labels = Sequence[tuple[int, ...]]


def label_ranks(scores: Tensor, labels: Labels) -> Tensor:
    """int64 (N,): how many classes come before the best placed label of each row.

    A row is a hit at k, Sports-1M's Hit@k where there are several labels, when this is below k.

    Raises:
        ValueError: there are not as many rows as labels, or a row has no label.
        IndexError: a label is not among the classes.
    """
    _check_rows(scores, labels)
    if not labels:
        return torch.zeros(0, dtype=torch.int64)
    width = max(len(row) for row in labels)
    # Rows with fewer labels repeat their first one, which changes no minimum.
    padded = torch.tensor([[*row, *row[:1] * (width - len(row))] for row in labels])
    if not 0 <= int(padded.min()) <= int(padded.max()) < scores.shape[1]:
        raise IndexError(f"labels must be in 0..{scores.shape[1] - 1}, the scores' classes")
    return torch.stack([_rank(scores, column) for column in padded.unbind(1)]).amin(0)


def accuracy(ranks: Tensor, k: int) -> float:
    """The share of `label_ranks` below ``k``; NaN of none."""
    return (ranks < k).double().mean().item()


def confusion_matrix(scores: Tensor, labels: Labels) -> Tensor:
    """int64 (classes, classes): rows by true class (row) and top class (column).

    With several labels a row of ``scores`` counts once for each of them.
    """
    _check_rows(scores, labels)
    classes = scores.shape[1]
    tops = scores.argmax(1).tolist()
    cells = [label * classes + top for row, top in zip(labels, tops, strict=True) for label in row]
    counts = torch.bincount(torch.tensor(cells, dtype=torch.int64), minlength=classes**2)
    return counts.view(classes, classes)


def per_class_accuracy(confusion: Tensor) -> dict[int, float]:
    """The share on the diagonal of each row that counts anything, by class."""
    totals = confusion.sum(1).tolist()
    hits = confusion.diagonal().tolist()
    rows = enumerate(zip(hits, totals, strict=True))
    return {label: hit / total for label, (hit, total) in rows if total}


def cross_entropy(logits: Tensor, labels: tuple[int, ...]) -> Tensor:
    """float64 (N,): the loss of rows with the same ``labels``, each an equal part of the truth."""
    return -logits.double().log_softmax(1)[:, list(labels)].mean(1)


def _rank(scores: Tensor, label: Tensor) -> Tensor:
    """How many classes come before ``label`` (N,) in each row."""
    label = label[:, None]
    own = scores.gather(1, label)
    lower = torch.arange(scores.shape[1]) < label
    return ((scores > own) | ((scores == own) & lower)).sum(1)


def _check_rows(scores: Tensor, labels: Labels) -> None:
    if scores.dim() != 2 or len(scores) != len(labels):
        raise ValueError(
            f"scores must be (N, classes) with a row for each of the {len(labels)} labels,"
            f" got {tuple(scores.shape)}"
        )
    if not all(labels):
        raise ValueError(f"row {[bool(row) for row in labels].index(False)} has no label")
