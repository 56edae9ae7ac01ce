"""A prediction as a filmstrip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from r21d.plots.figure import BLUE, FAINT, INK, MARGIN, WIDTH, add_axes, new_figure, save, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = "#c3ccd6"
_FRAMES_SHOWN = 8
_GAP = 0.06
_BAR_HEIGHT = 0.3
_TALLEST = 2.6


def filmstrip(
    clip: torch.Tensor,
    title: str,
    scores: Sequence[tuple[str, float]],
    path: str | os.PathLike[str],
) -> None:
    """Write a PNG: up to 8 frames of a clip in a row above a bar for each label.

    ``clip`` is uint8 (T, H, W, 3) RGB; ``scores`` are (label, probability) pairs, best first. The
    file appears whole or not at all. Raises ValueError for another clip shape or dtype, an empty
    clip, no scores, or a probability outside [0, 1].
    """
    _check_filmstrip(clip, scores)
    count = min(_FRAMES_SHOWN, len(clip))
    chosen = torch.linspace(0, len(clip) - 1, count).round().long()
    # Few frames, and upright ones, are shown no larger than this.
    frame_height = min(_TALLEST, _fitting_width(max(count, 4)) * clip.shape[1] / clip.shape[2])
    frame_width = min(_fitting_width(count), frame_height * clip.shape[2] / clip.shape[1])
    heading, caption = 0.55, 0.4
    bars = _BAR_HEIGHT * len(scores)
    height = heading + frame_height + caption + bars + MARGIN
    figure = new_figure(WIDTH, height)
    figure.text(
        MARGIN / WIDTH,
        1 - heading / 2 / height,
        shortened(title, 100),
        fontsize=14,
        fontweight="bold",
        color=INK,
        va="center",
        parse_math=False,
    )
    bottom = height - heading - frame_height
    for place, index in enumerate(chosen.tolist()):
        left = MARGIN + place * (frame_width + _GAP)
        axes = add_axes(figure, left, bottom, frame_width, frame_height)
        axes.imshow(clip[index].numpy(), interpolation="antialiased", aspect="auto")
        axes.set_axis_off()
        axes.set_title(f"frame {index + 1}", y=0, pad=-4, va="top", fontsize=8, color=FAINT)
    _draw_bars(add_axes(figure, 2.8, MARGIN / 2, WIDTH - 3.9, bars), scores)
    save(figure, path)


def _fitting_width(count: int) -> float:
    """Inches for each of ``count`` frames in a row."""
    return (WIDTH - 2 * MARGIN - (count - 1) * _GAP) / count


def _draw_bars(axes: Axes, scores: Sequence[tuple[str, float]]) -> None:
    places = range(len(scores))
    colours = [BLUE, *[_BAR] * (len(scores) - 1)]
    axes.barh(places, [p for _, p in scores], height=0.66, color=colours)
    for place, (label, probability) in zip(places, scores, strict=True):
        style: dict[str, Any] = {
            "fontsize": 11,
            "va": "center_baseline",
            "fontweight": "bold" if place == 0 else "normal",
            "parse_math": False,
        }
        axes.text(-0.012, place, shortened(label, 30), ha="right", color=INK, **style)
        share = "<0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"
        axes.text(probability + 0.01, place, share, ha="left", color=INK, **style)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_axis_off()


def _check_filmstrip(clip: torch.Tensor, scores: Sequence[tuple[str, float]]) -> None:
    if clip.dtype != torch.uint8 or clip.dim() != 4 or clip.shape[-1] != 3 or not clip.numel():
        raise ValueError(
            f"clip must be uint8 (T, H, W, 3) and not empty, got {clip.dtype} {tuple(clip.shape)}"
        )
    if not scores:
        raise ValueError("scores is empty: give at least one (label, probability)")
    for label, probability in scores:
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability of {label!r} must be in [0, 1], got {probability}")
