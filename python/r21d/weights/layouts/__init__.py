"""The layouts in which others publish their weights, each in a module of its own.

A layout module has ``NAME``, ``matches(tensors)``, which looks at the names alone, and
``convert(tensors)``, which returns an :class:`Imported` or raises :class:`LayoutError` that says
which keys and shapes are not as they should be.  Adding a layout is adding a module and its name
in one list.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import torch

from r21d.weights.layouts.imported import Imported, LayoutError

__all__ = ["LAYOUTS", "Imported", "LayoutError", "import_layout"]

LAYOUTS = ("torchvision", "mmaction2", "caffe2", "i3d")
"""The layout modules, in the order they are asked."""


def import_layout(tensors: Mapping[str, torch.Tensor]) -> Imported | None:
    """Recognise published weights by their keys and bring them into this library's terms.

    Args:
        tensors: by name, as :func:`r21d.weights.state_dict.read_state_dict` returns them.

    Returns:
        What was recognised, or None where no layout knows the keys.

    Raises:
        LayoutError: the keys are those of a known layout, but some are missing, unknown or of
            a wrong shape, or the network is one that this library does not have.
    """
    for name in LAYOUTS:
        # Imported here: a layout builds networks to compare with, and they import the weights.
        module = import_module(f"{__name__}.{name}")
        if module.matches(tensors):
            return module.convert(tensors)
    return None
