"""The ``r21d`` command: options common to all, and how errors reach the user."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import r21d
from r21d.cli import convert, demo, doctor, evaluate, info, predict, train
from r21d.cli.errors import UserError, one_line, print_error, user_errors

_log = logging.getLogger(__name__)

_COMMANDS = (demo, doctor, info, predict, train, evaluate, convert)
_LEVELS = ("debug", "info", "warning", "error")

USAGE_EXIT = 2
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
    error, told in one line on stderr. 130: interrupted.
    """
    args = build_parser().parse_args(argv)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(levelname)s: %(message)s", stream=sys.stderr
    )
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPT_EXIT
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; Python must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except user_errors() as error:
        _log.debug("", exc_info=not isinstance(error, UserError))
        print_error(one_line(error))
        return USAGE_EXIT
