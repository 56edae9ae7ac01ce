"""The autotuner's results on disk (1 s)."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import r21d_ops.triton
from r21d_ops.triton import cache, tuning

MACHINE = cache.Machine("NVIDIA H200/NVL", "9.0", "2.10.0+cu130", "3.6.0", "0.1.0")
RESULT = cache.Result("fast", {"slow": 2.0, "fast": 1.0})


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where the files of this test lie."""
    monkeypatch.setenv("R21D_CACHE_DIR", str(tmp_path / "here"))
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(cache, "_found", {})
    yield tmp_path / "here" / "triton-tuning"


def _stored(path: Path) -> set[str]:
    """The keys in ``path``."""
    return set(json.loads(path.read_text())["results"])


def _fresh(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> list[ModuleType]:
    """Second copies of modules, with memories of their own, as another process has them."""
    with monkeypatch.context() as own:
        for module in modules:
            own.delitem(sys.modules, module.__name__)
            own.delattr(r21d_ops.triton, module.__name__.rpartition(".")[2])
        return [importlib.import_module(module.__name__) for module in modules]


def test_a_result_is_found_again(folder: Path) -> None:
    assert cache.load(MACHINE, "key") is None
    cache.save(MACHINE, "key", RESULT)
    assert cache.load(MACHINE, "key") == RESULT
    assert cache.load(MACHINE, "other") is None
    name = "NVIDIA_H200_NVL-9.0-torch2.10.0+cu130-triton3.6.0-r21d0.1.0.json"
    assert cache.files() == list(folder.iterdir()) == [folder / name]


def test_another_model_or_version_has_a_file_of_its_own() -> None:
    for field in cache.Machine._fields:
        other = MACHINE._replace(**{field: "other"})
        cache.save(other, "key", RESULT)
        assert cache.load(MACHINE, "key") is None
    assert len(cache.files()) == len(cache.Machine._fields)


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert cache.machine(torch.device("cuda", 1)) == (
        "GPU of cuda:1",
        "12.0",
        torch.__version__,
        triton.__version__,
        r21d_ops.__version__,
    )


DAMAGED = {
    "empty": b"",
    "cut": b'{"format": 1, "mach',
    "not text": b"\xff\xfe{",
    "not a table": b"[]",
    "another format": json.dumps(
        {"format": 0, "machine": MACHINE._asdict(), "results": {}}
    ).encode(),
    "another machine": b'{"format": 1, "machine": {"gpu": "another"}, "results": {}}',
}
DAMAGED_RESULTS: dict[str, object] = {
    "results are no table": [],
    "a result is a number": {"a": 1},
    "a result lacks its times": {"a": {"winner": "fast"}},
    "a winner is a number": {"key": RESULT._asdict(), "a": {"winner": 1, "milliseconds": {}}},
}


@pytest.mark.parametrize("case", [*DAMAGED, *DAMAGED_RESULTS])
def test_a_damaged_or_foreign_file_is_replaced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    cache.save(MACHINE, "key", RESULT)
    (path,) = cache.files()
    good = path.read_bytes()
    header = {"format": 1, "machine": MACHINE._asdict()}
    made = json.dumps(header | {"results": DAMAGED_RESULTS.get(case)}).encode()
    path.write_bytes(DAMAGED.get(case, made))
    monkeypatch.setattr(cache, "_found", {})
    assert cache.load(MACHINE, "key") is None
    cache.save(MACHINE, "key", RESULT)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(path) in record.getMessage()
    assert path.read_bytes() == good


@pytest.mark.parametrize("place", ["above the folder", "the folder", "the file"])
def test_what_cannot_be_read_or_written_is_a_warning_each(
    caplog: pytest.LogCaptureFixture, folder: Path, place: str
) -> None:
    """A file stands where there should be a folder, or a folder where there should be a file."""
    if place == "above the folder":
        folder.parent.write_text("")
    elif place == "the folder":
        folder.parent.mkdir()
        folder.write_text("")
    else:
        cache._path(MACHINE).mkdir(parents=True)
    for key in ("a", "b"):
        assert cache.load(MACHINE, key) is None
        cache.save(MACHINE, key, RESULT)
    reading, writing = (record.getMessage() for record in caplog.records)
    assert "cannot be read" in reading
    assert "R21D_CACHE_DIR" in writing
    assert not list(folder.parent.rglob("*.tmp"))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    def full(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        raise OSError("No space left on device")

    cache.save(MACHINE, "old", RESULT)
    with monkeypatch.context() as disk:
        disk.setattr(cache.os, "replace", full)
        cache.save(MACHINE, "new", RESULT)
    assert "No space left" in caplog.text
    (path,) = folder.iterdir()
    assert _stored(path) == {"old"}


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("R21D_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache.folder() == tmp_path / "home" / ".cache" / "r21d" / "triton-tuning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "r21d" / "triton-tuning"
    monkeypatch.setenv("R21D_CACHE_DIR", str(tmp_path / "ours"))
    assert cache.folder() == tmp_path / "ours" / "triton-tuning"


def test_a_user_without_a_home_has_no_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("R21D_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache.load(MACHINE, "key") is None
    cache.save(MACHINE, "key", RESULT)
    assert "home directory" in caplog.text
    assert cache.files() == cache.clear() == []


def test_processes_add_to_each_others_results(monkeypatch: pytest.MonkeyPatch) -> None:
    (other,) = _fresh(monkeypatch, cache)
    assert other._found is not cache._found
    cache.save(MACHINE, "a", RESULT)
    other.save(MACHINE, "b", RESULT)
    cache.save(MACHINE, "c", RESULT)
    (path,) = cache.files()
    assert _stored(path) == {"a", "b", "c"}
    assert cache.load(MACHINE, "b") == RESULT


def test_a_result_lost_to_a_race_returns_with_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other process writes between this one's reading and writing."""
    (other,) = _fresh(monkeypatch, cache)
    read = cache._read

    def read_and_be_overtaken(path: Path, owner: cache.Machine) -> dict[str, cache.Result]:
        results = read(path, owner)
        other.save(MACHINE, "theirs", RESULT)
        return results

    with monkeypatch.context() as race:
        race.setattr(cache, "_read", read_and_be_overtaken)
        cache.save(MACHINE, "ours", RESULT)
    (path,) = cache.files()
    assert _stored(path) == {"ours"}
    other.save(MACHINE, "next", RESULT)
    assert _stored(path) == {"ours", "theirs", "next"}


def test_clear_removes_results_and_nothing_else(folder: Path) -> None:
    assert cache.clear() == []
    cache.save(MACHINE, "key", RESULT)
    others = [folder.parent / "weights.json", folder / "notes.txt"]
    for other in others:
        other.write_text("{}")
    (path,) = cache.files()
    assert cache.clear() == [path]
    assert not path.exists()
    assert cache.files() == []
    assert all(other.exists() for other in others)
    cache.save(MACHINE, "next", RESULT)
    assert _stored(path) == {"next"}, "results from before came back"


def test_the_cache_is_cleared_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    cache.save(MACHINE, "key", RESULT)
    monkeypatch.setitem(sys.modules, "triton", None)
    _, without = _fresh(monkeypatch, cache, tuning)
    assert len(without.cache_files()) == 1
    assert len(without.clear_cache()) == 1
    assert without.cache_files() == []
