"""What every picture is drawn with: a figure in inches, its colours, its type."""

from __future__ import annotations

import io
import os
import textwrap
from typing import TYPE_CHECKING, Any

from r21d.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22272e"
FAINT = "#8b949e"
GRID = "#e3e6ea"
BLUE = "#1f6feb"

WIDTH = 11.0
"""Inches."""
MARGIN = 0.3
LINE = 0.023
"""Inches from line to line for each point of type."""


def new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'r21d[train]'") from error
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height)
    )


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def write(
    figure: Figure,
    left: float,
    bottom: float,
    text: str,
    points: float,
    colour: str = INK,
    bold: bool = False,
) -> None:
    """Text at a place given in inches."""
    width, height = figure.get_size_inches()
    weight = "bold" if bold else "normal"
    style: dict[str, Any] = {"fontsize": points, "color": colour, "fontweight": weight}
    figure.text(left / width, bottom / height, text, va="center", parse_math=False, **style)


def fitting_letters(width: float, points: float) -> int:
    """How many letters of that size fit between the margins of a figure."""
    return int((width - 2 * MARGIN) / (0.6 * points / 72))


def wrapped(text: str, width: float, points: float) -> list[str]:
    """Lines of that size for a figure of that width, four at most."""
    letters = fitting_letters(width, points)
    return textwrap.wrap(shortened(text, 4 * letters), letters)


def shortened(text: str, limit: int) -> str:
    """One line of at most ``limit`` characters, all of which a font may have."""
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
