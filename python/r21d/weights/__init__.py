"""Weights: everyone's files read, ours written, the published ones by name."""

from __future__ import annotations

from r21d.weights.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_model,
    load_weights,
    save_checkpoint,
)
from r21d.weights.registry import (
    PublishedWeights,
    WeightsUnavailable,
    list_weights,
    published,
    register_weights,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "PublishedWeights",
    "WeightsUnavailable",
    "list_weights",
    "load_checkpoint",
    "load_model",
    "load_weights",
    "published",
    "register_weights",
    "save_checkpoint",
]
