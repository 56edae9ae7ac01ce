"""Accuracy on folders of videos, and predictions for single ones."""

from __future__ import annotations

from r21d.evaluation.evaluate import EvalResult, evaluate
from r21d.evaluation.predict import Prediction, predict

__all__ = ["EvalResult", "Prediction", "evaluate", "predict"]
