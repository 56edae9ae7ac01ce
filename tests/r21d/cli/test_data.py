"""The options that name videos, and training on data sets with sides (about four seconds)."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from r21d.cli import main, train_data
from r21d.cli import train as train_command
from r21d.cli.data import add_data, splits, video_list
from r21d.cli.errors import UserError
from r21d.cli.training_options import given_settings
from r21d.models import create_model
from r21d.training.protocol import load_config
from r21d.training.split import split_videos
from r21d.video import InputSpec, VideoDataset, write_video
from r21d.video.lists import VideoItem, VideoList

UCF = {
    "classInd.txt": "1 run\n2 walk\n",
    "trainlist01.txt": "run/a.avi 1\nrun/b.avi 1\nwalk/a.avi 2\nwalk/b.avi 2\n",
    "testlist01.txt": "run/c.avi\nwalk/c.avi\n",
}
SMALL = "--clip-len 2 --resize 16x16 --crop 16x16 --batch-size 2 --val-clips 1"


@pytest.fixture
def ucf(tmp_path: Path) -> tuple[Path, Path]:
    """UCF101 in little: videos (mp4 in the place of avi) and lists."""
    (tmp_path / "lists").mkdir()
    for name, text in UCF.items():
        (tmp_path / "lists" / name).write_text(text)
    for number, name in enumerate(f"{c}/{v}.mp4" for c in ("run", "walk") for v in "abc"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, torch.full((4, 16, 16, 3), 30 * number, dtype=torch.uint8))
    return tmp_path / "videos", tmp_path / "lists"


def _parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_data(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def _parse_train(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_command.add_command(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    return parser.parse_args(["train", *map(str, arguments)])


def _open_lists(*arguments: object) -> tuple[VideoList, VideoList | None]:
    settings = load_config(None, given_settings(_parse_train(*arguments)))
    return train_data._lists(train_data.data_options(settings))


def _train_lists(*arguments: object) -> tuple[list[str], list[str] | None]:
    """Which videos ``r21d train`` would train on and validate on (None: some of the former)."""
    train_list, val_list = _open_lists(*arguments)
    assert val_list is None or val_list.classes == train_list.classes
    return _names(train_list), None if val_list is None else _names(val_list)


def _names(videos: VideoList) -> list[str]:
    return [f"{item.path.parent.name}/{item.path.name}" for item in videos.items]


def test_a_folder_is_what_data_is(ucf: tuple[Path, Path]) -> None:
    args = _parse(ucf[0])
    assert (args.index, args.strict, splits(args)) == (None, False, [None])
    videos = video_list(args, True, ["walk", "jump", "run"])
    assert (len(videos.items), videos.items[0].labels) == (6, (2,))


def test_splits_are_spelled_out(ucf: tuple[Path, Path]) -> None:
    options = (ucf[0], "--dataset", "ucf101", "--annotations", ucf[1], "--split")
    assert splits(_parse(*options, "3", "1")) == ["3", "1"]
    with pytest.raises(UserError, match="--split names 3 twice"):
        splits(_parse(*options, "3", "1", "3"))
    assert splits(_parse(*options, "2", "all")) == ["1", "2", "3"]
    assert _names(video_list(_parse(*options, "1"), False, split="1")) == [
        "run/c.mp4",
        "walk/c.mp4",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "1"], "--dataset folder has no splits; leave --split out"),
        (["--dataset", "hmdb51"], "--dataset hmdb51 needs --split: 1, 2, 3 or all"),
        (["--dataset", "ucf101", "--split", "1", "4"], "--split 4 is unknown; expected 1, 2, 3"),
        (["--dataset", "csv", "--split", "all"], "--dataset csv has no splits"),
    ],
)
def test_wrong_splits(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        splits(_parse(tmp_path, *arguments))


def test_training_takes_a_sets_own_sides(ucf: tuple[Path, Path]) -> None:
    options = [ucf[0], "--dataset", "ucf101", "--annotations", ucf[1], "--split", "1"]
    train = ["run/a.mp4", "run/b.mp4", "walk/a.mp4", "walk/b.mp4"]
    assert _train_lists(*options) == (train, ["run/c.mp4", "walk/c.mp4"])
    # Asked for, some of the training side are held out, and the test side is left alone.
    assert _train_lists(*options, "--val-fraction", "0.5") == (train, None)
    with pytest.raises(UserError, match="--dataset ucf101 has its own side to validate on"):
        _train_lists(*options, "--val", "x")
    with pytest.raises(UserError, match="one --split at a time, got 1, 2"):
        _train_lists(*options, "2")


def test_training_takes_other_lists_to_validate_on(ucf: tuple[Path, Path]) -> None:
    root, lists = ucf
    six = [f"{c}/{v}.mp4" for c in ("run", "walk") for v in "abc"]
    assert _train_lists(root) == (six, None)
    assert _train_lists(root, "--val", root) == (six, six)
    (lists / "train.csv").write_text("run/a.mp4,run\nwalk/a.mp4,walk\n")
    (lists / "val.csv").write_text("walk/c.mp4,walk;run\n")
    options = [root, "--dataset", "csv", "--annotations", lists / "train.csv"]
    train = ["run/a.mp4", "walk/a.mp4"]
    assert _train_lists(*options) == (train, None)
    assert _train_lists(*options, "--val", lists / "val.csv") == (train, ["walk/c.mp4"])
    # One list with several labels a video makes both of that kind.
    for side in _open_lists(*options, "--val", lists / "val.csv"):
        assert side is not None and side.multilabel
    for name in ("train", "val"):
        (root / f"{name}.csv").write_text((lists / f"{name}.csv").read_text())
    options = [root / "train.csv", "--dataset", "csv", "--val", root / "val.csv"]
    assert _train_lists(*options) == (train, ["walk/c.mp4"])


def test_train_on_a_split(
    ucf: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = {"blocks": (1, 1, 1, 1), "widths": (4, 4, 8, 8), "stem_channels": 4}
    monkeypatch.setattr("r21d.models.create_model", partial(create_model, **tiny))
    out = tmp_path / "run"
    options = ["--dataset", "ucf101", "--annotations", str(ucf[1]), "--split", "1"]
    arguments = ["train", str(ucf[0]), *options, *SMALL.split(), "--epochs", "1", "--out", str(out)]
    assert main(arguments) == 0
    assert "4 videos to train on, 2 to validate on, 2 classes" in capsys.readouterr().out
    (row,) = map(json.loads, (out / "history.jsonl").read_text().splitlines())
    assert "val_loss" in row


def test_index_and_strict_are_heeded(
    ucf: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ucf[0] / "run" / "a.mp4").write_bytes(b"no video")
    out = tmp_path / "run"
    arguments = ["train", str(ucf[0]), *SMALL.split(), "--out", str(out)]
    assert main([*arguments, "--strict"]) == 2
    assert "a.mp4" in capsys.readouterr().err
    assert main([*arguments, "--index", str(tmp_path / "none.jsonl")]) == 2
    assert "r21d index" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "history.jsonl").touch()
    # Told before the videos, which are not even there, are looked at.
    arguments = ["train", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert main(arguments) == 2
    message = "already holds a run (history.jsonl): --resume goes on with it, --overwrite replaces"
    assert message in capsys.readouterr().err
    # A history is no state to go on from.
    assert main([*arguments, "--resume"]) == 2
    assert "there is no run to resume in" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 2
    assert "none: no such folder" in capsys.readouterr().err


def test_videos_of_several_classes_are_held_out_by_their_first(ucf: tuple[Path, Path]) -> None:
    paths = sorted(ucf[0].glob("*/*.mp4"))
    items = [VideoItem(path, ((0, 1), (1,))[number % 2]) for number, path in enumerate(paths)]
    videos = VideoList("csv", ucf[0], ["run", "walk"], items, [ucf[0] / "gone.mp4"], True)
    spec = InputSpec(clip_len=2, frame_rate=None, resize=(16, 16), crop=(16, 16))
    train_set, val_set = split_videos(VideoDataset(videos, spec, train=True), 0.3, clips=2)
    assert sorted(label for _, label in val_set.samples) == [(0, 1), (1,)]
    assert len(train_set.samples) == 4
    assert (train_set.missing, val_set.missing) == ([ucf[0] / "gone.mp4"], [])
    assert val_set[0][0].shape == (2, 3, 2, 16, 16)
    assert val_set[0][1].tolist() in ([1, 1], [0, 1])
