"""The networks of the paper, built by name."""

from __future__ import annotations

from r21d.models.info import LayerInfo, ModelInfo, model_info
from r21d.models.registry import create_model, list_models
from r21d.models.resnet import Architecture, VideoResNet

__all__ = [
    "Architecture",
    "LayerInfo",
    "ModelInfo",
    "VideoResNet",
    "create_model",
    "list_models",
    "model_info",
]
