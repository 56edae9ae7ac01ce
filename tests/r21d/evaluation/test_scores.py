"""The file of scores. About a second."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from r21d.evaluation import Scores, load_scores, save_scores

SCORES = Scores(
    names=["x/a.mp4", "y/b \udcff\n.mp4", "c.mp4"],
    classes=["x", "yé"],
    labels=[(0,), (1,), (0, 1)],
    video_scores=torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]),
    clip_counts=torch.tensor([2, 1, 1]),
    protocol={"sampling": "dense", "clips": None, "crops": 1, "frame_rate": 15.0},
)
CLIPS = dataclasses.replace(
    SCORES, clip_scores=torch.tensor([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
)


@pytest.mark.parametrize("scores", [SCORES, CLIPS], ids=["videos", "clips"])
def test_a_file_gives_back_what_was_saved(scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_scores(path, scores)
    found = load_scores(path)
    for field in dataclasses.fields(Scores):
        before, after = getattr(scores, field.name), getattr(found, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after) and before.dtype == after.dtype, field.name
        else:
            assert before == after, field.name
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    save_scores(tmp_path / "b.safetensors", scores)
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors: no such file of scores"):
        load_scores(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a\.safetensors: no file of scores, or a damaged one"):
        load_scores(path)
    save_scores(path, CLIPS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.safetensors: no file of scores, or a damaged one"):
        load_scores(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"a\.safetensors: no file of scores; r21d eval"):
        load_scores(path)
    save_file({"weight": torch.zeros(1)}, path, {"r21d_scores": '{"version": 2}'})
    with pytest.raises(ValueError, match="scores of version 2, this r21d reads 1"):
        load_scores(path)


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_scores(tmp_path / "a.safetensors", SCORES)
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["r21d_scores"])["names"] == SCORES.names
        assert file.get_tensor("video_scores").tolist() == SCORES.video_scores.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["a"]}, r"video_scores must be float32 \(1, 2\)"),
        ({"classes": ["a"]}, r"video_scores must be float32 \(3, 1\)"),
        ({"video_scores": torch.zeros(3, 2).double()}, "got torch.float64"),
        ({"clip_scores": torch.zeros(3, 2)}, r"clip_scores must be float32 \(4, 2\)"),
        ({"labels": [(0,)]}, "3 names, 1 labels and 3 counts"),
    ],
)
def test_scores_that_do_not_fit_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SCORES, **changes)
