"""What each command does with the files of docs/bad_files.md, as JSON on stdout.

    python bad_files_session.py FOLDER CHECKPOINT GONE

FOLDER holds a folder a class, CHECKPOINT a network for them; the file GONE is removed after
``r21d index``. A process of its own, because root must first lose the right to read what is
forbidden; only then is an unreadable file unreadable for root, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_DROPPED = "R21D_TEST_RIGHTS_DROPPED"

Outcomes = dict[str, str]


def drop_rights() -> None:
    """Run this script again without root's right to read and write everything (Linux)."""
    if sys.platform == "linux" and os.geteuid() == 0 and _DROPPED not in os.environ:
        libc = ctypes.CDLL(None)
        for right in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            libc.prctl(_PR_CAPBSET_DROP, right, 0, 0, 0)
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, _DROPPED: "1"})


def main(root: Path, checkpoint: Path, gone: Path) -> dict[str, Any]:
    """Every command's outcomes, by file."""
    logged = _Logged()
    logging.getLogger("r21d").addHandler(logged)
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    forbidden = [path for path in root.glob("*/*") if not os.access(path, os.R_OK)]
    results: dict[str, Any] = {"forbidden": [path.name for path in forbidden]}
    results["eval"] = _evaluate(root, names, checkpoint)
    results["refused"] = _refused(root)
    results["index"] = _index(root, names)
    gone.unlink()
    results["eval, indexed"] = _evaluate(root, names, checkpoint)
    results["predict"] = _predict(root, names, checkpoint, logged)
    results["train"] = _train(root, names)
    return results


def _index(root: Path, names: Iterable[str]) -> Outcomes:
    from r21d.video.index import VideoIndex, find_index

    report = _run("index", root, "--json")
    file = find_index(root)
    assert file is not None
    outcomes = {row.path: "sound" for row in VideoIndex.load(file).rows}
    outcomes |= {row["path"]: f"broken: {row['error']}" for row in report["broken"]}
    outcomes |= {row["path"]: f"damaged: {row['damage'][0]}" for row in report["damaged"]}
    return {name: outcomes.get(name, "passed over") for name in names}


def _evaluate(root: Path, names: Iterable[str], checkpoint: Path) -> Outcomes:
    from r21d.evaluation.scores import load_scores

    scores = checkpoint.with_name("scores.safetensors")
    result = _run("eval", root, "--weights", checkpoint, "--clips", 2, "--scores", scores, "--json")
    outcomes = dict.fromkeys(load_scores(scores).names, "counted")
    assert result["videos"] == len(outcomes)
    return _complete(root, names, outcomes, result["failed"], result["missing"])


def _predict(root: Path, names: Iterable[str], checkpoint: Path, logged: _Logged) -> Outcomes:
    logged.messages.clear()
    paths = [root / name for name in names]
    answers = _run("predict", *paths, "--weights", checkpoint, "--clips", 2, "--json")
    outcomes = {}
    for name, path, answer in zip(names, paths, answers, strict=True):
        assert answer["path"] == str(path)
        warned = [text for text in logged.messages if text.startswith(f"{path}: ")]
        outcomes[name] = "answered"
        if "error" in answer:
            outcomes[name] = f"refused: {answer['error'].removeprefix(f'{path}: ')}"
        elif warned:
            outcomes[name] += f", warned: {warned[0].removeprefix(f'{path}: ')}"
    return outcomes


def _train(root: Path, names: Iterable[str]) -> Outcomes:
    """One epoch as training draws it; the network is left out."""
    from r21d.video import InputSpec, VideoFolder

    spec = InputSpec(clip_len=4, frame_rate=12.5, resize=(40, 50), crop=(32, 32))
    dataset = VideoFolder(root, spec, train=True)
    outcomes = {}
    for number, (path, _) in enumerate(dataset.samples):
        drawn = dataset[number][2]
        outcomes[path.relative_to(root).as_posix()] = "drawn" if drawn == number else "replaced"
    failed = [{"path": str(path), "reason": reason} for path, reason in dataset.failed]
    return _complete(root, names, outcomes, failed, [str(path) for path in dataset.missing])


def _refused(root: Path) -> dict[str, str]:
    """What is said where the index cannot be written, and of a folder that cannot be read."""
    said = {}
    for name, folder, mode in (("unwritable", root, 0o555), ("unreadable", root / "bad", 0)):
        before = folder.stat().st_mode
        folder.chmod(mode)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = _main("index", str(root), "--quick", "--workers", "0")
        folder.chmod(before)
        said[name] = f"{code}: {errors.getvalue()}"
    return said


def _complete(
    root: Path,
    names: Iterable[str],
    outcomes: Outcomes,
    failed: list[dict[str, str]],
    missing: list[str],
) -> Outcomes:
    """``outcomes`` with the files left out, without their paths in the reasons."""
    for row in failed:
        name = os.path.relpath(row["path"], root)
        outcomes[name] = f"left out: {row['reason'].removeprefix(row['path'] + ': ')}"
    for path in missing:
        outcomes[os.path.relpath(path, root)] = "missing"
    return {name: outcomes.get(name, "passed over") for name in names}


def _run(*arguments: object) -> Any:
    """A command's JSON; 0 or, where it left something out, 1 is its exit code."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert _main(*map(str, arguments)) in (0, 1)
    return json.loads(output.getvalue())


def _main(*arguments: str) -> int:
    from r21d.cli import main

    return main(arguments)


class _Logged(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


if __name__ == "__main__":
    drop_rights()
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
