"""The networks that can be built by name.

A network of the paper is data: a kind of convolution for each of its five groups (paper, Figure 1
and section 3) and a number of blocks for each group (paper, Table 1).  Adding one is adding a row.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

from r21d.models.base import VideoModel
from r21d.models.i3d import I3D
from r21d.models.resnet import Architecture, VideoResNet

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks in conv2_x to conv5_x by depth (paper, Table 1)."""

KINDS: dict[str, tuple[str, str, str, str, str]] = {
    "r2d": ("2d-merged", "2d", "2d", "2d", "2d"),
    "fr2d": ("2d", "2d", "2d", "2d", "2d"),
    "r3d": ("3d", "3d", "3d", "3d", "3d"),
    "mc2": ("3d", "2d", "2d", "2d", "2d"),
    "mc3": ("3d", "3d", "2d", "2d", "2d"),
    "mc4": ("3d", "3d", "3d", "2d", "2d"),
    "mc5": ("3d", "3d", "3d", "3d", "2d"),
    "rmc2": ("2d", "3d", "3d", "3d", "3d"),
    "rmc3": ("2d", "2d", "3d", "3d", "3d"),
    "rmc4": ("2d", "2d", "2d", "3d", "3d"),
    "rmc5": ("2d", "2d", "2d", "2d", "3d"),
    "r2plus1d": ("(2+1)d", "(2+1)d", "(2+1)d", "(2+1)d", "(2+1)d"),
}
"""Kinds of conv1 to conv5_x by family: MCx is 2-D from group x on, rMCx before it."""

ARCHITECTURES: dict[str, Architecture] = {
    f"{family}_{depth}": Architecture(f"{family}_{depth}", kinds, blocks)
    for family, kinds in KINDS.items()
    for depth, blocks in BLOCKS.items()
}

_DEFAULTS: dict[str, Any] = {"num_classes": 400, "midplanes": "paper"}


def list_models() -> list[str]:
    """The names that :func:`create_model` knows, sorted: the paper's 24 networks and I3D."""
    return sorted([*ARCHITECTURES, "i3d"])


def create_model(
    name: str,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    midplanes: str | None = None,
    **options: Any,
) -> VideoModel:
    """Build a video network, with fresh weights or with published ones or those of a file.

    With ``weights``, whatever is not given is read from them: classes, clip length, eps and all
    other options, label names and the input's specification.  What is given and differs from them
    adapts the weights where that has a meaning: other ``num_classes`` get a fresh head, other
    ``in_channels`` the mean of the first convolution's channels, another ``clip_len`` of an R2D
    its frames resampled.

    Args:
        name: one of :func:`list_models`.
        num_classes: outputs of the last layer (400).
        weights: a name of :func:`r21d.list_weights` (``"kinetics400_torchvision"``), a file of
            any layout that :func:`r21d.load_weights` knows, or the URL of one.
        midplanes: ``"paper"`` (M of section 3.5 for every convolution, the default) or
            ``"torchvision"`` (M once per block, which its published weights need).
        options: ``in_channels``, ``clip_len``, ``blocks``, ``widths``, ``stem_channels``,
            ``stem_midplanes``, ``stem_pool``, ``shortcut``, ``eps``, ``dropout`` and
            ``zero_init_residual``, as in :class:`VideoResNet`; for ``i3d`` those of :class:`I3D`.

    Returns:
        A :class:`VideoResNet` or :class:`I3D` in training mode.

    Raises:
        ValueError: an unknown name, a bad argument, or weights that do not fit.
        TypeError: an option that the network does not have.
        CheckpointError: ``weights`` cannot be read.
        WeightsUnavailable: published weights cannot be fetched.
    """
    check_name(name)
    given = {"num_classes": num_classes, "midplanes": midplanes}
    given = {key: value for key, value in given.items() if value is not None} | options
    if weights is not None:
        from r21d.weights.checkpoint import model_from_weights

        return model_from_weights(weights, name, given)
    return build_model(name, given)


def build_model(name: str, options: Mapping[str, Any]) -> VideoModel:
    """The network ``name`` with fresh weights and ``options`` over the defaults."""
    if name != "i3d":
        return VideoResNet(ARCHITECTURES[name], **{**_DEFAULTS, **options})
    if "midplanes" in options:
        raise ValueError(
            f"midplanes={options['midplanes']!r} is for (2+1)D networks, and i3d has no such "
            "convolution; leave it out"
        )
    return I3D(**options)


def check_name(name: str) -> None:
    """ValueError, with names that look alike, where ``name`` is not a known network."""
    known = list_models()
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"name={name!r} is not a known network; {hint}known are {', '.join(known)}"
        )
