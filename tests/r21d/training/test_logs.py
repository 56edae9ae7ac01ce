"""What a run logs, and how it goes on with a log (about 3 s)."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
import sys
from pathlib import Path

import pytest

from r21d.evaluation.progress import clock, progress_bar
from r21d.training.logs import RunLog, StepTimer, read_csv

VALUES = {"loss": 1.5, "lr": 0.01, "clip_top1": 0.25, "grad_norm": 3.0}


def _row(epoch: int, **more: object) -> dict[str, object]:
    row = {"epoch": epoch, "step": 10 * epoch, "clips": 320 * epoch, "lr": 0.01}
    return row | {"train_loss": 2.0 / epoch, "train_clip_top1": 0.5} | more


def _log(folder: Path | None, start: int = 0, **options: object) -> RunLog:
    return RunLog(folder, 30, 10, start, **{"tensorboard": False, **options})  # type: ignore[arg-type]


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_timer_tells_waiting_from_the_rest() -> None:
    clock = Clock()
    timer = StepTimer(clock)
    for waited, worked in ((1.0, 3.0), (2.0, 4.0)):
        with timer.waiting():
            clock.now += waited
        clock.now += worked
        timer.count(50)
    assert timer.rates() == {"data_wait": 0.3, "clips_per_second": 10.0}
    clock.now += 4.0
    timer.count(8)
    assert timer.rates() == {"data_wait": 0.0, "clips_per_second": 2.0}


def test_timer_forgets_what_lies_before_a_restart() -> None:
    clock = Clock()
    timer = StepTimer(clock)
    with timer.waiting():
        clock.now += 60
    timer.count(7)
    timer.restart()
    assert timer.rates() == {"data_wait": 0.0, "clips_per_second": 0.0}  # no time has passed
    clock.now += 2
    timer.count(4)
    assert timer.rates() == {"data_wait": 0.0, "clips_per_second": 2.0}


def test_waiting_that_fails_counts() -> None:
    clock = Clock()
    timer = StepTimer(clock)
    with pytest.raises(ValueError), timer.waiting():
        clock.now += 2
        raise ValueError
    assert timer.rates()["data_wait"] == 1


def test_rows_are_on_the_disk_at_once(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.step(10, {**VALUES, "data_wait": 0.125, "clips_per_second": 40.5})
        log.skipped(11)
        log.skipped(12)
        log.step(20, VALUES)
        log.epoch(_row(1))
        log.epoch(_row(2, val_loss=1.25, video_top1=0.5, note="no number"))
        # Before the end: a process that is killed has them.
        steps, metrics = (read_csv(tmp_path / name) for name in ("steps.csv", "metrics.csv"))
    first, second = steps
    assert first["step"] == "10" and second["step"] == "20"
    assert (first["epoch"], second["epoch"]) == ("1", "2")
    assert first["data_wait"] == "0.125" and first["clips_per_second"] == "40.5"
    assert first["skipped"] == "0" and second["skipped"] == "2"
    assert second["data_wait"] == ""
    assert metrics[0]["val_loss"] == "" and metrics[1]["val_loss"] == "1.25"
    assert float(metrics[1]["train_loss"]) == 1.0 and "note" not in metrics[1]


def test_numbers_keep_every_digit(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.step(1, {"loss": 1 / 3})
    assert float(read_csv(tmp_path / "steps.csv")[0]["loss"]) == 1 / 3


def test_resuming_drops_what_is_run_again(tmp_path: Path) -> None:
    history = [_row(1)]
    with _log(tmp_path) as log:
        for step in (5, 10, 15):
            log.step(step, VALUES)
        log.epoch(history[0])
        log.epoch(_row(2))  # the state with this epoch was never saved
    # The process was killed while it wrote; what a reader of tables makes of it is no row.
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("20,2,0.0")
    with _log(tmp_path, start=10, history=history) as log:
        assert [row["step"] for row in read_csv(tmp_path / "steps.csv")] == ["5", "10"]
        assert [row["epoch"] for row in read_csv(tmp_path / "metrics.csv")] == ["1"]
        log.step(15, VALUES)
        log.epoch(_row(2))
    with (tmp_path / "steps.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5", "10", "15"]
    assert [row["epoch"] for row in read_csv(tmp_path / "metrics.csv")] == ["1", "2"]
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_begins_anew_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    for _ in range(2):
        with _log(tmp_path) as log:
            log.step(5, VALUES)
            log.epoch(_row(1))
    assert len(read_csv(tmp_path / "steps.csv")) == len(read_csv(tmp_path / "metrics.csv")) == 1


def test_a_row_that_was_cut_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"step,loss\n1,2.0\n2\n3,4.0\n4,1.2")
    assert read_csv(path) == [{"step": "1", "loss": "2.0"}, {"step": "3", "loss": "4.0"}]
    path.write_bytes(b"")
    assert read_csv(path) == read_csv(tmp_path / "none.csv") == []


def test_new_names_become_columns(tmp_path: Path) -> None:
    with _log(tmp_path, history=[_row(1)]) as log:
        log.epoch(_row(2, skipped_steps=3))
        log.epoch(_row(3))
    rows = read_csv(tmp_path / "metrics.csv")
    assert [row["skipped_steps"] for row in rows] == ["", "3", ""]
    with _log(tmp_path, start=30, history=[_row(1), _row(2, skipped_steps=4)]):
        pass
    assert [row["skipped_steps"] for row in read_csv(tmp_path / "metrics.csv")] == ["", "4"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    full = tmp_path / "steps.csv"
    with pytest.raises(OSError) as caught, _log(tmp_path) as log:
        full.unlink()
        full.symlink_to("/dev/full")
        log.step(10, VALUES)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(full)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with _log(None, tensorboard=True) as log:
        log.step(10, VALUES)
        log.advance(10, 32)
        log.epoch(_row(1))
        log.skipped(11)
    assert not list(tmp_path.iterdir())


def _events(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_tensorboard_shows_a_resumed_run_as_one(tmp_path: Path, monkeypatch) -> None:
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    # Files of one second are read in the order of their names, in which 10 comes before 9.
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))
    with _log(tmp_path, tensorboard=True) as log:
        for step in (5, 10, 15, 20):
            log.step(step, {"loss": float(step)})
        log.epoch(_row(1, val_loss=0.5, clip_top1=0.25))
    with _log(tmp_path, start=10, tensorboard=True) as log:
        log.step(15, {"loss": 1.0})
    assert _events(tmp_path, "step/loss") == [(5, 5.0), (10, 10.0), (15, 1.0)]
    assert _events(tmp_path, "validation/clip_top1") == [(10, 0.25)]
    assert _events(tmp_path, "epoch/train_loss") == [(10, 2.0)]
    with _log(tmp_path, tensorboard=True) as log:
        log.step(5, {"loss": 2.0})
    assert _events(tmp_path, "step/loss") == [(5, 2.0)]


def test_without_tensorboard_one_line_says_so(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING), _log(tmp_path, tensorboard=True) as log:
        log.step(10, VALUES)
        log.epoch(_row(1))
    (record,) = caplog.records
    assert "pip install tensorboard" in record.getMessage()
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "steps.csv"]


class Terminal(io.StringIO):
    """Text that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def _terminal(monkeypatch) -> Terminal:
    """What stands for stderr from now on; pytest puts its own back between fixtures and tests."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def test_bar_tells_epoch_pace_and_what_is_left(tmp_path: Path, monkeypatch) -> None:
    terminal = _terminal(monkeypatch)
    with _log(tmp_path, start=9) as log:
        log.advance(10, 32)
        log.step(10, {"loss": 1.25, "data_wait": 0.031, "clips_per_second": 412.34})
    shown = terminal.getvalue()
    assert "epoch 2/3" in shown and "10/30" in shown
    assert "412.3 clips/s  data 3%  loss 1.250" in shown
    assert "0:00:00" in shown  # one of the 21 steps that are left took no time


def test_no_bar_where_none_is_wanted_or_nobody_looks(capsys, monkeypatch) -> None:
    terminal = _terminal(monkeypatch)
    with _log(None, bar=False) as log:
        log.advance(1, 32)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with _log(None) as log:
        log.advance(1, 32)
        log.step(1, VALUES)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    assert capsys.readouterr().out == ""


def test_bars_within_bars_share_the_display(monkeypatch) -> None:
    terminal = _terminal(monkeypatch)
    with _log(None) as log, progress_bar("evaluating", 5) as advance:
        advance(5)
        log.advance(1, 32)
        with progress_bar("third", None):  # drawn at once, and with it all others
            pass
    lines = terminal.getvalue().replace("\r", "\n").split("\n")
    places = [n for n, line in enumerate(lines) if "evaluating" in line]
    # One display: the outer line stands right above the inner one whenever it is drawn.
    assert places and all("epoch 1/3" in lines[n - 1] for n in places)
    assert any("5/5" in lines[n] for n in places)


def test_what_is_printed_under_a_bar_stays_where_it_belongs(monkeypatch) -> None:
    terminal = _terminal(monkeypatch)
    out = io.StringIO()  # no terminal: a file, say
    monkeypatch.setattr(sys, "stdout", out)
    with _log(None):
        print("epoch 1")
    assert out.getvalue() == "epoch 1\n"
    assert "epoch 1\n" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (90000, "25:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
