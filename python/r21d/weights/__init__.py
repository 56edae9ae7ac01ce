"""Weights in files: checkpoints with what is needed to use them."""

from __future__ import annotations

from r21d.weights.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]
