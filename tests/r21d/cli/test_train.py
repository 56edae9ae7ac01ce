"""``r21d train``: its options, what it tells, fine-tuning (about seven seconds)."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cli.train_runs import NARROW, SMALL, at_step, rows, train
from small_sets import small_set

from r21d.cli import main
from r21d.cli import train as train_command
from r21d.cli.dry_run import describe_steps
from r21d.cli.train_data import open_datasets
from r21d.cli.training_options import ELSEWHERE, given_settings
from r21d.evaluation.distributed import RankFailed
from r21d.models import create_model
from r21d.training import TrainConfig
from r21d.training.protocol import load_config
from r21d.training.run_config import KEYS
from r21d.training.run_folder import state_files
from r21d.video import ClipSampling
from r21d.weights import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("reports")


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_command.add_command(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    return parser.parse_args(["train", *arguments])


def settings(text: str) -> dict[str, Any]:
    return given_settings(parsed("videos", *text.split()))


def test_every_setting_has_an_option() -> None:
    flags = {key: f"--{key.replace('_', '-')}" for key in KEYS if key not in ELSEWHERE}
    flags["lr_scales"] = "--lr-scale"
    options = {
        "lr_scales": "fc=2",
        "model": "r3d_18",
        "midplanes": "paper",
        "short": "loop",
        "val_sampling": "even",
        "schedule": "step",
        "dtype": "float32",
        "resize": "200x300",
        "crop": "10x10",
    }
    for key, flag in flags.items():
        kind = KEYS[key].kind
        text = options.get(key, "0.5" if kind is float else "1")
        given = settings(flag if kind is bool else f"{flag} {text}")
        assert set(given) == {"data", key}
        load_config(None, given)
    assert settings("--val-fraction 0.5")["val_fraction"] == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("--bf16", {"dtype": "bfloat16"}),
        ("--no-flip", {"flip": False}),
        ("--frame-rate native --max-steps none", {"frame_rate": None, "max_steps": None}),
        ("--resize 128 --crop 8x9", {"resize": 128, "crop": (8, 9)}),
        ("--lr-scale fc=10 --lr-scale layer4.1=0.5", {"lr_scales": {"fc": 10, "layer4.1": 0.5}}),
        (
            "--dataset ucf101 --split 2 --strict",
            {"dataset": "ucf101", "split": "2", "strict": True},
        ),
    ],
)
def test_options_become_settings(text: str, expected: dict[str, Any]) -> None:
    assert settings(text) == {"data": "videos", **expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epochs x", "argument --epochs: 'x' is not a whole number"),
        ("--lr high", "argument --lr: 'high' is not a number"),
        ("--dtype int8", "'int8' is not one of float32, bfloat16, float16"),
        ("--midplanes mine", "'mine' is not one of paper, torchvision, none"),
        ("--lr-scale fc", "'fc' is not NAME=FACTOR, like fc=10"),
        ("--resize 0", "'0' is not 2 positive numbers joined by x"),
    ],
)
def test_bad_options_are_refused(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "videos", *options.split()])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name DATA, the folder of the videos"),
        ("videos --config kinetix", "no configuration 'kinetix'"),
        ("videos --epochs 0", "epochs is 0, expected at least 1"),
        ("videos --momentum 0", "above 0 and below 1; 0 needs nesterov=False (--no-nesterov)"),
        ("videos --device abacus", "--device abacus cannot be used here"),
        ("videos --lr-scale fcc=10 --width 2", "'fcc' leads no parameter of the network"),
        ("videos --freeze 9 --width 2", "freeze is 9, expected at most 5"),
        ("videos --model i3d --width 2", "width is 2, expected none for i3d"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    arguments: str, message: str, videos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Path(videos).name == "videos"
    train(*arguments.split(), code=2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(Path("runs").glob("*/[!.]*"))


def test_the_protocols_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--list-configs"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("kinetics_to_ucf101  ") and "UCF101" in line for line in lines)


def test_a_dry_run_tells_all_and_writes_nothing(
    videos: str, capsys: pytest.CaptureFixture[str], reports: list[Path]
) -> None:
    options = (
        "--dataset folder --config kinetics_r2plus1d_18_8f --accumulate 3 --freeze 1 --dry-run"
    )
    train(videos, *SMALL.split(), *options.split())
    text = capsys.readouterr().out
    assert "lr = 0.01  # paper, section 4.1" in text
    assert "width = 2  # command line" in text
    assert "step: 6 clips, 2 a pass x 3 (--accumulate) x 1 (processes)" in text
    assert "tried: a step of 6 clips, and a validation of 2 clips of 2 videos" in text
    frozen = sum(p.numel() for p in create_model("r2plus1d_18", 2, **NARROW).stem.parameters())
    assert f"of which {frozen:,} are frozen" in text
    assert not Path("runs").exists() and not reports


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"epochs": 25}, "0.01 from epoch 1, 0.001 from epoch 11, 0.0001 from epoch 21"),
        ({"epochs": 2, "lr_batch": 16}, "0.08 from epoch 1"),
        (
            {"epochs": 2, "schedule": "cosine", "warmup_epochs": 1.0},
            "0.01 falling to 0.005 in epoch 2; rising from 0.005 in the first 1 epochs",
        ),
    ],
)
def test_steps_and_learning_rates_are_told(options: dict[str, Any], rates: str) -> None:
    lines = describe_steps(TrainConfig(**options), 200, world=4)
    assert lines[:2] == [
        "step: 128 clips, 32 a pass x 1 (--accumulate) x 4 (processes)",
        "epoch: 2 steps, 1.28 times the 200 training videos",
    ]
    assert lines[3] == f"learning rate: {rates}"


def test_the_settings_reach_the_videos(videos: str, tmp_path: Path) -> None:
    options = {"data": videos, "flip": False, "clip_len": 3, "short": "loop", "seed": 7}
    options |= {"val_clips": 4, "val_sampling": "random", "strict": True}
    other = small_set("folder", tmp_path / "other")[0]
    for validation in ({}, {"val": other}):
        config = load_config(None, options | validation)
        train_set, val_set = open_datasets(config, config.input.spec())
        assert (train_set.flip, train_set.seed, train_set.strict) == (False, 7, True)
        assert val_set.sampling == ClipSampling("random", 4, seed=7)
        for dataset in (train_set, val_set):
            assert (dataset.spec.clip_len, dataset.spec.short) == (3, "loop")
            assert not dataset.normalize


@pytest.mark.parametrize(
    ("number", "code", "done"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 4)]
)
def test_a_signal_ends_the_step_and_saves(
    number: signal.Signals,
    code: int,
    done: int,
    videos: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reports: list[Path],
) -> None:
    at_step(done - 1, monkeypatch, lambda: os.kill(os.getpid(), number))
    # Some clusters set it for all processes, of which each is on its own here.
    monkeypatch.setenv("RANK", "1")
    train(videos, *SMALL.split(), "--out", "run", code=code)
    error = capsys.readouterr().err
    assert f"stopped by {number.name} after step {done} of 4" in error
    assert "go on with: r21d train --resume --out run" in error and error.count("\n") == 1
    # After the first epoch, of two steps, and when stopped.
    assert max(state_files("run")) == done and len(reports) == (1 if done == 1 else 2)
    train("--resume", "--out", "run")
    assert len(rows("run")) == 2 and set(reports) == {Path("run")} and len(reports) == 3


def test_another_process_that_failed_is_told_in_a_line(
    videos: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RankFailed("process 1 of 2:\nno room")

    with monkeypatch.context() as patched:
        patched.setattr(train_command, "open_datasets", fail)
        train(videos, *SMALL.split(), "--out", "run", code=2)
    assert capsys.readouterr().err == "r21d: error: process 1 of 2: no room\n"
    at_step(1, monkeypatch, fail)
    train(videos, *SMALL.split(), "--out", "run", code=2)
    told = "; go on with: r21d train --resume --out run"
    assert capsys.readouterr().err == f"r21d: error: process 1 of 2: no room{told}\n"
    # In that one itself.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(train_command, "open_datasets", fail)
    monkeypatch.setattr("r21d.cli.peers._MOMENT", 0.0)
    train(videos, *SMALL.split(), "--out", "other", code=2)
    assert capsys.readouterr().err == ""


def test_a_report_that_cannot_be_written_ends_no_run(
    videos: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr("r21d.training.report.write_report", fail)
    train(videos, *SMALL.split(), "--out", "run", "--epochs", "1")
    assert "the report could not be written: no room" in caplog.text
    assert Path("run", "best.safetensors").is_file()


def test_fine_tuning_replaces_the_head_and_keeps_what_is_frozen(
    videos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = create_model("r3d_18", 3, eps=1e-3, **NARROW)
    Path("old").mkdir()
    input = {**load_config(None).input.spec().to_dict(), "clip_len": 2, "mean": [0.5, 0.5, 0.5]}
    save_checkpoint("old/best.safetensors", old, classes=["x", "y", "z"], input=input)
    options = "--weights old --clip-len 4 --freeze 2 --lr-scale fc=10 --resize 16x20 --crop 16x16"
    options += " --batch-size 2 --epochs 1 --val-clips 1 --out run"
    train(videos, *options.split())
    told = "weights old (r3d_18): new head for 2 classes in place of 3; trained on 2 frames, now 4"
    assert told in capsys.readouterr().out
    made = load_checkpoint("run/last.safetensors")
    assert (made.config["name"], made.config["eps"], made.classes) == (
        "r3d_18",
        1e-3,
        ["run", "walk"],
    )
    assert (made.input["clip_len"], made.input["mean"]) == (4, [0.5, 0.5, 0.5])
    before, after = old.state_dict(), made.state_dict
    kept = {name for name in before if name in after and before[name].equal(after[name])}
    assert {name for name in before if name.startswith(("stem.", "layer1."))} <= kept
    assert not {name for name in kept if name.endswith("weight") and name.startswith("layer4")}
    # It goes on without being told of the weights.
    train("--resume", "--out", "run", "--epochs", "2")
    assert load_config("run/config.toml").sources["model"] == "the weights"


def test_stock_layers_train_the_same_network(videos: str) -> None:
    train(videos, *SMALL.split(), "--out", "run", "--epochs", "1", "--no-fused")
    assert main(["eval", videos, "--weights", "run/best.safetensors", "--clips", "1"]) == 0


def test_eval_warns_of_another_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = small_set("ucf101", tmp_path)
    for file in list((tmp_path / "lists").glob("*01.txt")):
        file.with_name(file.name.replace("01", "02")).write_text(file.read_text())
    train(*data, *SMALL.split(), "--out", "run", "--epochs", "1")
    evaluate = ["eval", *data[:-1], "1", "--weights", "run/best.safetensors", "--clips", "1"]
    assert main(evaluate) == 0
    assert "was trained on split" not in caplog.text
    evaluate[evaluate.index("1")] = "2"
    assert main(evaluate) == 0
    assert "run/best.safetensors was trained on split 1 of ucf101" in caplog.text
