"""Tables for people: drawn by rich on a terminal, aligned text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> None:
    """Print ``rows`` under ``headers`` on stdout; columns numbered in ``right`` align right."""
    if not (sys.stdout.isatty() and _print_rich(headers, rows, right)):
        print("\n".join(plain_table(headers, rows, right)))


def plain_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> list[str]:
    """The table as lines of aligned text."""
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _print_rich(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]
) -> bool:
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        return False
    table = Table(box=SIMPLE_HEAD)
    for number, header in enumerate(headers):
        table.add_column(escape(header), justify="right" if number in right else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)
    return True
