"""A run as one page: what came of it, how it went, how to go on."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from r21d.atomic import write_atomically
from r21d.training import run_folder
from r21d.training.environment import read_environments
from r21d.training.logs import read_csv
from r21d.training.report_page import page
from r21d.training.state import read_values

_log = logging.getLogger(__name__)

T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What the files of a run's folder tell; empty what they do not."""

    folder: Path
    config: Mapping[str, Mapping[str, Any]]
    """The settings by table and key."""
    sources: Mapping[str, str]
    """Where each comes from, by key."""
    history: list[Row]
    steps: list[dict[str, float]]
    best: Row
    """How the best epoch validated."""
    environments: list[Row]
    """One for each start."""
    changes: list[Row]
    """Settings that were changed on the way, as `r21d.training.state.TrainState` has them."""


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run's folder. A file that is missing is left out, a damaged one with a warning."""
    folder = Path(folder)
    nothing: tuple[dict[str, Any], dict[str, str]] = ({}, {})
    config, sources = _read(folder / run_folder.CONFIG_FILE, _read_config, nothing)
    return Run(
        folder=folder,
        config={table: values for table, values in config.items() if isinstance(values, dict)},
        sources=sources,
        history=_read(folder / run_folder.HISTORY_FILE, _read_history, []),
        steps=_read(folder / run_folder.STEPS_FILE, _read_steps, []),
        best=_read(folder / run_folder.BEST_RESULT_FILE, _read_best, {}),
        environments=_read(folder / run_folder.ENVIRONMENT_FILE, read_environments, []),
        changes=_read(folder, _read_changes, []),
    )


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write ``curves.png``, ``confusion.png`` and ``report.html`` of a run, finished or not.

    They are made of the files in its ``folder`` alone, and what is missing there is missing in
    them. The page holds its pictures and needs no other file and no network. Without matplotlib
    there are no pictures.

    Returns:
        The page's path.

    Raises:
        OSError: a file cannot be written; the old one stands.
    """
    run = read_run(folder)
    pictures = {}
    for name, draw in (
        (run_folder.CURVES_FILE, _draw_curves),
        (run_folder.CONFUSION_FILE, _draw_confusion),
    ):
        try:
            if draw(run, run.folder / name):
                pictures[name] = (run.folder / name).read_bytes()
        except ImportError as error:
            _log.warning("%s is left out: %s", name, error)
    target = run.folder / run_folder.REPORT_FILE
    # Names of files may hold bytes that are no text.
    write_atomically(target, page(run, pictures).encode("utf-8", "backslashreplace"))
    return target


def _read(path: Path, read: Callable[[Path], T], otherwise: T) -> T:
    try:
        return read(path)
    except FileNotFoundError:
        return otherwise
    except (ImportError, OSError, ValueError, LookupError, TypeError) as error:
        _log.warning("%s cannot be read, the report leaves it out: %r", path, error)
        return otherwise


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from r21d.training.toml_file import read_toml

    return read_toml(path)


def _read_history(path: Path) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        _require(row, "epoch", "train_loss")
        if "video_top1" in row:
            _require(row, "clip_top1", "video_top5")
    return rows


def _read_steps(path: Path) -> list[dict[str, float]]:
    rows = [{name: float(text) for name, text in row.items() if text} for row in read_csv(path)]
    return [row for row in rows if row.get("step", math.nan) > 0]


def _read_best(path: Path) -> Row:
    best: Row = json.loads(path.read_bytes())
    _require(best, "epoch", "videos", "per_class", "mean_class", "classes", "confusion")
    for video in best.get("predictions", []):
        _require(video, "name", "labels", "predicted", "score", "label_score")
    _confusion(best)
    return best


def _read_changes(folder: Path) -> list[Row]:
    """Of the newest state."""
    newest = next(iter(run_folder.state_files(folder).values()), None)
    changes: list[Row] = [] if newest is None else read_values(newest)["changes"]
    for change in changes:
        _require(change, "step", "changed")
    return changes


def _require(values: Row, *names: str) -> None:
    """Told by the name of what is not there, as `_read` passes on."""
    for name in names:
        values[name]


def _confusion(best: Row) -> torch.Tensor:
    """Videos by true class and top class, as `r21d.evaluation.EvalResult` has them."""
    counts = torch.tensor(best["confusion"], dtype=torch.int64)
    if counts.shape != (len(best["classes"]), len(best["classes"])):
        raise ValueError("confusion does not fit the classes")
    return counts


def _draw_curves(run: Run, path: Path) -> bool:
    from r21d.plots import run_curves

    if not run.history:
        return False
    classes = len(run.best.get("classes", ()))
    steps = run.steps if "step" in run.history[-1] else []
    run_curves(run.history, path, steps=steps, chance=1 / classes if classes else None)
    return True


def _draw_confusion(run: Run, path: Path) -> bool:
    from r21d.plots import confusion_matrix

    if not run.best:
        return False
    title = f"epoch {run.best['epoch']}, {run.best['videos']} videos"
    confusion_matrix(_confusion(run.best), run.best["classes"], path, title=title)
    return True
