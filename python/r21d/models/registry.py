"""The networks that can be built by name.

A network is data: a kind of convolution for each of its five groups (paper, Figure 1 and
section 3) and a number of blocks for each group (paper, Table 1).  Adding one is adding a row.
"""

from __future__ import annotations

import difflib
import os
from typing import Any

from r21d.models.resnet import Architecture, VideoResNet

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}

_TABLE: tuple[tuple[str, int, tuple[str, str, str, str, str]], ...] = (
    ("r2plus1d", 18, ("(2+1)d",) * 5),
    ("r2plus1d", 34, ("(2+1)d",) * 5),
    ("fr2d", 18, ("2d",) * 5),
    ("r3d", 18, ("3d",) * 5),
    ("mc3", 18, ("3d", "3d", "2d", "2d", "2d")),
)

ARCHITECTURES: dict[str, Architecture] = {
    f"{family}_{depth}": Architecture(f"{family}_{depth}", kinds, _BLOCKS[depth])
    for family, depth, kinds in _TABLE
}


def list_models() -> list[str]:
    """The names that :func:`create_model` knows, sorted."""
    return sorted(ARCHITECTURES)


def create_model(
    name: str,
    num_classes: int = 400,
    weights: str | os.PathLike[str] | None = None,
    midplanes: str = "paper",
    **options: Any,
) -> VideoResNet:
    """Build a video network of the paper, with fresh weights or with those of a file.

    Args:
        name: one of :func:`list_models`.
        num_classes: outputs of the last layer.
        weights: a checkpoint written by :func:`r21d.weights.save_checkpoint`, or a plain state
            dict in torchvision's layout (``.safetensors``, ``.pth``).  It must have been made for
            the same arguments; ``create_model(**load_checkpoint(path).config, weights=path)``
            takes them from the checkpoint.
        midplanes: ``"paper"`` (M of section 3.5 for every convolution) or ``"torchvision"`` (M
            once per block, which its published weights need).
        options: ``in_channels``, ``clip_len``, ``blocks``, ``widths``, ``stem_channels``, ``eps``,
            ``dropout`` and ``zero_init_residual``, as in :class:`VideoResNet`.

    Returns:
        A :class:`VideoResNet` in training mode.

    Raises:
        ValueError: an unknown name, a bad argument, or weights that do not fit.
        CheckpointError: ``weights`` cannot be read.
    """
    if name not in ARCHITECTURES:
        close = difflib.get_close_matches(str(name), ARCHITECTURES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"name={name!r} is not a known network; {hint}known are {', '.join(list_models())}"
        )
    model = VideoResNet(ARCHITECTURES[name], num_classes, midplanes, **options)
    if weights is not None:
        from r21d.weights.checkpoint import load_weights

        load_weights(model, weights)
    return model
