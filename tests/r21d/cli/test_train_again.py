"""``r21d train --resume``, ``--overwrite`` and ``--out``: what a run's folder gives and takes.

About eleven seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli.train_runs import (
    NARROW,
    SMALL,
    at_step,
    rows,
    same,
    train,
    weights,
)
from small_sets import small_set

from r21d.cli import main
from r21d.cli import train as train_command
from r21d.cli.train_folder import resumes, write_launch
from r21d.evaluation.distributed import Ranks
from r21d.models import create_model
from r21d.training.protocol import load_config
from r21d.training.run_folder import state_files
from r21d.weights import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("reports")


@pytest.fixture
def videos(tmp_path: Path) -> str:
    """A folder of two classes of three videos."""
    small_set("folder", tmp_path)
    return "videos"


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test that uses it gets as far as the videos."""

    def fail(*arguments: Any) -> None:
        raise AssertionError("the videos were opened")

    monkeypatch.setattr(train_command, "open_datasets", fail)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line by which a command says that it cannot be."""
    train(*arguments, code=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_run_goes_on_from_its_folder_alone(
    videos: str, capsys: pytest.CaptureFixture[str], reports: list[Path]
) -> None:
    arguments = [videos, "--dataset", "folder", "--config", "kinetics_r2plus1d_18_8f"]
    train(*arguments, *SMALL.split(), "--out", "whole")
    train(*arguments, *SMALL.split(), "--max-steps", "3")
    out = "runs/kinetics_r2plus1d_18_8f"
    assert "in epoch 2 of 2; go on with: r21d train --resume --out" in capsys.readouterr().out
    assert len(rows(out)) == 1 and reports[-1] == Path(out)
    train("--resume", "--out", out, "--max-steps", "none")
    assert rows(out) == rows("whole")
    assert same(weights(out), weights("whole"))
    config = load_config(Path(out, "config.toml"))
    assert config.sources["lr"] == "paper, section 4.1"
    assert config.sources["clip_len"] == config.sources["data"] == "command line"
    # More epochs go on where the run ended; done is done.
    train("--resume", "--out", out, "--epochs", "3")
    assert [row["epoch"] for row in rows(out)] == [1, 2, 3]
    train("--resume", "--out", out)
    assert len(json.loads(Path(out, "environment.json").read_text())) == 4


def test_other_settings_or_videos_are_refused_by_name(
    videos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(videos, *SMALL.split(), "--out", "run", "--max-steps", "1")
    before = Path("run", "config.toml").read_text()
    train("--resume", "--out", "run", "--clip-len", "4", "--lr", "0.5", code=2)
    error = capsys.readouterr().err
    assert "clip_len was 2 and is now 4" in error and "lr was 0.01 and is now 0.5" in error
    train("--resume", "--out", "run", "--no-flip", "--val-clips", "2", code=2)
    error = capsys.readouterr().err
    assert "flip was True and is now False" in error and "val_clips was 1 and is now 2" in error
    Path(videos, "run", "a.mp4").rename(Path(videos, "run", "z.mp4"))
    train("--resume", "--out", "run", code=2)
    assert "more than a tenth" in capsys.readouterr().err
    train(videos, *SMALL.split(), "--out", "run", code=2)
    assert "already holds a run" in capsys.readouterr().err
    assert Path("run", "config.toml").read_text() == before


def test_videos_may_move(videos: str) -> None:
    train(videos, *SMALL.split(), "--out", "run", "--max-steps", "1")
    Path(videos).rename("elsewhere")
    train("elsewhere", "--resume", "--out", "run", "--max-steps", "2")
    assert load_config("run/config.toml").run.data == os.path.abspath("elsewhere")


def test_a_restart_by_torchrun_goes_on_by_itself(
    videos: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Lost(Exception):
        """What no command expects."""

    def fail() -> None:
        raise Lost

    arguments = [videos, *SMALL.split(), "--out", "run"]
    train(*arguments, "--out", "whole")
    for option in ("--overwrite", "--resume"):
        train(*arguments, "--overwrite", "--epochs", "1")
        at_step(3, monkeypatch, fail)
        with pytest.raises(Lost):
            main(["train", *arguments, option])
        # The same command again, of which --overwrite has been heeded.
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        capsys.readouterr()
        train(*arguments, option)
        assert "epoch 1/2" not in capsys.readouterr().out
        assert rows("run") == rows("whole") and same(weights("run"), weights("whole"))
        monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")


def test_a_restart_by_torchrun_leaves_the_run_of_another_start_alone(
    videos: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first start is refused, or dies before it begins; so do those that follow it."""

    def started(launch: str, restarts: int) -> None:
        file = f"/tmp/{launch}/attempt_{restarts}/0/error.json"
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))

    arguments = [videos, *SMALL.split(), "--out", "run"]
    started("old", 0)
    train(*arguments, "--max-steps", "3")
    before = weights("run")
    for restarts in (0, 1):
        started("new", restarts)
        assert "already holds a run" in refused(capsys, *arguments)
    assert same(weights("run"), before)
    # The old one's, also where a machine has come, which is not counted.
    started("old", 0)
    train(*arguments, "--overwrite")
    assert "epoch 1/2" not in capsys.readouterr().out
    started("new", 1)
    train(*arguments, "--overwrite")
    assert "epoch 1/2" in capsys.readouterr().out


def test_the_name_of_a_configuration_finds_its_run(
    videos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "kinetics_r2plus1d_18_8f"
    train(videos, "--dataset", "folder", "--config", name, *SMALL.split(), "--max-steps", "1")
    train("--resume", "--config", name, "--max-steps", "2")
    assert len(rows(f"runs/{name}")) == 1
    # With --out it is what the run shall be, as any other option.
    again = ["--resume", "--config", name, "--out", f"runs/{name}", videos, "--dataset", "folder"]
    error = refused(capsys, *again)
    assert "clip_len was 2 and is now 8" in error


def test_a_run_goes_on_from_another_folder(
    videos: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(videos, *SMALL.split(), "--out", "run", "--max-steps", "1", "--val", videos)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    train("--resume", "--out", "../run", "--max-steps", "2")
    assert load_config("../run/config.toml").run.data == str(tmp_path / "videos")
    (tmp_path / "videos").rename(tmp_path / "elsewhere")
    error = refused(capsys, "--resume", "--out", "../run")
    assert f"the videos of the run are no longer in {tmp_path / 'videos'}: say where" in error


def test_a_fine_tuned_run_goes_on_without_what_it_has_started_from(
    videos: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = create_model("mc2_18", 3, eps=0.25, dropout=0.5, **NARROW)
    Path("old").mkdir()
    spec = load_config(None, {"clip_len": 2, "resize": (16, 20), "crop": (16, 16)}).input.spec()
    notes = {**spec.to_dict(), "mean": [0.5, 0.5, 0.5], "frame_rate": 7.0}
    save_checkpoint("old/best.safetensors", old, classes=["x", "y", "z"], input=notes)
    options = ["--weights", "old", *SMALL.split()[8:], "--crop", "16x16"]
    train(videos, *options, "--out", "whole")
    train(videos, *options, "--out", "run", "--max-steps", "3")
    shutil.copytree("run", "again")
    shutil.rmtree("old")

    train("--resume", "--out", "run", "--max-steps", "none")
    # A command as torchrun gives it again, whose settings are not read from the folder; and one
    # that names the weights from where they now would be.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    Path("again", "config.toml").unlink()
    train(videos, *options, "--weights", "other/old", "--out", "again")
    monkeypatch.chdir(tmp_path / "run")
    train("--resume", "--out", ".", "--weights", "../old")
    assert "--weights is not read" in caplog.text
    monkeypatch.chdir(tmp_path)
    for out in ("run", "again"):
        assert rows(out) == rows("whole") and same(weights(out), weights("whole"))
        made, whole = (load_checkpoint(Path(o, "last.safetensors")) for o in (out, "whole"))
        assert (made.config, made.input) == (whole.config, whole.input)
        assert (made.config["eps"], made.config["dropout"]) == (0.25, 0.5)
        assert (made.input["mean"], made.input["frame_rate"]) == ([0.5] * 3, 7.0)
        config = load_config(Path(out, "config.toml"))
        assert config.sources["model"] == "the weights"
    assert load_config("run/config.toml").model.weights == str(tmp_path / "old")


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("arguments", ["--out empty", "--out nothing --dry-run", "", "--config x"])
def test_what_holds_no_run_cannot_go_on(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("x").write_text("")
    out = arguments.split()[1] if "--out" in arguments else "runs/r21d"
    error = refused(capsys, "--resume", *arguments.split())
    assert f"there is no run to resume in {out}: --out names the folder of one" in error


@pytest.mark.usefixtures("unopened")
def test_a_run_of_an_earlier_version_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run", "state.safetensors").write_bytes(b"")
    assert "of an earlier version" in refused(capsys, "videos", "--resume", "--out", "run")


def test_changes_are_taken_where_they_are_allowed(
    videos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(videos, *SMALL.split(), "--out", "run", "--max-steps", "1")
    before = Path("run", "config.toml").read_bytes()
    lower = ["--resume", "--out", "run", "--lr", "0.001"]
    assert "--allow-changes" in refused(capsys, *lower)
    assert Path("run", "config.toml").read_bytes() == before
    error = refused(capsys, videos, "--allow-changes", "--out", "other")
    assert "--allow-changes is for a run that goes on" in error
    train(*lower, "--allow-changes", "--max-steps", "none")
    assert {row["lr"] for row in rows("run")} == {0.001}
    config = load_config("run/config.toml")
    assert (config.train.lr, config.sources["lr"]) == (0.001, "command line")
    train("--resume", "--out", "run", "--epochs", "3")
    before = Path("run", "config.toml").read_bytes()
    assert "steps are done" in refused(capsys, "--resume", "--out", "run", "--epochs", "1")
    assert Path("run", "config.toml").read_bytes() == before


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "--out file needs a folder, and {here}/file is none"),
        ("file/run", "--out file/run needs a folder, and {here}/file is none"),
        ("dangling", "--out dangling needs a folder, and {here}/dangling is none"),
        ("loop/run", "--out loop/run cannot be a folder: Too many levels of symbolic links"),
        ("closed/run/x", "--out closed/run/x needs a writable folder, and {here}/closed is none"),
        ("closed", "--out closed needs a writable folder, and {here}/closed is none"),
        ("n" * 256, "cannot be a folder: File name too long"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_a_folder_that_cannot_be_is_refused_first(
    out: str,
    message: str,
    dry: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("file").write_text("")
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    Path("closed").mkdir()
    # What the system would say; nothing is closed to its superuser.
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "closed" and access(path, mode)
    )
    error = refused(capsys, "videos", "--out", out, *(["--dry-run"] if dry else []))
    assert message.format(here=tmp_path) in error
    assert not list(Path("closed").iterdir()) and not Path("runs").exists()


@pytest.mark.parametrize("start", ["run", "run/last.safetensors", "link/best.safetensors"])
def test_the_weights_to_start_from_are_not_overwritten(
    start: str, videos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("link").symlink_to("run")
    model = create_model("r3d_18", 2, **NARROW)
    for name in ("best", "last"):
        save_checkpoint(f"run/{name}.safetensors", model, classes=["a", "b"], input={})
    error = refused(capsys, videos, "--weights", start, "--out", "run", "--overwrite")
    assert "--out run is to be replaced and holds what the new run would start from" in error
    assert Path("run", "last.safetensors").is_file()


def test_names_that_are_no_text_serve_as_any_other(
    videos: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # The report, too.
    monkeypatch.chdir(tmp_path)
    out, config = os.fsdecode(b"r\xff\x1b"), os.fsdecode(b"m\xff\x1b.toml")
    try:
        Path(config).write_text("[train]\nlr = 0.02\n")
    except OSError:
        pytest.skip("names of files have to be Unicode here")
    train(videos, "--config", config, *SMALL.split(), "--out", out, "--max-steps", "3")
    train("--resume", "--out", out, "--max-steps", "none")
    assert len(rows(out)) == 2
    assert load_config(Path(out, "config.toml")).sources["lr"] == r"m\udcff\x1b.toml"
    assert r"checkpoint: r\xff\x1b/best.safetensors" in capsys.readouterr().out
    train(videos, "--config", config, *SMALL.split(), "--out", "other", "--dry-run")
    error = refused(capsys, videos, "--config", config + "x")
    assert "there is no configuration" in error


def test_one_of_the_machines_that_have_begun_a_run_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    arguments = argparse.Namespace(resume=False)
    assert not resumes(arguments, tmp_path, ["a", "b"], Ranks())
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "step_000000001.safetensors").write_bytes(b"")
    assert state_files(tmp_path)
    # Of two machines that have begun it one may have been replaced.
    write_launch(tmp_path, ["a", "b"])
    assert resumes(arguments, tmp_path, ["b", "c"], Ranks())
    assert not resumes(arguments, tmp_path, ["c"], Ranks())
    # Without torchrun two commands of one shell have a parent in common.
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    assert not resumes(arguments, tmp_path, ["a", "b"], Ranks())
