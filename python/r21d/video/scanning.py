"""Looking at every video below a folder, once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from r21d.video.decoder import VideoError, available_cpus, import_av
from r21d.video.examine import examine
from r21d.video.index import INDEX_NAME, IndexRow, VideoIndex, write_index
from r21d.video.isolated import Crash, run_isolated
from r21d.video.lists.files import find_videos

Task = tuple[Path, str, bool]
"""What `examine` takes."""


def scan(
    root: str | os.PathLike[str],
    *,
    file: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    full: bool = True,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VideoIndex:
    """Look at every video below ``root`` and write the index ``file``.

    Rows are written as they are found, so that a scan that was interrupted goes on where it
    stopped: files whose size and time are those of their rows are not looked at again, unless
    something was wrong with them or only a full scan will do. In the end the rows are sorted.

    Args:
        root: The folder; `r21d.video.lists.find_videos` tells which of its files are videos.
        file: The index, by default `INDEX_NAME` in ``root``.
        workers: Processes, each decoding in one thread; by default one for each CPU that this
            process may use. A decoder that crashes ends one of them, and its file gets a row that
            says so. 0 works in this process, which then crashes, too.
        full: Decode every frame. If not, the header and the first frame must do: far quicker, but
            of damage further on only a file's being cut short is seen.
        strict: Stop at the first file with which something is wrong.
        progress: Called with the number of files done and that of all, at first, too.

    Raises:
        ValueError: ``root`` is no folder or has no videos, ``file`` is something else than its
            index, or ``workers`` is negative.
        ImportError: PyAV is missing.
        OSError: a folder cannot be read or ``file`` cannot be written.
        VideoError: ``strict``, and a file is broken.
    """
    root = Path(root)
    file = root / INDEX_NAME if file is None else Path(file)
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected a folder of videos")
    import_av()  # or every file would seem to be broken
    names = list(find_videos(root))
    if not names:
        raise ValueError(f"{root}: no video files in it or in a folder below it")
    index = _kept(root, file, names)
    settled = {r.path for r in index.rows if r.problem is None and (r.full or not full)}
    # What decoding a whole file has found, a look at its first frame must not take back.
    whole = set(names) if full else {row.path for row in index.rows if row.full}
    tasks = [(root / name, name, name in whole) for name in names if name not in settled]
    report = progress or (lambda done, total: None)
    with _writing(file):
        write_index(file, index)
        log = file.open("a", encoding="ascii")
    report(len(settled), len(names))
    with log, contextlib.closing(_rows(tasks, workers)) as rows:
        for done, row in enumerate(rows, len(settled) + 1):
            index.add(row)
            with _writing(file):
                log.write(f"{row.to_json()}\n")
                log.flush()
            report(done, len(names))
            if strict and row.problem is not None:
                raise VideoError(f"{root / row.path}: {row.problem}")
    with _writing(file):
        write_index(file, index)
    return index


def _kept(root: Path, file: Path, names: Sequence[str]) -> VideoIndex:
    """The rows of an earlier scan whose files are still the same."""
    if not file.exists():
        return VideoIndex(root)
    before = VideoIndex.load(file)
    if os.path.realpath(before.root) != os.path.realpath(root):
        raise ValueError(
            f"{file}: the index of another folder, {before.root}; remove it, or name another file"
        )
    before = VideoIndex.load(file, root)  # the same folder may have several names
    rows = (before.row(root / name) for name in names)
    return VideoIndex(root, (row for row in rows if row is not None))


def _rows(tasks: Sequence[Task], workers: int | None) -> Generator[IndexRow, None, None]:
    if workers == 0:
        yield from map(_look, tasks)
        return
    workers = available_cpus() if workers is None else workers
    for task, outcome in run_isolated(_look, tasks, workers):
        yield _crashed(task, outcome) if isinstance(outcome, Crash) else outcome


def _look(task: Task) -> IndexRow:
    return examine(*task)


def _crashed(task: Task, crash: Crash) -> IndexRow:
    path, name, full = task
    try:
        state = path.stat()
        size, mtime_ns = state.st_size, state.st_mtime_ns
    except OSError:
        size = mtime_ns = -1
    reason = f"the decoder crashed ({crash.reason})"
    return IndexRow(name, size, mtime_ns, None, reason, full=full)


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Says what to do where the index cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file}: the index cannot be written ({error.strerror or error});"
            " r21d index --out FILE (in Python: file=) puts it elsewhere"
        ) from error
