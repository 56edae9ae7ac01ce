"""Files that commands would write, and what they may replace. Under a second."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from r21d.cli import main
from r21d.cli.errors import UserError
from r21d.cli.outputs import PICTURE, RESULT, SCORES, Kind, check_output
from r21d.evaluation import Scores, save_scores

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output of each kind, and files that are none."""
    (tmp_path / "old.png").write_bytes(PNG)
    (tmp_path / "old.json").write_text(json.dumps({"clip_top1": 0.5}))
    (tmp_path / "splits.json").write_text(json.dumps({"mean": {}, "splits": []}))
    scores = Scores(["a"], ["b", "c"], [(0,)], torch.zeros(1, 2), torch.tensor([1]))
    save_scores(tmp_path / "old.safetensors", scores)
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "rows.json").write_text('{"path": "a.mp4"}\n{"path": "b.mp4"}\n')
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.safetensors").write_text("no scores")
    for name in ("empty.png", "empty.safetensors", "empty.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (PICTURE, "old.png empty.png new.png new.PNG"),
        (RESULT, "old.json splits.json empty.json new.json new.txt new"),
        (SCORES, "old.safetensors empty.safetensors new.safetensors"),
    ],
)
def test_older_outputs_are_replaced(kind: Kind, names: str) -> None:
    for name in names.split():
        check_output("--out", name, kind, ["kinetics400_torchvision", "other"])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (PICTURE, "text.png", "--out text.png exists and is not a PNG picture"),
        (PICTURE, "new.jpg", "must end in .png"),
        (PICTURE, "folder.png", "is a folder"),
        (PICTURE, "none/new.png", "needs a writable folder none"),
        (RESULT, "list.json", "is not a result of r21d eval"),
        (RESULT, "rows.json", "is not a result of r21d eval"),
        (RESULT, "old.png", "is not a result of r21d eval"),
        (RESULT, os.devnull, "is not a result of r21d eval"),
        (SCORES, "text.safetensors", "is not a file of scores"),
        (SCORES, "scores", "must end in .safetensors"),
    ],
)
def test_nothing_else_is(kind: Kind, name: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_output("--out", name, kind, [])
    assert message in str(raised.value)


def test_inputs_are_not_replaced_under_any_name(folder: Path) -> None:
    (folder / "link.json").symlink_to("old.json")
    (folder / "hard.json").hardlink_to("old.json")
    for name in ("old.json", f"{folder}/old.json", "link.json", "hard.json"):
        with pytest.raises(UserError, match=r"would replace old\.json, which the command reads"):
            check_output("--json", name, RESULT, ["old.json"])
    with pytest.raises(UserError, match="would replace new"):
        check_output("--json", "folder.png/../new", RESULT, ["new"])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a.mp4 --filmstrip text.png", "text.png exists and is not a PNG picture"),
        ("text.mp4 --filmstrip .", "text.png exists and is not a PNG picture"),
        ("old.png --filmstrip old.png", "would replace old.png"),
        ("a.mp4 --sampling dense --clips 3", "leave --clips out"),
    ],
)
def test_predict_refuses_before_the_work(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *arguments.split(), "--weights", "none.safetensors"]) == 2
    assert message in capsys.readouterr().err
