"""What a run leaves after an epoch: its history, checkpoints, and how the best one validated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from r21d.atomic import write_atomically
from r21d.evaluation.evaluate import ClipDataset, EvalResult, class_names
from r21d.training.run_folder import BEST_FILE, BEST_RESULT_FILE, HISTORY_FILE, LAST_FILE

History = list[dict[str, Any]]
"""A row an epoch."""


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write ``history.jsonl``."""
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(folder / HISTORY_FILE, lines.encode())


def write_epoch(
    folder: Path,
    model: nn.Module,
    train_set: ClipDataset,
    history: Sequence[Mapping[str, Any]],
    result: EvalResult | None,
    notes: Mapping[str, Any],
) -> None:
    """Write what follows from the last epoch of ``history``.

    Args:
        folder: the run's.
        model: as it is after that epoch.
        train_set: names the classes and the input.
        history: all epochs.
        result: of that epoch's validation, or None where it had none.
        notes: JSON values that go into the checkpoints.
    """
    write_checkpoint(folder / LAST_FILE, model, train_set, notes)
    if result is not None and is_best(history):
        write_checkpoint(folder / BEST_FILE, model, train_set, notes)
        told = {
            "epoch": history[-1]["epoch"],
            **result.to_dict(),
            "predictions": predictions(result),
        }
        write_atomically(folder / BEST_RESULT_FILE, json.dumps(told, indent=1).encode())
    write_history(folder, history)


def write_checkpoint(
    path: Path, model: nn.Module, train_set: ClipDataset, notes: Mapping[str, Any]
) -> None:
    """Write ``model`` as a checkpoint with the classes and the input of ``train_set``."""
    from r21d.weights.checkpoint import save_checkpoint

    spec = getattr(train_set, "spec", None)
    save_checkpoint(
        path,
        model,
        classes=class_names(train_set, model),
        input=spec.to_dict() if spec is not None else {},
        extra={name: json.dumps(value) for name, value in notes.items()},
    )


def predictions(result: EvalResult) -> list[dict[str, Any]]:
    """What the network took each video for.

    ``name``, ``labels`` (names of its classes), ``predicted`` (the class of the best score),
    ``score`` (that one, the mean over the video's clips) and ``label_score`` (the best one of its
    labels).
    """
    if result.scores is None:
        return []
    scores, classes = result.scores, result.classes
    best = scores.video_scores.max(1)
    return [
        {
            "name": name,
            "labels": [classes[label] for label in labels],
            "predicted": classes[top],
            "score": score,
            "label_score": own[list(labels)].max().item(),
        }
        for name, labels, own, top, score in zip(
            scores.names,
            scores.labels,
            scores.video_scores,
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
    ]


def is_best(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last epoch validated strictly better than each one before.

    By video@1, then by clip@1.
    """
    if "video_top1" not in history[-1]:
        return False
    scores = [(row["video_top1"], row["clip_top1"]) for row in history if "video_top1" in row]
    return all(scores[-1] > score for score in scores[:-1])
