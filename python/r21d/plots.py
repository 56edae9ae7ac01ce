"""Pictures of results: a prediction as a filmstrip, training as curves, errors as a matrix."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from r21d.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#22272e"
_FAINT = "#8b949e"
_GRID = "#e3e6ea"
_BAR = "#c3ccd6"
_BEST = "#1f6feb"
_RUNS = ("#1f6feb", "#d1622b", "#2da44e", "#8250df", "#bf3989", "#57606a")

_RIGHT_SHADES = ("#ffffff", "#b6d4fe", "#1f6feb", "#0a3069")
_WRONG_SHADES = ("#ffffff", "#ffd8b5", "#d1622b", "#762c00")

_FRAMES_SHOWN = 8
_WIDTH = 11.0  # inches
_MARGIN = 0.3
_GAP = 0.06
_BAR_HEIGHT = 0.3
_TALLEST = 2.6
_CELLS = ((12, 0.42), (25, 0.3), (60, 0.18), (150, 0.12), (math.inf, 0.07))
"""Up to how many classes a matrix's cells have that many inches."""
_COUNTED = 0.3
"""Inches of a cell that has room for its count."""
_LONGEST_NAME = 28
_NARROWEST = 5.0
_LINE = 0.023
"""Inches from line to line for each point of type."""
_ERRORS_SHOWN = 15


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
    height = heading + frame_height + caption + bars + _MARGIN
    figure = _figure(_WIDTH, height)
    figure.text(
        _MARGIN / _WIDTH,
        1 - heading / 2 / height,
        _shorten(title, 100),
        fontsize=14,
        fontweight="bold",
        color=_INK,
        va="center",
        parse_math=False,
    )
    bottom = height - heading - frame_height
    for place, index in enumerate(chosen.tolist()):
        left = _MARGIN + place * (frame_width + _GAP)
        axes = _axes(figure, left, bottom, frame_width, frame_height)
        axes.imshow(clip[index].numpy(), interpolation="antialiased", aspect="auto")
        axes.set_axis_off()
        axes.set_title(f"frame {index + 1}", y=0, pad=-4, va="top", fontsize=8, color=_FAINT)
    _draw_bars(_axes(figure, 2.8, _MARGIN / 2, _WIDTH - 3.9, bars), scores)
    _save(figure, path)


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
    figure = _figure(_WIDTH, 4.7 if title else 4.2)
    if title:
        figure.text(0.068, 0.93, title, fontsize=14, fontweight="bold", color=_INK)
    loss = _axes(figure, 0.75, 0.65, 4.3, 3.0)
    accuracy = _axes(figure, 6.1, 0.65, 4.6, 3.0)
    for (name, rows), colour in zip(runs.items(), _cycle(len(runs)), strict=True):
        _draw_pair(loss, rows, "train_loss", "val_loss", name, colour)
        _draw_pair(accuracy, rows, "train_clip_top1", "clip_top1", name, colour)
    last = max(row["epoch"] for rows in runs.values() for row in rows)
    for axes, label in ((loss, "loss"), (accuracy, "clip@1")):
        _style(axes, label, last)
    accuracy.set_ylim(0, 1.03)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    lines = [("chance", chance)] if chance is not None else []
    for text, level in [*lines, *([bound] if bound is not None else [])]:
        accuracy.axhline(level, color=_FAINT, linestyle=(0, (5, 4)), linewidth=1)
        accuracy.text(
            1.0,
            level + 0.012,
            f"{text} {level:.1%}",
            transform=accuracy.get_yaxis_transform(),
            ha="right",
            fontsize=8,
            color=_FAINT,
        )
    loss.legend(frameon=False, fontsize=9, labelcolor=_INK)
    _save(figure, path)


def confusion_matrix(
    confusion: torch.Tensor,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    subtitle: str = "",
) -> None:
    """Write a PNG of which class was taken for which: rows by true class, columns by top class.

    ``confusion`` is int64 (classes, classes), as in `r21d.evaluation.EvalResult`. A cell's shade is
    its share of the row, blue and framed where right, orange where wrong; of few classes it shows
    the count, too. Classes without videos have no row, and what was taken for several of them is
    counted in a last column, "others". Beneath stand the most frequent errors. The picture grows
    with the number of classes, and every class is named. ``title`` and ``subtitle`` stand above
    it. The file appears whole or not at all.

    Raises ValueError when the matrix is not square, does not fit the names, or counts nothing.
    """
    _check_confusion(confusion, classes)
    shown = confusion.sum(1).nonzero().flatten().tolist()
    counts = confusion[shown][:, shown]
    columns = [classes[number] for number in shown]
    others = confusion[shown].sum(1) - counts.sum(1)
    if others.any():
        counts = torch.cat([counts, others[:, None]], 1)
        absent = [n for n in confusion.sum(0).nonzero().flatten().tolist() if n not in shown]
        columns.append(classes[absent[0]] if len(absent) == 1 else "others")
    rows = [classes[number] for number in shown]
    # Inches of a cell, and points of type that fit into one.
    cell = next(size for most, size in _CELLS if len(rows) <= most)
    points = min(9.0, 72 * cell * 0.85)
    names = 0.62 * points / 72 * max(len(_shorten(name, _LONGEST_NAME)) for name in columns) + 0.1
    matrix_width, matrix_height = cell * len(columns), cell * len(rows)
    width = max(names + matrix_width + 2 * _MARGIN, _NARROWEST)
    errors = _most_frequent_errors(confusion, classes, _letters(width, 8.5))
    table = 0.2 * (len(errors) + 2)
    legend = (
        f"rows: true class, columns: top class; {int(confusion.diagonal().sum())} of"
        f" {int(confusion.sum())} right (blue, framed), the others wrong (orange); the darker a"
        " cell, the larger its share of the row"
    )
    title = title or "confusion matrix"
    above = [(line, 13.0, _INK, True) for line in _wrapped(title, width, 13)]
    above += [(line, 9.0, _INK, False) for line in _wrapped(subtitle, width, 9)]
    above += [(line, 8.5, _FAINT, False) for line in _wrapped(legend, width, 8.5)]
    heading = 0.3 + _LINE * sum(style[1] for style in above)
    height = heading + names + matrix_height + table + _MARGIN
    figure = _figure(width, height)
    place_above = height - 0.1
    for line, size, colour, bold in above:
        place_above -= _LINE * size
        _write(figure, _MARGIN, place_above, line, size, colour, bold)
    axes = _axes(figure, _MARGIN + names, table + _MARGIN, matrix_width, matrix_height)
    _draw_matrix(axes, counts, cell)
    for place, name in enumerate(columns):
        _label(axes, place, -0.5 - 0.06 / cell, name, points, rotation=90, ha="center", va="bottom")
    for place, name in enumerate(rows):
        _label(axes, -0.5 - 0.06 / cell, place, name, points, ha="right", va="center")
    if errors:
        _write(figure, _MARGIN, table, "most frequent errors", 9, bold=True)
    for place, text in enumerate(errors):
        _write(figure, _MARGIN, table - 0.2 * (place + 1), text, 8.5)
    _save(figure, path)


def _fitting_width(count: int) -> float:
    """Inches for each of ``count`` frames in a row."""
    return (_WIDTH - 2 * _MARGIN - (count - 1) * _GAP) / count


def _draw_bars(axes: Axes, scores: Sequence[tuple[str, float]]) -> None:
    places = range(len(scores))
    colours = [_BEST, *[_BAR] * (len(scores) - 1)]
    axes.barh(places, [p for _, p in scores], height=0.66, color=colours)
    for place, (label, probability) in zip(places, scores, strict=True):
        style: dict[str, Any] = {
            "fontsize": 11,
            "va": "center_baseline",
            "fontweight": "bold" if place == 0 else "normal",
            "parse_math": False,
        }
        axes.text(-0.012, place, _shorten(label, 30), ha="right", color=_INK, **style)
        share = "<0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"
        axes.text(probability + 0.01, place, share, ha="left", color=_INK, **style)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_axis_off()


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


def _draw_matrix(axes: Axes, counts: torch.Tensor, cell: float) -> None:
    """Shades by share of the row; counts where they fit."""
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = counts.shape
    shares = counts / counts.sum(1, keepdim=True)
    # The square root: an error of a few per cent must not look like none.
    shades = shares.sqrt().numpy()
    right, wrong = (
        torch.from_numpy(LinearSegmentedColormap.from_list("", colours)(shades, bytes=True))
        for colours in (_RIGHT_SHADES, _WRONG_SHADES)
    )
    own = torch.eye(rows, columns, dtype=torch.bool)
    picture = torch.where(own[..., None], right, wrong)[..., :3]
    axes.imshow(picture.numpy(), interpolation="nearest", aspect="auto")
    axes.tick_params(length=0, labelbottom=False, labelleft=False)
    for side in axes.spines.values():
        side.set_color(_GRID)
    thickness = 0.5 if cell >= _CELLS[-2][1] else 0.15
    line: dict[str, Any] = {"colors": _GRID, "linewidths": thickness}
    axes.hlines([row + 0.5 for row in range(rows - 1)], -0.5, columns - 0.5, **line)
    axes.vlines([column + 0.5 for column in range(columns - 1)], -0.5, rows - 0.5, **line)
    _frame_right_cells(axes, counts, cell)
    if cell < _COUNTED:
        return
    for row, column in counts.nonzero().tolist():
        colour = "white" if shares[row, column] > 0.35 else _INK
        text = str(int(counts[row, column]))
        size = min(9.0, 72 * cell * 0.95 / len(text))
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _frame_right_cells(axes: Axes, counts: torch.Tensor, cell: float) -> None:
    """Tells right from wrong in print without colours."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    points = min(1.5, 72 * cell * 0.05)
    right = counts.diagonal().nonzero().flatten().tolist()
    # Two, the inner one for dark cells.
    for inset, colour in ((points / 2, _INK), (points * 1.5, "white")):
        start = 0.5 - inset / 72 / cell
        frames = [Rectangle((n - start, n - start), 2 * start, 2 * start) for n in right]
        style: dict[str, Any] = {"facecolor": "none", "edgecolor": colour, "linewidth": points}
        axes.add_collection(PatchCollection(frames, zorder=3, **style))


def _most_frequent_errors(
    confusion: torch.Tensor, classes: Sequence[str], letters: int
) -> list[str]:
    """Lines of at most so many ``letters``."""
    wrong = confusion.clone()
    wrong.fill_diagonal_(0)
    order = wrong.flatten().sort(descending=True, stable=True).indices[:_ERRORS_SHOWN].tolist()
    lines = []
    for place in order:
        row, column = divmod(place, len(classes))
        if wrong[row, column]:
            of = f"{int(wrong[row, column])} of {int(confusion[row].sum())}"
            longest = max(8, (letters - len(of) - 5) // 2)
            names = (_shorten(classes[number], longest) for number in (row, column))
            lines.append(f"{of}  {' → '.join(names)}")
    return lines


def _letters(width: float, points: float) -> int:
    """How many letters of that size fit between the margins of a figure."""
    return int((width - 2 * _MARGIN) / (0.6 * points / 72))


def _wrapped(text: str, width: float, points: float) -> list[str]:
    letters = _letters(width, points)
    return textwrap.wrap(_shorten(text, 4 * letters), letters)


def _label(axes: Axes, x: float, y: float, name: str, points: float, **place: Any) -> None:
    text = _shorten(name, _LONGEST_NAME)
    axes.text(x, y, text, fontsize=points, color=_INK, parse_math=False, **place)


def _write(
    figure: Figure,
    left: float,
    bottom: float,
    text: str,
    points: float,
    colour: str = _INK,
    bold: bool = False,
) -> None:
    """Text at a place given in inches."""
    width, height = figure.get_size_inches()
    weight = "bold" if bold else "normal"
    style: dict[str, Any] = {"fontsize": points, "color": colour, "fontweight": weight}
    figure.text(left / width, bottom / height, text, va="center", parse_math=False, **style)


def _style(axes: Axes, label: str, last_epoch: int) -> None:
    axes.set_title(label, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel("epoch", fontsize=9, color=_FAINT)
    axes.set_xlim(1 - 0.02 * last_epoch, last_epoch * 1.02)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    step = math.ceil(last_epoch / 10)
    axes.set_xticks([1, *range(1 + step, last_epoch + 1, step)])
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=_FAINT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'r21d[train]'") from error
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height)
    )


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def _cycle(count: int) -> list[str]:
    return [_RUNS[i % len(_RUNS)] for i in range(count)]


def _shorten(text: str, limit: int) -> str:
    """One line of at most ``limit`` characters, all of which a font may have."""
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _check_confusion(confusion: torch.Tensor, classes: Sequence[str]) -> None:
    if confusion.dim() != 2 or confusion.shape != (len(classes), len(classes)):
        raise ValueError(
            f"confusion must be square with a row for each of the {len(classes)} classes,"
            f" got {tuple(confusion.shape)}"
        )
    if int(confusion.sum()) < 1 or int(confusion.min()) < 0:
        raise ValueError("confusion must count at least one video, and nothing below 0")


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
