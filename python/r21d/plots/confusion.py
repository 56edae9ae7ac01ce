"""Errors as a matrix."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from r21d.plots.figure import (
    FAINT,
    GRID,
    INK,
    LINE,
    MARGIN,
    add_axes,
    fitting_letters,
    new_figure,
    save,
    shortened,
    wrapped,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RIGHT_SHADES = ("#ffffff", "#b6d4fe", "#1f6feb", "#0a3069")
_WRONG_SHADES = ("#ffffff", "#ffd8b5", "#d1622b", "#762c00")

_CELLS = ((12, 0.42), (25, 0.3), (60, 0.18), (150, 0.12), (math.inf, 0.07))
"""Up to how many classes a matrix's cells have that many inches."""
_COUNTED = 0.3
"""Inches of a cell that has room for its count."""
_LONGEST_NAME = 28
_NARROWEST = 5.0
_ERRORS_SHOWN = 15


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
    names = 0.62 * points / 72 * max(len(shortened(name, _LONGEST_NAME)) for name in columns) + 0.1
    matrix_width, matrix_height = cell * len(columns), cell * len(rows)
    width = max(names + matrix_width + 2 * MARGIN, _NARROWEST)
    errors = _most_frequent_errors(confusion, classes, fitting_letters(width, 8.5))
    table = 0.2 * (len(errors) + 2)
    legend = (
        f"rows: true class, columns: top class; {int(confusion.diagonal().sum())} of"
        f" {int(confusion.sum())} right (blue, framed), the others wrong (orange); the darker a"
        " cell, the larger its share of the row"
    )
    title = title or "confusion matrix"
    above = [(line, 13.0, INK, True) for line in wrapped(title, width, 13)]
    above += [(line, 9.0, INK, False) for line in wrapped(subtitle, width, 9)]
    above += [(line, 8.5, FAINT, False) for line in wrapped(legend, width, 8.5)]
    heading = 0.3 + LINE * sum(style[1] for style in above)
    height = heading + names + matrix_height + table + MARGIN
    figure = new_figure(width, height)
    place_above = height - 0.1
    for line, size, colour, bold in above:
        place_above -= LINE * size
        write(figure, MARGIN, place_above, line, size, colour, bold)
    axes = add_axes(figure, MARGIN + names, table + MARGIN, matrix_width, matrix_height)
    _draw_matrix(axes, counts, cell)
    for place, name in enumerate(columns):
        _label(axes, place, -0.5 - 0.06 / cell, name, points, rotation=90, ha="center", va="bottom")
    for place, name in enumerate(rows):
        _label(axes, -0.5 - 0.06 / cell, place, name, points, ha="right", va="center")
    if errors:
        write(figure, MARGIN, table, "most frequent errors", 9, bold=True)
    for place, text in enumerate(errors):
        write(figure, MARGIN, table - 0.2 * (place + 1), text, 8.5)
    save(figure, path)


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
        side.set_color(GRID)
    thickness = 0.5 if cell >= _CELLS[-2][1] else 0.15
    line: dict[str, Any] = {"colors": GRID, "linewidths": thickness}
    axes.hlines([row + 0.5 for row in range(rows - 1)], -0.5, columns - 0.5, **line)
    axes.vlines([column + 0.5 for column in range(columns - 1)], -0.5, rows - 0.5, **line)
    _frame_right_cells(axes, counts, cell)
    if cell < _COUNTED:
        return
    for row, column in counts.nonzero().tolist():
        colour = "white" if shares[row, column] > 0.35 else INK
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
    for inset, colour in ((points / 2, INK), (points * 1.5, "white")):
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
            names = (shortened(classes[number], longest) for number in (row, column))
            lines.append(f"{of}  {' → '.join(names)}")
    return lines


def _label(axes: Axes, x: float, y: float, name: str, points: float, **place: Any) -> None:
    text = shortened(name, _LONGEST_NAME)
    axes.text(x, y, text, fontsize=points, color=INK, parse_math=False, **place)


def _check_confusion(confusion: torch.Tensor, classes: Sequence[str]) -> None:
    if confusion.dim() != 2 or confusion.shape != (len(classes), len(classes)):
        raise ValueError(
            f"confusion must be square with a row for each of the {len(classes)} classes,"
            f" got {tuple(confusion.shape)}"
        )
    if int(confusion.sum()) < 1 or int(confusion.min()) < 0:
        raise ValueError("confusion must count at least one video, and nothing below 0")
