"""Every cell of docs/bad_files.md, on real files (about 9 s)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("av")

from bad_files import encode, make_bad_files, overwritten, sound_video

from r21d.evaluation import evaluate
from r21d.models import VideoModel, create_model
from r21d.video import ClipSampling, InputSpec, VideoDataset, VideoError
from r21d.video.lists import list_folder
from r21d.weights import save_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "bad_files.md"
SESSION = Path(__file__).with_name("bad_files_session.py")
COLUMNS = ("index", "eval", "eval, indexed", "predict", "train")
SPEC = InputSpec(clip_len=4, frame_rate=12.5, resize=(40, 50), crop=(32, 32))


def _cells() -> dict[tuple[str, str], str]:
    """What the page's table says, by row and column."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = {}
    for line in lines[2:]:
        row, _, *said = (cell.strip() for cell in line.strip("|").split("|"))
        cells |= {(row, column): cell for column, cell in zip(COLUMNS, said, strict=True)}
    return cells


@dataclass(frozen=True)
class Session:
    """The files by row, as paths in the data set, and what the commands did with each."""

    files: dict[str, list[str]]
    outcomes: dict[str, Any]


@pytest.fixture(scope="module")
def session(once: Callable[[str, Callable[[Path], None]], Path]) -> Session:
    return Session(**json.loads((once("bad_files", _run) / "session.json").read_text()))


def _run(folder: Path) -> None:
    """Make the files in ``folder`` and have the commands work on them."""
    root, checkpoint = folder / "data", folder / "small.safetensors"
    for name in ("bad", "good"):
        (root / name).mkdir(parents=True)
    data = os.environ.get("R21D_TEST_DATA")
    files = make_bad_files(root / "bad", Path(data) if data else None)
    _write_good(root)
    save_checkpoint(checkpoint, _network(), classes=["bad", "good"], input=SPEC.to_dict())
    done = subprocess.run(
        [sys.executable, SESSION, root, checkpoint, *files["gone"]],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    names = {row: [path.relative_to(root).as_posix() for path in files[row]] for row in files}
    session = {"files": names, "outcomes": json.loads(done.stdout)}
    (folder / "session.json").write_text(json.dumps(session))


def _network() -> VideoModel:
    torch.manual_seed(0)
    small = {"blocks": (1, 1, 1, 1), "widths": (4, 4, 8, 8), "stem_channels": 4}
    return create_model("r2plus1d_18", 2, **small)


def _write_good(root: Path) -> None:
    """Two sound videos of class "good"."""
    for number in range(2):
        (root / "good" / f"{number}.mp4").write_bytes(encode("mpeg4", "mp4", {}, {}))


def test_page_and_files_have_the_same_rows(session: Session) -> None:
    assert {row for row, _ in _cells()} == set(session.files)
    assert all(session.files.values())


@pytest.mark.parametrize(("row", "column"), _cells())
def test_cell(session: Session, row: str, column: str) -> None:
    if row == "unreadable" and "unreadable.mp4" not in session.outcomes["forbidden"]:
        pytest.skip("the rights of root cannot be given up here")
    wanted = ".*".join(map(re.escape, _cells()[row, column].split("…")))
    outcomes = {name: session.outcomes[column][name] for name in session.files[row]}
    assert all(re.fullmatch(wanted, outcome) for outcome in outcomes.values()), (wanted, outcomes)


@pytest.mark.parametrize(
    ("column", "outcome"),
    list(zip(COLUMNS, ("sound", "counted", "counted", "answered", "drawn"), strict=True)),
)
def test_sound_files_beside_bad_ones(session: Session, column: str, outcome: str) -> None:
    assert {session.outcomes[column][f"good/{n}.mp4"] for n in range(2)} == {outcome}


def test_only_the_unreadable_file_is_forbidden(session: Session) -> None:
    assert set(session.outcomes["forbidden"]) <= {"unreadable.mp4"}


@pytest.mark.parametrize(
    ("folder", "messages"),
    [
        ("unwritable", ["the index cannot be written (Permission denied)", "--out FILE"]),
        ("unreadable", ["Permission denied", "/bad'"]),
    ],
)
def test_folder_without_rights(session: Session, folder: str, messages: list[str]) -> None:
    if not session.outcomes["forbidden"]:
        pytest.skip("the rights of root cannot be given up here")
    code, _, said = session.outcomes["refused"][folder].partition(": ")
    assert code == "2"
    assert len(said.splitlines()) == 1
    assert all(message in said for message in messages)


@pytest.fixture
def dataset_of(tmp_path: Path) -> Any:
    """Makes the data set of two good videos and a bad one, of the contents given."""

    def made(content: bytes, **options: Any) -> VideoDataset:
        (tmp_path / "bad").mkdir()
        (tmp_path / "good").mkdir()
        (tmp_path / "bad" / "a.mp4").write_bytes(content)
        _write_good(tmp_path)
        return VideoDataset(list_folder(tmp_path), SPEC, **options)

    return made


@pytest.mark.parametrize("change", ["gone", "damaged"])
def test_what_happens_to_a_file_while_eval_reads(dataset_of: Any, change: str) -> None:
    dataset = dataset_of(sound_video(), train=False, sampling=ClipSampling(clips=2))
    path = dataset.samples[0][0]
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(overwritten(sound_video()))
    result = evaluate(_network(), dataset)
    assert result.videos == 2
    ((failed, reason),) = result.failed
    assert failed == str(path)
    assert "no such file" in reason if change == "gone" else "could not be decoded" in reason


def test_what_vanishes_while_training_runs_is_replaced(
    dataset_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = dataset_of(sound_video(), train=True)
    dataset.samples[0][0].unlink()
    assert [dataset[i][2] == i for i in range(3)] == [False, True, True]
    assert dataset.replaced == 1
    assert "another video is drawn instead" in caplog.text


def test_strict_stops(dataset_of: Any) -> None:
    with pytest.raises(VideoError, match="1 of 3 video files are broken or damaged"):
        dataset_of(sound_video()[:-1000], train=False, strict=True)
