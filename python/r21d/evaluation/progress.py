"""A progress bar for whatever takes longer than a second, silent when nobody is looking."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_display: Progress | None = None
"""What is on the screen: bars within bars share it, since two would draw over each other."""


class ProgressBar:
    """A line of the display; one that nobody sees takes the same calls."""

    def __init__(self, display: Progress | None = None, task: TaskID | None = None) -> None:
        self._display = display
        self._task = task

    def advance(self, count: int = 1) -> None:
        """Go on by ``count``."""
        if self._display is not None and self._task is not None:
            self._display.advance(self._task, count)

    def tell(self, *, description: str | None = None, detail: str | None = None) -> None:
        """Change what stands before the bar, and after it."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, description=description)
            if detail is not None:
                self._display.update(self._task, detail=detail)


@contextlib.contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; draws on stderr where that is a terminal, else does nothing.

    ``total=None`` shows a bar without an end. ``rich`` missing counts as no terminal: a bar is
    never a reason to fail.
    """
    with shown_bar(description, total) as bar:
        yield bar.advance


@contextlib.contextmanager
def shown_bar(
    description: str, total: int | None, *, completed: int = 0, detail: str = ""
) -> Iterator[ProgressBar]:
    """A `ProgressBar` for as long as this lasts, on the terms of `progress_bar`.

    ``completed`` of ``total`` were done before this began: the time that is left is told from
    the pace since then. Within another bar it is a line beneath it.
    """
    if _display is not None:
        task = _add(_display, description, total, completed, detail)
        try:
            yield ProgressBar(_display, task)
        finally:
            _display.remove_task(task)
        return
    display = _new_display()
    if display is None:
        yield ProgressBar()
        return
    # The terminal may be gone: a bar is never a reason to fail.
    with contextlib.suppress(OSError):
        display.start()
    try:
        with _on_screen(display):
            yield ProgressBar(display, _add(display, description, total, completed, detail))
    finally:
        with contextlib.suppress(OSError):
            display.stop()


def _add(
    display: Progress, description: str, total: int | None, completed: int, detail: str
) -> TaskID:
    return display.add_task(
        description, total=total, completed=completed, detail=detail, before=completed
    )


@contextlib.contextmanager
def _on_screen(display: Progress) -> Iterator[None]:
    global _display
    _display = display
    try:
        yield
    finally:
        _display = None


def _new_display() -> Progress | None:
    """None where nobody is looking."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
        )
        from rich.text import Text
    except ImportError:
        return None

    class Remaining(ProgressColumn):
        """By the mean pace: rich's own goes by the last half minute, a long step or none."""

        def render(self, task: Task) -> Text:
            done = task.completed - task.fields["before"]
            if not done or task.total is None or task.elapsed is None:
                return Text("-:--:--")
            return Text(clock(task.elapsed * (task.total - task.completed) / done))

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Remaining(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        # What is printed meanwhile goes above the bar, but not to the terminal from a file.
        redirect_stdout=sys.stdout.isatty(),
    )


def clock(seconds: float) -> str:
    """A span of time as hours, minutes and seconds: ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
