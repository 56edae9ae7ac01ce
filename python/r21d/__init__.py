"""Video recognition with R(2+1)D networks, from a video file to a trained network.

``import r21d`` needs torch alone; a name that needs more is imported when it is first used, and
says which extra to install where something is missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r21d.evaluation.evaluate import evaluate
    from r21d.evaluation.predict import predict
    from r21d.models import create_model, list_models, model_info
    from r21d.video import (
        ClipSampling,
        ClipTransform,
        InputSpec,
        Normalize,
        VideoDataset,
        VideoFolder,
        probe,
        read_clip,
        read_clips,
        read_video,
    )
    from r21d.video.lists import open_list
    from r21d.weights import list_weights, load_model, load_weights

__version__ = "0.1.0"

__all__ = [
    "ClipSampling",
    "ClipTransform",
    "InputSpec",
    "Normalize",
    "VideoDataset",
    "VideoFolder",
    "__version__",
    "create_model",
    "evaluate",
    "list_models",
    "list_weights",
    "load_model",
    "load_weights",
    "model_info",
    "open_list",
    "predict",
    "probe",
    "read_clip",
    "read_clips",
    "read_video",
]

_HOMES = {
    "ClipSampling": "r21d.video",
    "ClipTransform": "r21d.video",
    "InputSpec": "r21d.video",
    "Normalize": "r21d.video",
    "VideoDataset": "r21d.video",
    "VideoFolder": "r21d.video",
    "create_model": "r21d.models",
    "evaluate": "r21d.evaluation.evaluate",
    "list_models": "r21d.models",
    "list_weights": "r21d.weights",
    "load_model": "r21d.weights",
    "load_weights": "r21d.weights",
    "model_info": "r21d.models",
    "open_list": "r21d.video.lists",
    "predict": "r21d.evaluation.predict",
    "probe": "r21d.video",
    "read_clip": "r21d.video",
    "read_clips": "r21d.video",
    "read_video": "r21d.video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
