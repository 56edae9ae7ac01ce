"""File names of any bytes, shown (about 2 s)."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r21d.cli import main
from r21d.cli.errors import print_error, printable

ODD = os.fsdecode("é日\n\x1b[31m".encode() + b"\xff.mp4")
SHOWN = "é日\\n\\x1b[31m\\xff.mp4"
SHOWN_IN_ASCII = "\\xe9\\u65e5\\n\\x1b[31m\\xff.mp4"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("a b/ä.mp4", "a b/ä.mp4"),
        (Path("a\nb.mp4"), "a\\nb.mp4"),
        (b"\xff\xc3\xa4", "\\xffä"),
        ("\u2028\u202e\ud800", "\\u2028\\u202e\\ud800"),
        ("a\\n", "a\\n"),
        (ODD, SHOWN),
        ("", ""),
    ],
)
def test_printable(path: str | bytes | Path, shown: str) -> None:
    assert printable(path) == shown


@given(st.binary(max_size=20) | st.text(max_size=20))
def test_any_name_is_one_line(name: str | bytes) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode()


@contextlib.contextmanager
def ascii_terminal() -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """What is written to stdout and stderr, which know ASCII alone."""
    written = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(raw, "ascii", "strict", write_through=True) for raw in written)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield written
        out.detach()
        err.detach()


def test_commands_print_any_name_on_any_terminal(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / ODD).write_text("no video")
    out = tmp_path / ODD.replace(".mp4", ".mp4.jsonl")
    with ascii_terminal() as (output, errors):
        assert main(["index", str(tmp_path), "--out", str(out), "--workers", "0"]) == 1
    assert f"{SHOWN_IN_ASCII}: cannot be opened as a video".encode() in output.getvalue()
    assert f"/{SHOWN_IN_ASCII}.jsonl".encode() in output.getvalue()
    assert b"1 of 1 videos" in errors.getvalue()


def test_log_and_errors_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # or the command line leaves logging as it is
    with ascii_terminal() as (_, errors):
        main(["info", "r2plus1d_18", "--json"])
        logging.getLogger("r21d").warning("skipped: %s", ODD)
        print_error(ODD)
    assert errors.getvalue().decode("ascii").splitlines() == [
        f"WARNING: skipped: {SHOWN_IN_ASCII}",
        f"r21d: error: {SHOWN_IN_ASCII}",
    ]
