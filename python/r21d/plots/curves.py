"""Training as curves."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r21d.plots.figure import BLUE, FAINT, GRID, INK, WIDTH, add_axes, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CUT = 1.2
"""How far above the training losses a panel ends that cuts off others."""
_BESIDE = 12
"""Letters of type of 8 points that fit beside the right panel."""
_RUNS = (BLUE, "#d1622b", "#2da44e", "#8250df", "#bf3989", "#57606a")


def training_curves(
    history: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    chance: float | None = None,
    bound: tuple[str, float] | None = None,
) -> None:
    """Write a PNG with the loss on the left and clip@1 on the right, over the epochs.

    ``history`` is what `r21d.training.train` returns, or several of them by the name of the run.
    Of each row it uses ``epoch``, ``train_loss`` and ``train_clip_top1`` (thin lines) and, where
    there was validation, ``val_loss`` and ``clip_top1`` (thick lines). ``chance`` and ``bound`` =
    (name, accuracy) draw dashed lines. The file appears whole or not at all. Raises ValueError
    when there are no rows.
    """
    runs = dict(history) if isinstance(history, Mapping) else {"": history}
    if not runs or not all(runs.values()):
        raise ValueError("history is empty: there is nothing to draw before the first epoch")
    figure = new_figure(WIDTH, 4.7 if title else 4.2)
    if title:
        figure.text(0.068, 0.93, title, fontsize=14, fontweight="bold", color=INK)
    loss = add_axes(figure, 0.75, 0.65, 4.3, 3.0)
    accuracy = add_axes(figure, 5.8, 0.65, 4.3, 3.0)
    for (name, rows), colour in zip(runs.items(), _cycle(len(runs)), strict=True):
        _draw_pair(loss, rows, "train_loss", "val_loss", name, colour)
        _draw_pair(accuracy, rows, "train_clip_top1", "clip_top1", name, colour)
    last = max(row["epoch"] for rows in runs.values() for row in rows)
    for axes, label in ((loss, "loss"), (accuracy, "clip@1")):
        style(axes, label, last)
    cut_off(loss, list(runs.values()))
    accuracy.set_ylim(0, 1.03)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if chance is not None:
        draw_level(accuracy, "chance", chance)
    if bound is not None:
        draw_level(accuracy, *bound)
    loss.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


def _draw_pair(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    train: str,
    held_out: str,
    name: str,
    colour: str,
) -> None:
    for key, kind, width, alpha in ((train, "training", 1.2, 0.55), (held_out, "held out", 2.4, 1)):
        points = [(row["epoch"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linewidth=width,
                alpha=alpha,
                marker="o" if len(points) == 1 else None,
                label=f"{name}, {kind}" if name else kind,
            )


def style(axes: Axes, label: str, last_epoch: int) -> None:
    """A panel over epochs, named ``label``."""
    axes.set_title(label, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("epoch", fontsize=9, color=FAINT)
    axes.set_xlim(1 - 0.02 * last_epoch, last_epoch * 1.02)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    step = math.ceil(last_epoch / 10)
    axes.set_xticks([1, *range(1 + step, last_epoch + 1, step)])
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def cut_off(axes: Axes, runs: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Keep a loss panel to the heights of training, where a validation reached many times those.

    The first ones may, until BatchNorm's running statistics have come near; the title says how far.
    """
    trained = max(row["train_loss"] for rows in runs for row in rows)
    tested = [[row["val_loss"] for row in rows if "val_loss" in row] for rows in runs]
    top = _CUT * max([trained, *(losses[-1] for losses in tested if losses)])
    highest = max((loss for losses in tested for loss in losses), default=0.0)
    if highest > 2 * top:
        axes.set_ylim(0, top)
        axes.set_title(f"loss (cut off: up to {highest:.3g})", loc="left", fontsize=11, color=INK)


def draw_level(axes: Axes, text: str, level: float) -> None:
    """A dashed line, named beside the panel: within, curves may cross it anywhere."""
    axes.axhline(level, color=FAINT, linestyle=(0, (5, 4)), linewidth=1)
    place = axes.get_yaxis_transform()
    told = "\n".join([*textwrap.wrap(text, _BESIDE), f"{level:.1%}"])
    axes.text(1.01, level, told, transform=place, va="center", fontsize=8, color=FAINT)


def _cycle(count: int) -> list[str]:
    return [_RUNS[i % len(_RUNS)] for i in range(count)]
