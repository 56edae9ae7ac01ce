"""One training run, drawn from its own logs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r21d.plots.curves import cut_off, draw_level, style
from r21d.plots.figure import BLUE, INK, WIDTH, add_axes, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VIDEO = "#2da44e"
_PACE = "#57606a"
_BINS = 300
"""Points of a line of steps, at most: more cannot be told apart, and would hide the others."""

_SMALL = {
    "lr": "learning rate",
    "clips_per_second": "clips a second",
    "data_wait": "time spent waiting for clips",
}
_SPAN = 30
"""Learning rates further apart than this are drawn by their logarithm."""

Point = tuple[float, float]


def run_curves(
    history: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    steps: Sequence[Mapping[str, float]] = (),
    chance: float | None = None,
) -> None:
    """Write a PNG of a run: loss and accuracy, beneath them learning rate, pace and waiting.

    ``history`` is what `r21d.training.train` returns, ``steps`` are the rows of ``steps.csv``,
    whose losses stand faint behind those of the epochs. The best epoch by video@1, then clip@1,
    is marked. ``chance`` draws a dashed line. The file appears whole or not at all.

    Raises:
        ValueError: ``history`` is empty.
    """
    if not history:
        raise ValueError("history is empty: there is nothing to draw before the first epoch")
    low = 2.45 if steps else 0.55
    figure = new_figure(WIDTH, low + 3.45)
    loss = add_axes(figure, 0.75, low, 4.3, 3.0)
    _draw_loss(loss, history, _by_epoch(history, steps, "loss"))
    _over_epochs(loss, "loss", history, steps)
    cut_off(loss, [history])
    accuracy = add_axes(figure, 5.8, low, 4.3, 3.0)
    _draw_accuracy(accuracy, history, chance)
    _over_epochs(accuracy, "accuracy", history, steps)
    accuracy.set_ylim(0, 1.03)
    _in_percent(accuracy)
    for axes in (loss, accuracy):
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    if steps:
        rate, _, waiting = (
            _draw_small(figure, 0.75 + 3.48 * place, key, label, history, steps)
            for place, (key, label) in enumerate(_SMALL.items())
        )
        values = [row["lr"] for row in steps if row.get("lr", 0) > 0]
        if values and max(values) > _SPAN * min(values):
            rate.set_yscale("log")
            rate.set_ylim(min(values) / 2, max(values) * 2)
        waiting.set_ylim(0, max(0.1, waiting.get_ylim()[1]))
        _in_percent(waiting)
    save(figure, path)


def best_epoch(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first of the rows that are best by video@1, then clip@1; None without validation."""
    rows = [row for row in history if "video_top1" in row]
    return max(rows, key=lambda row: (row["video_top1"], row["clip_top1"]), default=None)


def _draw_loss(axes: Axes, history: Sequence[Mapping[str, Any]], steps: Sequence[Point]) -> None:
    if steps:
        axes.plot(*zip(*steps, strict=True), color=BLUE, alpha=0.22, linewidth=1)
    _draw(axes, history, "train_loss", "training", linewidth=1.3, alpha=0.6)
    _draw(axes, history, "val_loss", "held out", linewidth=2.4)


def _draw_accuracy(axes: Axes, history: Sequence[Mapping[str, Any]], chance: float | None) -> None:
    _draw(axes, history, "train_clip_top1", "clip@1, training", linewidth=1.3, alpha=0.6)
    _draw(axes, history, "clip_top1", "clip@1, held out", linewidth=2.4)
    _draw(axes, history, "video_top1", "video@1, held out", linewidth=2.4, color=_VIDEO)
    best = best_epoch(history)
    if best is not None:
        axes.plot(
            [best["epoch"]],
            [best["video_top1"]],
            marker="o",
            markersize=8,
            color=_VIDEO,
            markeredgecolor="white",
            markeredgewidth=1.5,
            linestyle="none",
            label=f"best: {best['video_top1']:.1%}, epoch {best['epoch']}",
        )
    if chance is not None:
        draw_level(axes, "chance", chance)


def _draw_small(
    figure: Figure,
    left: float,
    key: str,
    label: str,
    history: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, float]],
) -> Axes:
    axes = add_axes(figure, left, 0.55, 2.97, 1.15)
    if points := _by_epoch(history, steps, key):
        axes.plot(*zip(*points, strict=True), color=_PACE, linewidth=1.4)
    _over_epochs(axes, label, history, steps)
    return axes


def _over_epochs(
    axes: Axes,
    label: str,
    history: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, float]],
) -> None:
    last = int(history[-1]["epoch"])
    style(axes, label, last)
    if steps:  # They lie within an epoch, whose own figures stand at its end.
        axes.set_xlim(-0.01 * last, 1.02 * last)


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _draw(
    axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str, **line: Any
) -> None:
    points = [(row["epoch"], row[key]) for row in history if key in row]
    if points:
        marker = "o" if len(points) == 1 else None
        line = {"color": BLUE, "marker": marker, "label": label} | line
        axes.plot(*zip(*points, strict=True), **line)


def _by_epoch(
    history: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, float]], key: str
) -> list[Point]:
    """(epochs done, mean value) of some steps each, of those that lie in finished epochs."""
    steps_per_epoch = history[-1]["step"] / history[-1]["epoch"] if steps else 1
    points = [(row["step"] / steps_per_epoch, row[key]) for row in steps if key in row]
    points = [(epoch, value) for epoch, value in points if epoch <= history[-1]["epoch"]]
    size = -(-len(points) // _BINS) or 1
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(epoch for epoch, _ in part) / len(part), sum(value for _, value in part) / len(part))
        for part in bins
    ]
