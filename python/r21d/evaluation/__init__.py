"""Accuracy on sets of videos, and predictions for single ones."""

from __future__ import annotations

from r21d.evaluation.distributed import RankFailed
from r21d.evaluation.evaluate import ClipDataset, EvalResult, evaluate
from r21d.evaluation.predict import Prediction, predict
from r21d.evaluation.scores import Scores, load_scores, save_scores

__all__ = [
    "ClipDataset",
    "EvalResult",
    "Prediction",
    "RankFailed",
    "Scores",
    "evaluate",
    "load_scores",
    "predict",
    "save_scores",
]
