"""Training networks on folders of videos."""

from __future__ import annotations

from r21d.training.config import TrainConfig, learning_rate
from r21d.training.loop import TrainingDiverged, train
from r21d.training.state import ResumeError

__all__ = ["ResumeError", "TrainConfig", "TrainingDiverged", "learning_rate", "train"]
