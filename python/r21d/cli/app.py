"""The ``r21d`` command: options common to all, and how errors reach the user."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence

import r21d
from r21d.cli import convert, demo, doctor, evaluate, index, info, predict, train
from r21d.cli.errors import (
    USAGE_EXIT,
    UserError,
    discard_output,
    one_line,
    print_error,
    printable,
    user_errors,
)

_log = logging.getLogger(__name__)

_COMMANDS = (demo, doctor, info, predict, index, train, evaluate, convert)
_LEVELS = ("debug", "info", "warning", "error")

INTERRUPT_EXIT = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="r21d",
        description="Video recognition with R(2+1)D networks.",
        epilog="r21d COMMAND --help says more about each. Start with: r21d demo",
    )
    parser.add_argument("--version", action="version", version=f"r21d {r21d.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--log-level",
        choices=_LEVELS,
        default="warning",
        help="what is logged to stderr; debug adds tracebacks to errors (default: warning)",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add_command(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: the process's) and return its exit code.

    0: done. 1: done, but part of it failed (a file of several, the demo's check). 2: the user's
    error, told in one line on stderr. 130: interrupted. 128 and its number: a signal has stopped
    a training run, whose state is saved.
    """
    _show_any_name()
    args = build_parser().parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(level=args.log_level.upper(), handlers=[handler])
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPT_EXIT
    except BrokenPipeError:
        # The reader (head, less) has what it wanted.
        discard_output()
        return 0
    except user_errors() as error:
        _log.debug("", exc_info=not isinstance(error, UserError))
        print_error(one_line(error))
        return USAGE_EXIT


class _OneLine(logging.Formatter):
    """A message in one line: file names may hold line breaks."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _show_any_name() -> None:
    """Print what the terminal has no character for as an escape, bytes of file names included."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
