"""A run's page, made of its files and whatever is missing or broken among them (about 5 s)."""

from __future__ import annotations

import base64
import json
import logging
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("av")

from training.shades import run as train_shades

from r21d.training.environment import append_environment
from r21d.training.logs import RunLog
from r21d.training.protocol import dump_config, load_config
from r21d.training.report import read_run, write_report
from r21d.training.run_folder import state_file
from r21d.training.state import TrainState, write_state

EVIL = "</td><script>alert('1')</script> & \"walk\""
SECTIONS = [
    "Curves",
    "Classes",
    "Surest errors",
    "Going on",
    "Configuration",
    "Epochs",
    "Environment",
]
FROM = {
    "history.jsonl": {"Curves", "Epochs"},
    "best.json": {"Classes", "Surest errors"},
    "config.toml": {"Configuration"},
    "environment.json": {"Environment"},
    "steps.csv": set(),
    "metrics.csv": set(),
}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """The page's elements and texts; fails where tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def of(self, tag: str) -> list[str]:
        return [text.strip() for kind, text in self.texts if kind == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text.split()) for kind, text in self.texts if kind != "style")

    @property
    def pictures(self) -> list[bytes]:
        found = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in found)
        return [base64.b64decode(source.partition(",")[2]) for source in found]


def _row(epoch: int) -> dict[str, Any]:
    accuracies = {"clip_top1": 0.125 * epoch, "clip_top5": 1.0, "video_top5": 1.0}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "clips": 320 * epoch,
        "lr": 0.01,
        "train_loss": 2.0 / epoch,
        "train_clip_top1": 0.5,
        "val_loss": 1.5,
        "video_top1": 0.75 if epoch == 2 else 0.5,
        "seconds": 61.0,
        **accuracies,
    }


def _best() -> dict[str, Any]:
    classes = ["bend", "run", EVIL]
    pairs = [("bend", "bend"), ("run", EVIL), (EVIL, EVIL), (EVIL, "bend")]
    predictions = [
        {
            "name": f"{number} \udcff<img src=x>.mp4",
            "labels": [label],
            "predicted": predicted,
            "score": 0.5 + number / 10,
            "label_score": 0.25,
        }
        for number, (label, predicted) in enumerate(pairs)
    ]
    confusion = [[1, 0, 0], [0, 0, 1], [1, 0, 1]]
    shares = {"bend": 1.0, "run": 0.0, EVIL: 0.5}
    best = {"epoch": 2, "videos": 4, "classes": classes, "confusion": confusion}
    return best | {"per_class": shares, "mean_class": 0.5, "predictions": predictions}


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The folder of a run of four epochs, of which three are done."""
    folder = tmp_path_factory.mktemp("runs") / "a run <b>"
    folder.mkdir()
    rows = [_row(epoch) for epoch in (1, 2, 3)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "best.json").write_text(json.dumps(_best()))
    settings = {
        "data": "my videos",
        "val": EVIL,
        "epochs": 4,
        "lr": 0.0625,
        "lr_scales": {"fc": 9.0},
    }
    (folder / "config.toml").write_text(dump_config(load_config(None, settings)))
    append_environment(folder / "environment.json")
    with RunLog(folder, 40, 10, 0, history=rows, tensorboard=False, bar=False) as log:
        for step in (10, 20, 30):
            log.step(step, {"loss": 1.0, "lr": 0.01, "data_wait": 0.1, "clips_per_second": 5.0})
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / whole.name))


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Pictures take most of the time."""

    def draw(data: object, *arguments: Any, **_: object) -> None:
        Path(arguments[-1]).write_bytes(b"picture")

    monkeypatch.setattr("r21d.plots.run_curves", draw)
    monkeypatch.setattr("r21d.plots.confusion_matrix", draw)


def test_page_tells_everything(folder: Path) -> None:
    assert write_report(folder) == folder / "report.html"
    page = Page(folder / "report.html")
    assert page.of("h1") == ["a run <b>"] and page.of("h2") == SECTIONS
    assert "Best: video@1 75.0% of 4 videos, clip@1 25.0%, at epoch 2." in page.text
    assert "r2plus1d_18 · folder · 3 of 4 epochs so far" in page.text
    assert "lr 0.0625 command line" in page.text and "lr_scales fc=9.0 command line" in page.text
    assert re.search(r"\d+ defaults table key value model model r2plus1d_18", page.text)
    assert "run 0.0% 0 of 1" in page.text and "bend 100.0% 1 of 1" in page.text
    assert "2 of 4 videos are taken for another class" in page.text
    # The surest error first.
    assert page.text.index("3 \\udcff<img src=x>.mp4") < page.text.index("1 \\udcff<img src=x>.mp4")
    assert "0:03:03 of all epochs" in page.text
    (best,) = [attributes for _, attributes in page.tags if attributes.get("class") == "best"]
    assert best
    pictures = [(folder / name).read_bytes() for name in ("curves.png", "confusion.png")]
    assert page.pictures == pictures


@pytest.mark.usefixtures("undrawn")
def test_page_needs_nothing_and_runs_nothing(folder: Path) -> None:
    page = Page(write_report(folder))
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "link", "iframe", "object", "a", "form"}
    assert len(page.pictures) == 2
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "action") for name in attributes)
    raw = page.path.read_text()
    assert "url(" not in raw and "http:" not in raw and "https:" not in raw and "@import" not in raw
    assert EVIL in page.text


@pytest.mark.usefixtures("undrawn")
def test_commands_are_commands(folder: Path) -> None:
    from r21d.cli.app import build_parser

    (block,) = Page(write_report(folder)).of("pre")
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    commands = [line[1:] for line in lines if line]
    assert [command[0] for command in commands] == ["train", "eval", "predict", "train"]
    resume, evaluate, predict, again = map(build_parser().parse_args, commands)
    assert resume.resume and resume.out == str(folder)
    assert evaluate.data == EVIL
    assert evaluate.weights == [str(folder / "best.safetensors")]
    assert str(folder / "best.safetensors") == predict.weights
    assert load_config(again.config).train.epochs == 4


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "v"}, "OTHER_VIDEOS"),
        ({"data": "v", "val": "w"}, "w"),
        ({"data": "v", "dataset": "weizmann", "split": "3"}, "v --dataset weizmann --split 3"),
        (
            {"data": "v", "dataset": "kinetics", "annotations": "a.csv", "val": "b.csv"},
            "v --dataset kinetics --annotations b.csv",
        ),
        ({"data": "v", "dataset": "kinetics", "annotations": "a.csv"}, "OTHER_VIDEOS"),
    ],
)
def test_evaluation_is_on_what_was_held_out(
    folder: Path, settings: dict[str, str], words: str
) -> None:
    (folder / "config.toml").write_text(dump_config(load_config(None, settings)))
    (block,) = Page(write_report(folder)).of("pre")
    assert f"r21d eval {words} --checkpoint" in block


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_is_not_to_be_resumed(folder: Path) -> None:
    (folder / "config.toml").write_text(dump_config(load_config(None, {"epochs": 3})))
    page = Page(write_report(folder))
    assert "r2plus1d_18 · folder · 3 epochs" in page.text and "so far" not in page.text
    assert "--resume" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_the_end_of_a_queue_is_not_that_of_the_run(folder: Path) -> None:
    (folder / "config.toml").write_text(dump_config(load_config(None, {"max_steps": 20})))
    (block,) = Page(write_report(folder)).of("pre")
    assert "--resume --out" in block and "--max-steps none" in block


@pytest.mark.usefixtures("undrawn")
def test_settings_changed_on_the_way_are_told(folder: Path) -> None:
    assert "--allow-changes" not in Page(write_report(folder)).text
    rows = [{"step": 15, "changed": {"lr": [0.5, 0.0625], "clip_gradients": [None, 40.0]}}]
    state = TrainState({}, {}, 20, {}, 8, {}, None, [], torch.zeros(1, 3), changes=rows)
    write_state(state_file(folder, 20), state)
    page = Page(write_report(folder))
    assert "15 lr 0.5 0.0625 15 clip_gradients none 40.0" in page.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("missing", sorted(FROM))
def test_what_is_missing_is_left_out(folder: Path, missing: str, caplog) -> None:
    (folder / missing).unlink()
    with caplog.at_level(logging.WARNING):
        page = Page(write_report(folder))
    assert set(page.of("h2")) == set(SECTIONS) - FROM[missing]
    assert not caplog.records


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", ["cut", "binary", "other"])
@pytest.mark.parametrize("damaged", sorted(set(FROM) - {"metrics.csv"}))
def test_what_is_damaged_is_left_out_with_a_warning(
    folder: Path, damaged: str, damage: str, caplog
) -> None:
    path = folder / damaged
    content = {"cut": path.read_bytes()[:-9], "binary": b"\x00\xff" * 50, "other": b'"text"\n'}[
        damage
    ]
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        page = Page(write_report(folder))
    left_out = set(SECTIONS) - set(page.of("h2"))
    assert left_out <= FROM[damaged]
    if left_out:
        (record,) = caplog.records
        assert damaged in record.getMessage()


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert "No epoch is finished yet." in page.text
    assert not page.pictures and page.of("h2") == ["Going on"]
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_without_matplotlib_there_are_no_pictures(folder: Path, monkeypatch, caplog) -> None:
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    page = Page(write_report(folder))
    assert not page.pictures
    assert set(page.of("h2")) == set(SECTIONS) - {"Curves"}
    assert "r21d[train]" in caplog.text


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_cannot_be_written_leaves_the_old_one(folder: Path, monkeypatch) -> None:
    old = write_report(folder).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    (folder / "best.json").unlink()
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == old
    assert not list(folder.glob(".*"))


def test_a_real_run_is_read_whole(tmp_path: Path, caplog) -> None:
    """What training writes is what the page reads."""
    _, history = train_shades(tmp_path)
    with caplog.at_level(logging.WARNING):
        run = read_run(tmp_path)
        page = Page(write_report(tmp_path))
    assert not caplog.records
    assert run.history == history and run.best["videos"] == 6
    best = max(history, key=lambda row: (row["video_top1"], row["clip_top1"]))
    assert f"video@1 {best['video_top1']:.1%} of 6 videos" in page.text
    assert {"Curves", "Classes", "Epochs"} <= set(page.of("h2"))
