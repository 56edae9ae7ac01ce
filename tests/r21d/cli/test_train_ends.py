"""``r21d train``: what it says when it ends early, and when nobody listens (about four seconds)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.train_runs import SMALL, at_step, rows, train

from r21d.training.protocol import load_config
from r21d.training.run_folder import state_files
from r21d.training.step import Learner
from r21d.video import VideoError

pytestmark = pytest.mark.usefixtures("reports")

GO_ON = "; go on with: r21d train --resume --out run\n"


@contextlib.contextmanager
def unread(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``sys.<name>`` is a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        with monkeypatch.context() as patched:
            patched.setattr(sys, name, stream)
            yield
        # What was printed in vain would make its end fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def raising(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_a_run_does_not_end_with_its_reader(
    videos: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with unread("stdout", monkeypatch):
        train(videos, *SMALL.split(), "--out", "run")
        # It goes nowhere by now.
        sys.stdout.flush()
    assert len(rows("run")) == 2 and Path("run", "best.safetensors").is_file()
    assert "nothing more can be printed (Broken pipe)" in caplog.text


def test_a_stop_that_nobody_hears_of_has_its_exit_code(
    videos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(0, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
    with unread("stderr", monkeypatch):
        train(videos, *SMALL.split(), "--out", "run", code=129)
    assert max(state_files("run")) == 1


def test_the_first_signal_is_answered(
    videos: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    at_step(0, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(videos, *SMALL.split(), "--out", "run", code=130)
    answer, told = capfd.readouterr().err.splitlines(keepends=True)
    assert answer.startswith("r21d: stopping: the step at hand is finished")
    assert told.endswith(GO_ON)


def test_a_second_one_ends_at_once(
    videos: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reports: list[Path],
) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    at_step(1, monkeypatch, twice)
    train(videos, *SMALL.split(), "--out", "run", code=130)
    told = "r21d: error: interrupted; the newest state is that after step 1"
    assert capsys.readouterr().err == told + GO_ON
    assert not reports
    train("--resume", "--out", "run")
    assert len(rows("run")) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory after step 1; a lower batch_size "),
        (VideoError("a.mp4: broken"), "a.mp4: broken; strict=False (--no-strict) draws another "),
    ],
)
def test_what_is_no_fault_of_the_run_tells_how_to_go_on(
    error: Exception,
    told: str,
    videos: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_step(1, monkeypatch, raising(error))
    train(videos, *SMALL.split(), "--strict", "--out", "run", code=2)
    message = capsys.readouterr().err
    assert message.startswith(f"r21d: error: {told}")
    less = " --batch-size 1 --accumulate 2" if isinstance(error, MemoryError) else ""
    assert message.endswith(GO_ON.replace("\n", f"{less}\n"))
    assert "the last good state is run/states/step_000000001.safetensors" in message
    assert load_config("run/config.toml").run.strict
    train("--resume", "--out", "run", "--no-strict")
    assert len(rows("run")) == 2 and not load_config("run/config.toml").run.strict


def test_a_dry_run_that_is_stopped_names_no_run(
    videos: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Learner.step

    def stopped(learner: Learner, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(learner, *arguments)

    monkeypatch.setattr(Learner, "step", stopped)
    train(videos, *SMALL.split(), "--out", "run", "--dry-run", code=130)
    error = capsys.readouterr().err
    assert error.endswith("no state of the run is saved\n") and "--resume" not in error
