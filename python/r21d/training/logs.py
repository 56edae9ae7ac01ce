"""What a run tells while it lasts: CSV files, TensorBoard, a bar on the terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from r21d.atomic import write_atomically
from r21d.evaluation.progress import ProgressBar, shown_bar
from r21d.training.run_folder import METRICS_FILE, STEPS_FILE, TENSORBOARD_FOLDER

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)

_STEP_COLUMNS = (
    "step",
    "epoch",
    "lr",
    "loss",
    "clip_top1",
    "grad_norm",
    "skipped",
    "data_wait",
    "clips_per_second",
)
_EPOCH_COLUMNS = (
    "epoch",
    "step",
    "clips",
    "lr",
    "train_loss",
    "train_clip_top1",
    "val_loss",
    "clip_top1",
    "clip_top5",
    "video_top1",
    "video_top5",
    "seconds",
)
_PLACES = ("epoch", "step", "clips")
_VALIDATION = ("val_loss", "clip_top1", "clip_top5", "video_top1", "video_top5")


class StepTimer:
    """How fast training goes, and what share of the time it waits for clips.

    ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Forget what was measured: what lies between, a validation, say, is no training."""
        self._began = self._clock()
        self._waited = 0.0
        self._clips = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which nothing happens but waiting for the loader."""
        began = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - began

    def count(self, clips: int) -> None:
        """So many more clips, of all processes, are trained on."""
        self._clips += clips

    def rates(self) -> dict[str, float]:
        """``data_wait`` (share of the time) and ``clips_per_second`` since the last call.

        The clock starts anew.
        """
        seconds = self._clock() - self._began
        rates = {
            "data_wait": self._waited / seconds if seconds > 0 else 0.0,
            "clips_per_second": self._clips / seconds if seconds > 0 else 0.0,
        }
        self.restart()
        return rates


class RunLog:
    """The logs of one run, for as long as its ``with`` block lasts.

    ``steps.csv`` has a row every so many steps, ``metrics.csv`` one an epoch, and where
    tensorboard is installed ``tensorboard/`` has both. Rows are on the disk when a call returns.
    Of a run that goes on, what was logged after ``start_step`` is dropped first, for these steps
    are run again; so is a row that was cut short. On a terminal a bar counts the steps.

    Args:
        folder: the run's folder, which exists; None writes no files.
        total_steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.
        start_step: how many steps were done before this.
        history: rows of the epochs done before this; ``metrics.csv`` begins with them.
        tensorboard: write ``tensorboard/``.
        bar: draw a bar where stderr is a terminal.

    Raises (every method that writes):
        OSError: the disk is full, say; the message names the file.
    """

    def __init__(
        self,
        folder: Path | None,
        total_steps: int,
        steps_per_epoch: int,
        start_step: int,
        *,
        history: Sequence[Mapping[str, Any]] = (),
        tensorboard: bool = True,
        bar: bool = True,
    ) -> None:
        self._folder = folder
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._start_step = start_step
        self._history = history
        self._wants_tensorboard = tensorboard
        self._wants_bar = bar
        self._steps: CsvLog | None = None
        self._metrics: CsvLog | None = None
        self._writer: SummaryWriter | None = None
        self._bar = ProgressBar()
        self._open = contextlib.ExitStack()
        self._skipped = 0

    def __enter__(self) -> RunLog:
        with contextlib.ExitStack() as opened:
            if self._folder is not None:
                self._open_files(self._folder, opened)
            if self._wants_bar:
                description = self._told_epoch(self._start_step + 1)
                done = self._start_step
                bar = shown_bar(description, self._total_steps, completed=done)
                self._bar = opened.enter_context(bar)
            self._open = opened.pop_all()
        return self

    def _open_files(self, folder: Path, opened: contextlib.ExitStack) -> None:
        self._steps = CsvLog(folder / STEPS_FILE, _STEP_COLUMNS)
        self._steps.keep(lambda row: 0 < int(row.get("step") or 0) <= self._start_step)
        self._metrics = CsvLog(folder / METRICS_FILE, _EPOCH_COLUMNS)
        self._metrics.replace(self._history)
        if self._wants_tensorboard:
            self._writer = _summary_writer(folder, self._start_step)
        if self._writer is not None:
            opened.enter_context(_naming(folder / TENSORBOARD_FOLDER))
            opened.callback(self._writer.close)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._open.close()
        except OSError:
            # What ended the run says more than that its last lines could not be written, too.
            if error is None:
                raise

    def advance(self, step: int, clips: int) -> None:
        """``step`` steps of the run are done; ``clips`` were trained on in the last one."""
        self._bar.advance(1)
        if step % self._steps_per_epoch == 0:
            self._bar.tell(description=self._told_epoch(step + 1))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Log what was found at ``step`` (how many are done, so 1 is the first).

        ``values``: any of ``loss``, ``lr``, ``clip_top1``, ``grad_norm`` and what
        `StepTimer.rates` gives.
        """
        self._bar.tell(detail=_detail(values))
        found = {**values, "skipped": self._skipped}
        if self._steps is not None:
            self._steps.append({"step": step, "epoch": self._epoch_of(step)} | found)
        self._to_tensorboard({f"step/{name}": value for name, value in found.items()}, step)
        self._skipped = 0

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log an epoch's row of the history."""
        if self._metrics is not None:
            self._metrics.append(row)
        found = {name: row[name] for name in _numbers(row) if name not in _PLACES}
        parts = ("validation" if name in _VALIDATION else "epoch" for name in found)
        named = {f"{part}/{name}": found[name] for part, name in zip(parts, found, strict=True)}
        self._to_tensorboard(named, row["step"])

    def skipped(self, step: int) -> None:
        """The update of ``step`` was left out, its float16 gradients being too large."""
        self._skipped += 1
        _log.info("step %d: gradients overflow float16, the update is left out", step)

    def _epoch_of(self, step: int) -> int:
        return -(-step // self._steps_per_epoch)

    def _told_epoch(self, step: int) -> str:
        last = self._epoch_of(self._total_steps)
        return f"epoch {min(self._epoch_of(step), last)}/{last}"

    def _to_tensorboard(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is None or self._folder is None:
            return
        with _naming(self._folder / TENSORBOARD_FOLDER):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


class CsvLog:
    """A CSV file that grows by a row at a time.

    A row's numbers go under their names, whatever else it holds does not. Names that are not among
    ``columns`` become further ones.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._columns = list(columns)

    def keep(self, wanted: Callable[[Mapping[str, str]], bool]) -> None:
        """Drop the rows that are not ``wanted``, and what is no whole row."""
        rows = read_csv(self._path)
        self._columns += [name for name in (rows[0] if rows else ()) if name not in self._columns]
        self._write([row for row in rows if wanted(row)])

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin anew with ``rows``."""
        numbers = [_numbers(row) for row in rows]
        self._add_columns(name for row in numbers for name in row)
        self._write(numbers)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row at the end."""
        numbers = _numbers(row)
        if self._add_columns(numbers) or not self._path.exists():
            self._write([*read_csv(self._path), numbers])
            return
        with _naming(self._path), self._path.open("ab") as file:
            file.write(self._lines([numbers]))

    def _add_columns(self, names: Iterable[str]) -> bool:
        new = [name for name in dict.fromkeys(names) if name not in self._columns]
        self._columns += new
        return bool(new)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        header = {name: name for name in self._columns}
        with _naming(self._path):
            write_atomically(self._path, self._lines([header, *rows]))

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a log; of one that a process was killed over, those that are whole.

    No file has no rows.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
    header = next(lines, [])
    return [dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, (int, float))}


def _detail(values: Mapping[str, float]) -> str:
    parts = {
        "clips_per_second": "{:.1f} clips/s",
        "data_wait": "data {:.0%}",
        "loss": "loss {:.3f}",
    }
    return "  ".join(form.format(values[name]) for name, form in parts.items() if name in values)


def _summary_writer(folder: Path, start_step: int) -> SummaryWriter | None:
    """What writes ``tensorboard/``; None where tensorboard is not installed, or cannot."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.warning("no tensorboard files: pip install tensorboard, or 'r21d[train]'")
        return None
    target = folder / TENSORBOARD_FOLDER
    try:
        str(target).encode()
    except UnicodeEncodeError:
        _log.warning(
            "no tensorboard files: the folder's name is not UTF-8, as tensorboard needs it"
        )
        return None
    with _naming(target):
        # What is purged stays in the files, hidden: a run that begins anew leaves nothing behind.
        for old in target.glob("events.out.tfevents.*") if start_step == 0 else ():
            old.unlink()
        return SummaryWriter(str(target), purge_step=start_step + 1)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk's error says which file it is about."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
