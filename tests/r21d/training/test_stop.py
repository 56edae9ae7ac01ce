"""Signals, full disks and second runs: how a run stops without loss. About seven seconds."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import start
from torch import Tensor
from training.shades import (
    FixedValidation,
    Shades,
    changed,
    contents,
    run,
    same_weights,
    small_model,
    timeless,
)

from r21d.training import StopRequest, TrainingInterrupted, TrainingStopped, train
from r21d.training.run_folder import state_files
from r21d.training.state import load_state

CONFIG = changed(epochs=2)
KINDS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted run's network, history and folder."""
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder, CONFIG), folder


class Signalling(Shades):
    """Does something when its n-th clip is read."""

    def __init__(self, number: int, act: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self.left, self.act = number, act

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        self.left -= 1
        if self.left == 0:
            self.act()
        return super().__getitem__(index)


class SignallingValidation(FixedValidation, Signalling):
    """The same in a validation, whose clips are alike each time."""


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", KINDS)
@pytest.mark.parametrize(("clip", "step"), [(1, 1), (6, 2), (12, 3)])
def test_a_signal_ends_the_step_and_saves(
    tmp_path: Path, whole: Any, number: int, clip: int, step: int
) -> None:
    before = [signal.getsignal(kind) for kind in KINDS]
    train_set = Signalling(clip, send(number))
    name = signal.Signals(number).name
    told = f"stopped by {name} after step {step} of 6; .*step_00000000{step}.* from step {step}"
    with pytest.raises(TrainingStopped, match=told) as stopped:
        train(small_model(), train_set, FixedValidation(6, clips=2), CONFIG, out=tmp_path)
    assert (stopped.value.signal, stopped.value.step) == (number, step)
    assert [signal.getsignal(kind) for kind in KINDS] == before
    # Not a clip beyond the step was asked for.
    assert train_set.left == clip - 4 * step
    resumed, history = run(tmp_path, CONFIG, resume=True)
    assert timeless(history) == timeless(whole[1]) and same_weights(resumed, whole[0])
    assert contents(tmp_path) == contents(whole[2])


def test_a_signal_during_validation_leaves_it(tmp_path: Path, whole: Any) -> None:
    val_set = SignallingValidation(2, send(signal.SIGTERM), videos=6, clips=2)
    with pytest.raises(TrainingStopped, match="after step 3"):
        config = changed(epochs=2, eval_batch_size=4)
        train(small_model(), Shades(), val_set, config, out=tmp_path)
    # The pass that its clips were for was not run, nor any other.
    assert val_set.left > -3
    step, file = next(iter(state_files(tmp_path).items()))
    assert step == 3 and load_state(file).history == []
    resumed, history = run(tmp_path, CONFIG, resume=True)
    assert timeless(history) == timeless(whole[1]) and same_weights(resumed, whole[0])


def test_a_signal_without_a_folder_says_that_nothing_is_saved() -> None:
    with pytest.raises(TrainingStopped, match=r"no state of the run is saved"):
        train(small_model(), Signalling(1, send(signal.SIGTERM)), None, CONFIG)


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    train_set = Signalling(6, twice)
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), train_set, None, CONFIG, out=tmp_path)
    assert train_set.left == 0
    assert [*state_files(tmp_path)] == [0]


def test_a_request_from_outside_is_obeyed(tmp_path: Path) -> None:
    stop = StopRequest()

    def ask() -> None:
        stop.requested = signal.SIGTERM

    with pytest.raises(TrainingStopped, match="after step 2"):
        train(small_model(), Signalling(5, ask), None, CONFIG, out=tmp_path, stop=stop)


def test_signals_are_left_alone_where_they_cannot_be_or_are_not_wanted() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            send(signal.SIGINT)()
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGINT, before)
    histories: list[Any] = []
    thread = threading.Thread(
        target=lambda: histories.append(train(small_model(), Shades(4), None, changed(epochs=1)))
    )
    thread.start()
    thread.join()
    assert len(histories[0]) == 1


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "a")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("refused", flush=True)
else:
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    def other() -> subprocess.Popen[str]:
        """Another process that wants the folder; it keeps it until its input ends."""
        python = [sys.executable, "-c", LOCK, str(tmp_path / ".lock")]
        return start(python, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def answer() -> str:
        with other() as process:
            return process.communicate("")[0]

    found: list[str] = []
    train_set = Signalling(3, lambda: found.append(answer()))
    train(small_model(), train_set, None, changed(epochs=1), out=tmp_path)
    assert found == ["refused\n"]
    before = sorted(tmp_path.rglob("*"))
    with other() as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        told = f"another process is training in {tmp_path} right now"
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(BlockingIOError, match=told):
                run(tmp_path, changed(epochs=1), **options)
        process.communicate("")
    assert sorted(tmp_path.rglob("*")) == before
    run(tmp_path, changed(epochs=1), resume=True)


def test_on_start_comes_once_the_folder_is_this_runs(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def note() -> None:
        calls.append(sorted(file.name for file in tmp_path.iterdir()))

    run(tmp_path, changed(epochs=1), on_start=note)
    with pytest.raises(FileExistsError):
        run(tmp_path, changed(epochs=1), on_start=note)
    (tmp_path / ".last.safetensors.01234567.tmp").write_bytes(b"of a killed process")
    (tmp_path / "states" / ".step_000000009.safetensors.89abcdef.tmp").write_bytes(b"another")
    run(tmp_path, changed(epochs=1), on_start=note, overwrite=True)
    assert calls == [[".lock"], [".lock", "states", "tensorboard"]]
    assert not [*tmp_path.rglob("*.tmp")]


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs waitid")
def test_a_worker_that_dies_while_the_network_computes_is_told(tmp_path: Path, whole: Any) -> None:
    model = small_model()
    calls: list[int] = []

    def kill_worker(*_: Any) -> None:
        calls.append(0)
        # Three steps, a validation, and the second step after it.
        if len(calls) == 6:
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            worker.kill()
            # Its end is a signal, whose handler raises wherever this process is.
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    model.register_forward_pre_hook(kill_worker)
    told = r"decoding process failed.*; the last good state is .*step_000000004.* from step 4"
    with pytest.raises(ChildProcessError, match=told) as found:
        config = changed(epochs=2, workers=1, checkpoint_steps=1)
        train(model, Shades(), FixedValidation(6, clips=2), config, out=tmp_path)
    # In the network, not at the next batch.
    assert "in kill_worker" in "".join(traceback.format_exception(found.value))
    resumed, history = run(tmp_path, changed(epochs=2, checkpoint_steps=1), resume=True)
    assert timeless(history) == timeless(whole[1]) and same_weights(resumed, whole[0])


class Full:
    """A disk that is full from the n-th write on of files whose name has some text."""

    def __init__(self, text: str, number: int) -> None:
        self.text, self.left = text, number

    def fsync(self, descriptor: int) -> None:
        if self.text in os.readlink(f"/proc/self/fd/{descriptor}"):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("text", "number", "step", "saved"),
    [
        ("states/.step", 0, 0, None),
        ("states/.step", 2, 2, 0),  # the first epoch's two, then amid the second
        ("last.safetensors", 1, 6, 6),
        ("best.json", 0, 3, 3),
        ("history.jsonl", 1, 6, 6),
    ],
)
def test_a_full_disk_stops_the_run_and_loses_nothing(
    tmp_path: Path,
    whole: Any,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    number: int,
    step: int,
    saved: int | None,
) -> None:
    if text.startswith("states") and number:
        config, step, saved = changed(epochs=2, checkpoint_steps=1), 2, 1
    else:
        config = CONFIG
    told = (
        f"cannot write .*{text.split('.')[-1]}.* \\(No space left on device\\), after step {step}"
    )
    kept = "no state" if saved is None else f"step_00000000{saved}.*make room, then resume"
    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted) as found:
        patch.setattr("r21d.atomic.os.fsync", Full(text, number).fsync)
        run(tmp_path, config)
    assert found.value.errno == errno.ENOSPC
    assert re.search(f"{told}.*{kept}", str(found.value)), found.value
    assert not [*tmp_path.rglob("*.tmp")]
    resumed, history = run(tmp_path, config, resume=saved is not None)
    assert timeless(history) == timeless(whole[1]) and same_weights(resumed, whole[0])


def test_a_log_that_cannot_be_written_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(log: Any, row: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "steps.csv")

    monkeypatch.setattr("r21d.training.logs.CsvLog.append", full)
    with pytest.raises(TrainingInterrupted, match=r"cannot write steps\.csv .*, after step 1"):
        run(tmp_path, changed(log_steps=2))
