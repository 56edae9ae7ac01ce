"""``r21d index``: what is in a folder of videos, and which of them are broken."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from r21d.cli.arguments import Subcommands, count
from r21d.cli.errors import SOME_FAILED_EXIT, print_error, printable
from r21d.cli.tables import print_table
from r21d.evaluation.progress import progress_bar

if TYPE_CHECKING:
    from r21d.video.index import VideoIndex

_MOST_KINDS = 5
"""Sizes, rates and codecs that the table names one by one."""


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``index`` to the command line."""
    parser = commands.add_parser(
        "index",
        parents=[common],
        help="look at every video of a folder once: length, size, rate, damage",
        description="Decode every video below DIR once and note its length, rate, size, rotation "
        "and damage in DIR/.r21d-index.jsonl, which r21d train and r21d eval then read instead of "
        "opening every file, and by which they leave broken and damaged files out. Goes on where "
        "it was interrupted; a second run looks at new and changed files alone, and again at "
        "those with which something was wrong. The exit code is 1 where there are any.",
        epilog="example: r21d index videos --workers 8",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of videos, at any depth")
    parser.add_argument("--out", metavar="FILE", help="the index (default: in DIR)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="read headers and first frames alone: sees files that are cut short, but no damage "
        "further on",
    )
    parser.add_argument(
        "--workers",
        type=count,
        help="processes, each decoding in one thread; 0 decodes in this one, without protection "
        "against decoders that crash (default: one for each CPU)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first broken or damaged file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scan and print; 1 where files are broken or damaged."""
    from r21d.video.index import INDEX_NAME
    from r21d.video.scanning import scan

    with _progress() as progress, _says_what_is_kept():
        index = scan(
            args.folder,
            file=args.out,
            workers=args.workers,
            full=not args.quick,
            strict=args.strict,
            progress=progress,
        )
    file = args.out or index.root / INDEX_NAME
    bad = [row for row in index.rows if row.problem is not None]
    if args.json:
        print(json.dumps({"index": str(file), **_to_dict(index)}, indent=2))
    else:
        _print(index)
        for row in bad:
            print(f"{printable(row.path)}: {row.problem}")
        print(f"index: {printable(file)}")
    if not bad:
        return 0
    print_error(f"{len(bad)} of {len(index)} videos are broken or damaged")
    return SOME_FAILED_EXIT


@contextlib.contextmanager
def _says_what_is_kept() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("what has been looked at is kept; the same command goes on", file=sys.stderr)
        raise


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar that appears when `scan` knows how many files there are."""
    with contextlib.ExitStack() as stack:
        advance: Callable[[int], None] | None = None
        before = 0

        def report(done: int, total: int) -> None:
            nonlocal advance, before
            advance = advance or stack.enter_context(progress_bar("indexing", total))
            advance(done - before)
            before = done

        yield report


def _to_dict(index: VideoIndex) -> dict[str, Any]:
    """Totals, and every file that should be left out."""
    rows = index.rows
    known = [(row, row.info) for row in rows if row.info is not None]
    frames = [row.frames or info.frames for row, info in known]
    return {
        "root": str(index.root),
        "videos": len(rows),
        "bytes": sum(row.size for row in rows if row.size > 0),
        "seconds": sum(info.duration for _, info in known),
        "frames": sum(number or 0 for number in frames),
        "frames_unknown": frames.count(None),
        "sizes": _tally(f"{info.width}x{info.height}" for _, info in known),
        "frame_rates": _tally(f"{info.frame_rate:.6g}" for _, info in known),
        "rotations": _tally(str(info.rotation) for _, info in known),
        "codecs": _tally(info.codec for _, info in known),
        "variable_rate": sum(row.variable_rate is True for row in rows),
        "full": sum(row.full for row in rows),
        "broken": [{"path": r.path, "error": r.error} for r in rows if r.error is not None],
        "damaged": [{"path": r.path, "damage": r.damage} for r in rows if r.damage],
    }


def _tally(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))


def _print(index: VideoIndex) -> None:
    totals = _to_dict(index)
    unknown = totals["frames_unknown"]
    rows = [
        ("videos", f"{totals['videos']:,}"),
        ("hours", f"{totals['seconds'] / 3600:,.2f}"),
        ("MB", f"{totals['bytes'] / 1e6:,.1f}"),
        ("frames", f"{totals['frames']:,}" + (f" ({unknown:,} videos do not say)" * bool(unknown))),
        ("width x height", _shown(totals["sizes"])),
        ("frames a second", _shown(totals["frame_rates"])),
        ("variable rate", f"{totals['variable_rate']:,}"),
        ("rotation", _shown(totals["rotations"])),
        ("codec", _shown(totals["codecs"])),
        ("decoded whole", f"{totals['full']:,}"),
        ("broken", f"{len(totals['broken']):,}"),
        ("damaged", f"{len(totals['damaged']):,}"),
    ]
    print_table(("", "found"), rows)


def _shown(counts: dict[str, int]) -> str:
    """The most frequent values with their counts, in one cell."""
    if len(counts) == 1:
        return next(iter(counts))
    named = [f"{value} ({number:,})" for value, number in list(counts.items())[:_MOST_KINDS]]
    more = len(counts) - len(named)
    return ", ".join(named + [f"{more:,} more"] * bool(more))
