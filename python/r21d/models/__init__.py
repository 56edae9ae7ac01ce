"""The networks of the paper, and I3D, built by name."""

from __future__ import annotations

from r21d.models.base import VideoModel
from r21d.models.i3d import I3D
from r21d.models.info import LayerInfo, ModelInfo, model_info
from r21d.models.registry import create_model, list_models
from r21d.models.resnet import Architecture, VideoResNet

__all__ = [
    "I3D",
    "Architecture",
    "LayerInfo",
    "ModelInfo",
    "VideoModel",
    "VideoResNet",
    "create_model",
    "list_models",
    "model_info",
]
