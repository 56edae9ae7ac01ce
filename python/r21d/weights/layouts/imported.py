"""What an importer makes of a published file, and the errors all importers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Imported:
    """Published weights in this library's terms.

    Attributes:
        layout: the layout that was recognised, for people: ``"torchvision"``, for example.
        state_dict: tensors by our names; fits ``create_model(**config).state_dict()`` exactly.
        config: keyword arguments of :func:`r21d.create_model`.
        classes: label names in the order of the logits; empty where they are not known.
        input: the fields of :class:`r21d.video.InputSpec`; empty where they are not known.
        assumed: what no key and no shape tells and was therefore taken from what its publisher
            says, a sentence each.
    """

    layout: str
    state_dict: dict[str, torch.Tensor]
    config: dict[str, Any]
    classes: list[str]
    input: dict[str, Any]
    assumed: tuple[str, ...] = field(default=())


class LayoutError(ValueError):
    """Tensors look like a known layout and are not quite; the message says what differs."""
