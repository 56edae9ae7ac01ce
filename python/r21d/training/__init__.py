"""Training networks on sets of videos, by the paper's protocol and without losing a run."""

from __future__ import annotations

from r21d.training.config import TrainConfig
from r21d.training.loop import train
from r21d.training.run_folder import ResumeError
from r21d.training.schedule import learning_rate
from r21d.training.signals import StopRequest, TrainingStopped
from r21d.training.state import TrainingInterrupted
from r21d.training.step import TrainingDiverged

__all__ = [
    "ResumeError",
    "StopRequest",
    "TrainConfig",
    "TrainingDiverged",
    "TrainingInterrupted",
    "TrainingStopped",
    "learning_rate",
    "train",
]
