"""torchvision's own video networks as an outside oracle, also on a torch without its binary part.

A torchvision wheel of another build than the installed torch (a CUDA wheel on CPU-only torch, say)
cannot load its compiled operators, and its import then stops where it registers shape functions
for two of them.  The video networks use none of these, so declaring the two schemas is enough.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def load() -> ModuleType:
    """The module ``torchvision.models.video.resnet``.

    Raises:
        ImportError: torchvision is missing or cannot be imported, with the reason.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed")
    if not _native_operators_load(Path(spec.origin).parent):
        _declare_operators()
    try:
        return importlib.import_module("torchvision.models.video.resnet")
    except Exception as error:  # torchvision's import fails with whatever its operators raise
        raise ImportError(
            f"torchvision cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _native_operators_load(package: Path) -> bool:
    libraries = [path for path in package.glob("_C.*") if path.suffix in (".so", ".pyd")]
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return bool(libraries)


def _declare_operators() -> None:
    for operator in _OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", _SIGNATURE)
