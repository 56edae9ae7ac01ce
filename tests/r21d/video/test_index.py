"""The index of a folder of videos and the scan that makes it (about 5 s)."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

import crashing
from bad_files import encode

from r21d.cli import main
from r21d.video import InputSpec, VideoFolder, scanning
from r21d.video.examine import examine
from r21d.video.index import INDEX_NAME, IndexRow, VideoIndex, find_index
from r21d.video.isolated import Crash, run_isolated
from r21d.video.reader import VideoError, VideoInfo
from r21d.video.scanning import scan
from r21d.video.writer import write_video

ODD = os.fsdecode(b"walk/odd \xff\n\xe2\x80\xa8.mkv")
H264 = ("libx264", "matroska", {}, {})


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Relative names and contents of the files of `folder`."""
    path = tmp_path_factory.mktemp("written") / "a.mp4"
    write_video(path, torch.zeros(10, 32, 48, 3, dtype=torch.uint8), 12.5)
    return {
        "run/a.mp4": path.read_bytes(),
        "run/deeper/b.avi": encode("mpeg4", "avi", {}, {}, frames=5),
        "walk/bad.mp4": b"no video",
        "walk/cut.mkv": encode(*H264)[:-100],
        ODD: encode(*H264, frames=3),
    }


@pytest.fixture
def folder(videos: dict[str, bytes], tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for name, content in videos.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "notes.txt").write_text("not a video")
    (root / "run" / ".hidden.mp4").write_text("not a video")
    return root


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that scans look at, one after the other."""
    names: list[str] = []
    look = scanning._look

    def noted(task: scanning.Task) -> IndexRow:
        names.append(task[1])
        return look(task)

    monkeypatch.setattr(scanning, "_look", noted)
    return names


def test_rows(folder: Path, videos: dict[str, bytes]) -> None:
    index = scan(folder, workers=0)
    assert [row.path for row in index.rows] == sorted(videos)
    rows = {row.path: row for row in index.rows}
    state = (folder / "run" / "a.mp4").stat()
    assert rows["run/a.mp4"] == IndexRow(
        path="run/a.mp4",
        size=state.st_size,
        mtime_ns=state.st_mtime_ns,
        info=VideoInfo(folder / "run" / "a.mp4", 10, 0.8, 12.5, 48, 32, 0, "h264"),
        frames=10,
        last=pytest.approx(0.72),
        variable_rate=False,
        full=True,
    )
    assert (rows["run/deeper/b.avi"].frames, rows["run/deeper/b.avi"].problem) == (5, None)
    assert (rows[ODD].frames, rows[ODD].problem) == (3, None)
    assert rows["walk/bad.mp4"].info is None
    assert rows["walk/bad.mp4"].problem == rows["walk/bad.mp4"].error
    assert "cannot be opened as a video" in rows["walk/bad.mp4"].problem
    assert str(folder) not in rows["walk/bad.mp4"].problem
    assert rows["walk/cut.mkv"].info is not None
    assert rows["walk/cut.mkv"].error is None
    assert rows["walk/cut.mkv"].problem.startswith("damaged: the file is cut short")


def test_quick_rows(folder: Path, looked_at: list[str]) -> None:
    quick = {row.path: row for row in scan(folder, workers=0, full=False).rows}
    assert not any(row.full for row in quick.values())
    assert quick["run/a.mp4"].info.frames == 10
    assert quick["run/a.mp4"].frames is quick["run/a.mp4"].last is None
    assert quick["walk/bad.mp4"].error is not None
    assert "cut short" in quick["walk/cut.mkv"].problem
    looked_at.clear()
    assert all(row.full for row in scan(folder, workers=0).rows)
    assert len(looked_at) == len(quick)
    looked_at.clear()
    assert all(row.full for row in scan(folder, workers=0, full=False).rows)
    assert looked_at == ["walk/bad.mp4", "walk/cut.mkv"]


def test_variable_rate(tmp_path: Path) -> None:
    (tmp_path / "even.mkv").write_bytes(encode(*H264, frames=5))
    (tmp_path / "late.mkv").write_bytes(encode(*H264, frames=5, late=2))
    even, late = scan(tmp_path, workers=0).rows
    assert (even.variable_rate, even.last) == (False, pytest.approx(0.16))
    assert (late.variable_rate, late.last) == (True, pytest.approx(0.24))


def test_file_holds_the_rows(folder: Path) -> None:
    index = scan(folder, workers=0)
    file = find_index(folder)
    assert file == folder / INDEX_NAME
    assert VideoIndex.load(file).rows == index.rows
    moved = folder.rename(folder.with_name("moved"))
    again = VideoIndex.load(moved / INDEX_NAME)
    assert again.row(moved / "run" / "a.mp4").info.path == moved / "run" / "a.mp4"


def test_file_elsewhere_remembers_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scan("videos", file="elsewhere.jsonl", workers=0)
    assert find_index(folder) is None
    monkeypatch.chdir("/")
    index = VideoIndex.load(tmp_path / "elsewhere.jsonl")
    assert index.row(folder / ODD).frames == 3
    assert VideoIndex.load(tmp_path / "elsewhere.jsonl", folder).root == folder


def test_row_of_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = scan(folder, workers=0)
    file = folder / "run" / "a.mp4"
    assert index.row(file).path == "run/a.mp4"
    monkeypatch.chdir(folder / "walk")
    assert index.row("../run/a.mp4").path == "run/a.mp4"
    assert index.row(folder.parent / "a.mp4") is None
    assert index.row(folder / "notes.txt") is None
    assert index.gone() == []


@pytest.mark.parametrize("change", ["size", "time", "vanish"])
def test_no_row_of_a_file_that_changed(folder: Path, looked_at: list[str], change: str) -> None:
    index = scan(folder, workers=0)
    file = folder / "run" / "a.mp4"
    content, state = file.read_bytes(), file.stat()
    file.unlink()
    if change == "size":
        file.write_bytes(content + b"\0")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "time":
        file.write_bytes(content)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert index.row(file) is None
    assert index.gone() == ([file] if change == "vanish" else [])
    looked_at.clear()
    index = scan(folder, workers=0)
    assert ("run/a.mp4" in looked_at) == (change != "vanish")
    assert (index.row(file) is None) == (change == "vanish")


def test_second_scan_looks_at_what_is_new_or_was_wrong(
    folder: Path, videos: dict[str, bytes], looked_at: list[str]
) -> None:
    first = scan(folder, workers=0)
    before = (folder / INDEX_NAME).read_bytes()
    looked_at.clear()
    assert scan(folder, workers=0).rows == first.rows
    assert looked_at == ["walk/bad.mp4", "walk/cut.mkv"]
    assert (folder / INDEX_NAME).read_bytes() == before
    (folder / "walk" / "bad.mp4").write_bytes(videos["run/a.mp4"])
    (folder / "new.mp4").write_bytes(videos["run/a.mp4"])
    looked_at.clear()
    index = scan(folder, workers=0)
    assert looked_at == ["new.mp4", "walk/bad.mp4", "walk/cut.mkv"]
    assert [row.path for row in index.rows if row.problem] == ["walk/cut.mkv"]


def test_second_scan_by_another_name_of_the_folder(
    folder: Path, tmp_path: Path, looked_at: list[str]
) -> None:
    first = scan(folder, workers=0)
    (tmp_path / "link").symlink_to(folder)
    looked_at.clear()
    index = scan(tmp_path / "link", file=folder / INDEX_NAME, workers=0)
    assert looked_at == ["walk/bad.mp4", "walk/cut.mkv"]
    assert [row.path for row in index.rows] == [row.path for row in first.rows]
    assert index.row(tmp_path / "link" / "run" / "a.mp4") is not None


def test_any_number_of_workers_writes_the_same_file(folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{workers}.jsonl" for workers in range(3)]
    for workers, file in enumerate(files):
        scan(folder, file=file, workers=workers)
    assert len({file.read_bytes() for file in files}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(file.name for file in files),
        "videos",
    ]


def test_torn_last_line(
    folder: Path, looked_at: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = scan(folder, workers=0).rows
    file = folder / INDEX_NAME
    whole = file.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in (start, start + 1, (start + len(whole)) // 2, len(whole) - 2, len(whole) - 1):
        file.write_bytes(whole[:end])
        complete = end >= len(whole) - 1
        assert len(VideoIndex.load(file)) == len(rows) - (not complete)
        looked_at.clear()
        assert scan(folder, workers=0).rows == rows
        assert (rows[-1].path in looked_at) == (not complete or rows[-1].problem is not None)
        assert file.read_bytes() == whole
    assert not caplog.records


def test_lines_that_cannot_be_read_are_told_and_mended(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = scan(folder, workers=0).rows
    file = folder / INDEX_NAME
    lines = file.read_text().splitlines()
    lines[2:4] = ['{"path": "run/a.mp4"}', "nonsense \xff"]
    file.write_text("".join(f"{line}\n" for line in lines))
    assert len(VideoIndex.load(file)) == len(rows) - 2
    assert "2 lines cannot be read" in caplog.text
    assert scan(folder, workers=0).rows == rows
    assert VideoIndex.load(file).rows == rows


def test_later_row_counts(folder: Path) -> None:
    scan(folder, workers=0, full=False)
    file = folder / INDEX_NAME
    later = IndexRow("run/a.mp4", 1, 2, None, "later")
    with file.open("a") as lines:
        lines.write(later.to_json() + "\n")
    assert later in VideoIndex.load(file).rows


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupt_loses_nothing(folder: Path, workers: int) -> None:
    rows = {row.path: row for row in scan(folder, workers=0).rows}
    for name in ("walk/bad.mp4", "walk/cut.mkv"):  # which a scan would look at again
        (folder / name).unlink()
        del rows[name]
    file = folder / INDEX_NAME
    file.unlink()
    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        assert total == len(rows)
        assert len(VideoIndex.load(file)) == done
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        scan(folder, workers=workers, progress=interrupt)
    assert seen == [0, 1, 2]
    assert multiprocessing.active_children() == []
    kept = VideoIndex.load(file).rows
    assert len(kept) == 2
    assert all(row == rows[row.path] for row in kept)
    assert scan(folder, workers=workers, progress=lambda *counts: seen.append(counts)).rows == [
        rows[name] for name in sorted(rows)
    ]
    assert seen[3:] == [(2, 3), (3, 3)]


def test_crash_of_the_decoder_is_the_files_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {row.path: row for row in scan(folder, workers=0).rows}
    (folder / INDEX_NAME).unlink()
    for name in ("crash.mp4", "walk/crash again.mp4"):
        (folder / name).write_bytes(b"as good as any")
    monkeypatch.setattr(scanning, "_look", crashing.look)
    rows = {row.path: row for row in scan(folder, workers=2).rows}
    for name in ("crash.mp4", "walk/crash again.mp4"):
        row = rows.pop(name)
        assert row.error == "the decoder crashed (SIGSEGV)"
        assert VideoIndex.load(folder / INDEX_NAME).row(folder / name) == row
    assert rows == expected
    # The index is believed: the file is not opened again by a process that would crash.
    spec = InputSpec(clip_len=2, resize=(32, 48), crop=(32, 32))
    failed = {path.name: reason for path, reason in VideoFolder(folder, spec, train=True).failed}
    assert failed["crash again.mp4"].endswith("the decoder crashed (SIGSEGV)")


def test_workers_that_cannot_start_are_no_files_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r21d.video.isolated._serve", crashing.serve)
    with pytest.raises(RuntimeError, match=r"exit code 3.*__main__"):
        scan(folder, workers=2)
    assert len(VideoIndex.load(folder / INDEX_NAME)) == 0


@pytest.mark.parametrize("workers", [1, 9])
def test_items_come_with_their_own_results(workers: int) -> None:
    results = dict(run_isolated(crashing.double, [3, 1, 2], workers))
    assert results == {1: 2, 2: 4, 3: Crash("exit code 7")}
    assert list(run_isolated(crashing.double, [], workers)) == []
    assert multiprocessing.active_children() == []


def test_workers_leave_sigint_to_their_parent() -> None:
    results = []
    for pair in run_isolated(crashing.double, [0, 1, 2], 1):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
        results.append(pair)
    assert results == [(0, 0), (1, 2), (2, 4)]


def test_workers_hear_other_signals() -> None:
    """Else one that hangs over a file would outlive its terminal."""
    assert list(run_isolated(crashing.blocked, [0], 1)) == [(0, [])]


def test_interrupt_while_workers_start_is_their_parents_alone(folder: Path) -> None:
    """In a group of its own, as a terminal does: a moment after the start, amid the imports."""
    command = [sys.executable, "-m", "r21d", "index", str(folder), "--workers", "1"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    file = folder / INDEX_NAME
    while not file.exists() and process.poll() is None:  # written before the workers start
        pass
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines() == [
        "what has been looked at is kept; the same command goes on",
        "r21d: error: interrupted",
    ]
    assert process.returncode == 130


def test_missing_pyav_is_no_files_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'r21d\[video\]'"):
        scan(folder, workers=2)
    with pytest.raises(ImportError):
        examine(folder / "run" / "a.mp4", "run/a.mp4")


def test_strict_stops_at_the_first(folder: Path) -> None:
    for _ in range(2):  # whether it is in the index already or not
        with pytest.raises(VideoError, match=r"walk/bad\.mp4: cannot be opened"):
            scan(folder, workers=0, strict=True)
    (folder / "walk" / "bad.mp4").unlink()
    with pytest.raises(VideoError, match=r"walk/cut\.mkv: damaged: the file is cut short"):
        scan(folder, workers=0, strict=True)
    (folder / "walk" / "cut.mkv").unlink()
    assert len(scan(folder, workers=0, strict=True)) == 3


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        scan(folder, workers=-1)
    with pytest.raises(ValueError, match="no such folder"):
        scan(folder / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no video files"):
        scan(tmp_path / "empty")
    for wrong in ("text\n", "[1]\n", '{"format": "other", "version": 1, "root": "."}\n'):
        other = tmp_path / "other.txt"
        other.write_text(wrong)
        with pytest.raises(ValueError, match=r"other\.txt: not an index"):
            scan(folder, file=other)
        assert other.read_text() == wrong
    file = folder / INDEX_NAME
    scan(folder, workers=0, full=False)
    with pytest.raises(ValueError, match="the index of another folder"):
        scan(folder / "run", file=file)
    header, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(header), "version": 99}), *rest]))
    with pytest.raises(ValueError, match="version 99"):
        scan(folder)


@pytest.mark.parametrize("out", ["none/index.jsonl", "."])
def test_index_that_cannot_be_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    file = tmp_path / out
    if out == ".":
        file = tmp_path / "videos" / "run" / "a.mp4" / "index.jsonl"
    assert main(["index", str(folder), "--out", str(file), "--workers", "0"]) == 2
    message = capsys.readouterr().err
    assert "the index cannot be written" in message
    assert "--out FILE" in message
    assert len(message.splitlines()) == 1


def test_command_prints_the_totals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(folder), "--workers", "0"]) == 1
    output, errors = capsys.readouterr()
    table = {line[:17].strip(): line[17:].strip() for line in output.splitlines()}
    assert table["videos"] == "5"
    (cut,) = (row for row in VideoIndex.load(folder / INDEX_NAME).rows if row.damage)
    assert table["frames"] == str(10 + 5 + 3 + cut.frames)
    assert table["width x height"] == "64x48 (3), 48x32 (1)"
    assert table["frames a second"] == "25 (3), 12.5 (1)"
    assert table["codec"] == "h264 (3), mpeg4 (1)"
    assert (table["broken"], table["damaged"], table["variable rate"]) == ("1", "1", "0")
    assert "walk/bad.mp4: cannot be opened as a video" in output
    assert "walk/cut.mkv: damaged: the file is cut short" in output
    assert f"index: {folder / INDEX_NAME}" in output
    assert "2 of 5 videos are broken or damaged" in errors
    (folder / "walk" / "bad.mp4").unlink()
    (folder / "walk" / "cut.mkv").unlink()
    assert main(["index", str(folder), "--workers", "0"]) == 0


def test_command_prints_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["index", str(folder), "--workers", "0", "--json", "--quick"]
    assert main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["index"] == str(folder / INDEX_NAME)
    assert (report["videos"], report["full"]) == (5, 0)
    assert report["bytes"] == sum(path.stat().st_size for path in folder.glob("*/**/[a-z]*.*"))
    assert report["frame_rates"] == {"25": 3, "12.5": 1}
    assert [row["path"] for row in report["broken"]] == ["walk/bad.mp4"]
    assert [row["path"] for row in report["damaged"]] == ["walk/cut.mkv"]


def test_strict_command_stops(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(folder), "--workers", "0", "--strict"]) == 2
    assert "walk/bad.mp4: cannot be opened" in capsys.readouterr().err
