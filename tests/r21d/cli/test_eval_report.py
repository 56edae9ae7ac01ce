"""The tables of ``r21d eval``, from results made by hand. About a second."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from r21d.cli.eval_report import describe_protocol, mean_of_splits, print_mean, print_result
from r21d.evaluation import EvalResult
from r21d.evaluation.metrics import per_class_accuracy

PROTOCOL: dict[str, Any] = {
    "sampling": "even",
    "clips": 10,
    "crops": 1,
    "clip_len": 16,
    "frame_rate": 15.0,
    "frame_stride": 1,
    "resize": [128, 171],
    "crop": [112, 112],
    "averaged": "softmax",
}


def result(confusion: torch.Tensor, classes: list[str] | None = None, **changes: Any) -> EvalResult:
    """A result of which the confusion matrix tells the accuracies."""
    names = classes or [f"class {i}" for i in range(len(confusion))]
    top1 = int(confusion.diagonal().sum()) / int(confusion.sum())
    shares = {names[i]: share for i, share in per_class_accuracy(confusion).items()}
    values = {
        "clip_top1": 0.25,
        "clip_top5": 0.5,
        "video_top1": top1,
        "video_top5": 1.0,
        "loss": 1.2345,
        "clips": 40,
        "videos": int(confusion.sum()),
        "per_class": shares,
        "confusion": confusion,
        "classes": names,
        "failed": [],
        "protocol": PROTOCOL,
    }
    return EvalResult(**{**values, **changes})


MEASURES = ["clip@1", "clip@5", "video@1", "video@5"]
SMALL = torch.tensor([[3, 1, 0, 0], [0, 0, 2, 1], [0, 0, 2, 0], [0, 0, 0, 0]])


def printed(capsys: pytest.CaptureFixture[str], *arguments: Any, **options: Any) -> list[str]:
    capsys.readouterr()
    print_result(*arguments, **{"matrix": False, **options})
    return capsys.readouterr().out.splitlines()


def test_a_small_result(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, result(SMALL, ["bend", "run", "jump", "wave"]), None)
    assert lines[0].startswith("10 evenly spaced clips a video, 16 frames, 15 a second")
    words = [line.split() for line in lines]
    assert ["clip@1", "25.0%", "10", "of", "40"] in words
    assert ["video@1", "55.6%", "5", "of", "9"] in words
    assert ["mean", "of", "classes", "58.3%", "3", "classes"] in words
    assert "9 videos, 40 clips, loss 1.234" in lines
    start = lines.index("class  videos  video@1  most often taken for")
    # The worst first; without videos no row.
    assert lines[start + 1 :] == [
        "run         3     0.0%  jump (2)",
        "bend        4    75.0%  run (1)",
        "jump        2   100.0%",
    ]
    assert not any("left out" in line or "missing" in line for line in lines)


def large() -> EvalResult:
    """400 classes of 100 videos; of class i i // 4 are right, the others are taken for class 0."""
    confusion = torch.zeros(400, 400, dtype=torch.int64)
    right = torch.arange(400) // 4
    confusion.diagonal().copy_(right)
    confusion[:, 0] += 100 - right
    return result(confusion)


def class_rows(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("class ") and "videos" not in line]


def test_of_many_classes_the_worst_and_the_best_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(capsys, large(), None)
    assert "classes, the worst first; --per-class all prints the 380 others" in lines
    rows = class_rows(lines)
    assert rows[0] == "class 1       100     0.0%  class 0 (100)"
    assert [row.split()[1] for row in rows[:4]] == ["1", "2", "3", "4"]
    assert rows[-1].startswith("class 0       100   100.0%")
    assert len(rows) == 20 and sum(line.startswith("...") for line in lines) == 1


@pytest.mark.parametrize(("shown", "rows"), [(3, 3), (0, 0), (400, 400), (float("inf"), 400)])
def test_as_many_classes_as_asked_for(
    shown: float, rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, large(), shown)
    found = class_rows(lines)
    assert len(found) == rows
    if rows:
        assert "0.0%" in found[0]
    assert any("--per-class all" in line for line in lines) == (0 < rows < 400)


def test_files_left_out_and_missing_are_counted_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = [("v/a\n.mp4", "v/a\n.mp4: no video"), ("b.mp4", "damaged:\n3 packets")]
    some = result(SMALL, failed=failed, missing=["c.mp4"])
    lines = printed(capsys, some, None)
    assert "9 videos, 40 clips, loss 1.234; 2 of 12 left out; 1 of 12 missing" in lines
    assert lines[-3:] == [
        "left out: v/a\\n.mp4: no video",
        "left out: b.mp4: damaged:\\n3 packets",
        "missing: c.mp4",
    ]
    many = result(SMALL, failed=failed * 4, missing=["c.mp4"] * 30)
    lines = printed(capsys, many, None)
    assert sum(line.startswith("left out: ") for line in lines) == 8
    assert sum(line.startswith("missing: ") for line in lines) == 2
    assert lines[-1] == "and 28 more, which --json FILE lists"


def test_several_labels_are_hits(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, result(SMALL, multilabel=True), None)
    assert any(line.startswith("video hit@5") for line in lines)
    # What a video was taken for may be another of its labels.
    assert not any("taken for" in line or "class 1 (1)" in line for line in lines)


def test_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, result(SMALL), None, matrix=True)
    start = lines.index("videos by true class (row) and top class (column)")
    assert lines[start + 2].split() == ["0", "class", "0", "3", "1", "0", "0"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "10 evenly spaced clips a video, 16 frames, 15 a second; scaled to 128x171, "),
        ({}, "centre crop 112x112; softmax scores averaged over a video's clips"),
        ({"sampling": "random", "seed": 3}, "10 random clips a video (seed 3), 16 frames"),
        ({"sampling": "dense", "clips": None}, "clips end to end over each video, 16 frames"),
        ({"clips": 1}, "the middle clip of each video, 16 frames"),
        ({"crops": 3}, "3 crops 112x112; softmax scores averaged over a video's clips and crops"),
        ({"crops": 3}, "; clip@k counts each crop"),
        ({"frame_rate": None}, "16 frames, consecutive;"),
        ({"frame_rate": None, "frame_stride": 8}, "16 frames, one in 8 of the video's;"),
        ({"frame_rate": 30.0, "frame_stride": 4}, "16 frames, 7.5 a second;"),
        ({"resize": 256}, "scaled to 256 (shorter side), "),
    ],
)
def test_the_protocol_in_words(changes: dict[str, Any], expected: str) -> None:
    assert expected in describe_protocol({**PROTOCOL, **changes})


def test_splits_count_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    results = {"1": result(SMALL), "2": result(torch.eye(2, dtype=torch.int64), clip_top1=0.75)}
    mean = mean_of_splits(results)
    assert mean["clip_top1"] == 0.5
    assert mean["video_top1"] == (5 / 9 + 1) / 2
    print_mean(results)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4].split() == ["split", "videos", "left", "out", *MEASURES]
    assert lines[-3].split() == ["1", "9", "0", "25.0%", "50.0%", "55.6%", "100.0%"]
    assert lines[-1].split() == ["mean", "50.0%", "50.0%", "77.8%", "100.0%"]
