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
        tensors: by name, as :func:`r21d.weights.state_dict.read_state_dict` returns them.  Where
            no layout has the names as they are, one component that all begin with is taken off.

    Returns:
        What was recognised, or None where no layout knows the keys.

    Raises:
        LayoutError: the keys are those of a known layout, but some are missing, unknown or of
            a wrong shape, or the network is one that this library does not have.
    """
    imported = _convert(tensors)
    if imported is not None:
        return imported
    # A training framework keeps the network as an attribute: model.stem.0.weight.
    prefix = _common_prefix(tensors)
    if not prefix:
        return None
    try:
        return _convert({name.removeprefix(prefix): t for name, t in tensors.items()})
    except LayoutError as error:
        raise LayoutError(f"without {prefix!r} before every name, {error}") from error


def _convert(tensors: Mapping[str, torch.Tensor]) -> Imported | None:
    for name in LAYOUTS:
        # Imported here: a layout builds networks to compare with, and they import the weights.
        module = import_module(f"{__name__}.{name}")
        if module.matches(tensors):
            imported: Imported = module.convert(tensors)
            return imported
    return None


def _common_prefix(tensors: Mapping[str, torch.Tensor]) -> str:
    """The first component of all names and its dot; empty where they have none in common."""
    firsts = {name.partition(".")[0] for name in tensors}
    dotted = all("." in name for name in tensors)
    return f"{firsts.pop()}." if len(firsts) == 1 and dotted else ""
