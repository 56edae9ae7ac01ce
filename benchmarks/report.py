"""Prints results: one line a case and peer.

    python -m benchmarks.report benchmarks/results/*/*.json [--markdown] [--plot speed.png]

Columns: median time and half its interquartile range; TFLOP/s of direct convolution; GB/s, counting
input, output and weights once; the floor (the run's own ceilings) as a percentage of the time; peak
extra memory; and how many times as fast ours is as this peer: above 1 ours is faster, below 1
slower. The ratio is the median over the rounds of the ratio within a round, its quartiles in
brackets. Percentages above 100 are Winograd's, which needs fewer multiplications than are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import quartiles

_KNOWN_SCHEMA = 1
#: A busier machine than this before a run on its CPU is said so beside the figures.
_QUIET_LOAD = 0.5
_HEADINGS = ("case", "peer", "ms", "±", "TFLOP/s", "GB/s", "% of floor", "peak MB", "ours is ×")


class ResultError(RuntimeError):
    """A file that holds no results; the message names it and says why."""


@dataclass(frozen=True)
class Claim:
    """One statement that the results must bear out."""

    text: str
    holds: bool


def read_results(path: Path) -> dict[str, Any]:
    """The run in ``path``.

    Raises:
        ResultError: unreadable, no JSON, or another schema.
    """
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read as results: {error}") from None
    if not isinstance(run, dict) or run.get("schema") != _KNOWN_SCHEMA:
        found = run.get("schema") if isinstance(run, dict) else type(run).__name__
        raise ResultError(f"{path} has schema {found!r}; this report reads {_KNOWN_SCHEMA}")
    return run


def reference_peer(case: dict[str, Any]) -> dict[str, Any] | None:
    """Ours: the first of r21d's backends that was timed; None if none was."""
    timed = (row for row in case["peers"] if row["ours"] and row["status"] == "timed")
    return next(timed, None)


def speedup(peer: dict[str, Any], ours: dict[str, Any]) -> tuple[float, float, float]:
    """Quartiles of peer's time over ours, taken within each round."""
    pairs = zip(peer["samples"], ours["samples"], strict=True)
    return quartiles([theirs / mine for theirs, mine in pairs])


def _cells(case: dict[str, Any], row: dict[str, Any]) -> list[str]:
    if row["status"] != "timed":
        return [case["name"], row["peer"], f"{row['status']}: {row['reason']}", *[""] * 6]
    low, median, high = quartiles(row["samples"])
    ours = reference_peer(case)
    ratio = ""
    if ours is not None and ours is not row:
        first, middle, last = speedup(row, ours)
        ratio = f"{middle:.2f} ({first:.2f}-{last:.2f})"
    peak = row["peak_bytes"]
    return [
        case["name"],
        row["peer"],
        f"{median * 1e3:.3f}",
        f"{(high - low) / 2 * 1e3:.3f}",
        f"{case['flops'] / median / 1e12:.3f}",
        f"{case['fused_bytes'] / median / 1e9:.1f}",
        f"{100 * case['floor_s'] / median:.1f}",
        "" if peak is None else f"{peak / 1e6:.1f}",
        ratio,
    ]


def heading(run: dict[str, Any]) -> list[str]:
    """Machine, versions and ceilings of a run, in a few lines."""
    machine, versions, ceilings = run["machine"], run["versions"], run["ceilings"]
    found = {k: v for k, v in versions.items() if v is not None and not isinstance(v, dict)}
    rates = ", ".join(f"{name} {rate / 1e12:.3f}" for name, rate in ceilings["flops"].items())
    commit = (run["commit"] or "no commit")[:10] + (" and changes" if run["dirty"] else "")
    lines = [
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads; {commit}; {run['created']}",
        ", ".join(f"{name} {version}" for name, version in found.items()),
        f"ceilings of this run: matrix product {rates} TFLOP/s, copy "
        f"{ceilings['bytes_per_second'] / 1e9:.1f} GB/s",
    ]
    if machine["gpu"] is None and (run["load_before"] or 0) > _QUIET_LOAD:
        lines.append(
            f"BUSY MACHINE: the load was {run['load_before']:.1f} before the run; "
            "times are disturbed"
        )
    if run["settings"]["shrink"] != 1:
        lines.append("TRIAL: sizes were shrunk; the figures measure nothing")
    return lines


def table(run: dict[str, Any], markdown: bool = False) -> str:
    """The run's table, as aligned text or as markdown."""
    rows = [_cells(case, row) for case in run["cases"] for row in case["peers"]]
    if markdown:
        lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
        lines += ["| " + " | ".join(cells) + " |" for cells in rows]
        return "\n".join(lines)
    timed = [cells for cells in rows if any(cells[3:])]
    columns = zip(*([list(_HEADINGS), *timed]), strict=True)
    widths = [max(map(len, column)) for column in columns]
    widths[0] = max([widths[0], *(len(cells[0]) for cells in rows)])
    widths[1] = max([widths[1], *(len(cells[1]) for cells in rows)])
    return "\n".join(_line(cells, widths) for cells in [list(_HEADINGS), *rows])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, peer, *figures = cells
    start = f"{name:<{widths[0]}}  {peer:<{widths[1]}}"
    if figures[1:] == [""] * len(figures[1:]):
        return f"{start}  {figures[0]}"
    aligned = (f"{cell:>{width}}" for cell, width in zip(figures, widths[2:], strict=True))
    return f"{start}  {'  '.join(aligned)}".rstrip()


def claims(run: dict[str, Any]) -> list[Claim]:
    """What conv2_x must show: faster than eager channels_last_3d, in a third of its memory.

    None for a run that shrank the sizes or in which no backend of ours was timed.
    """
    found = []
    for case in run["cases"]:
        if run["settings"]["shrink"] != 1 or case["name"] not in ("conv2_x/fp32", "conv2_x/bf16"):
            continue
        ours = reference_peer(case)
        stock = next((r for r in case["peers"] if r["peer"] == "eager channels_last_3d"), None)
        if ours is None or stock is None or stock["status"] != "timed":
            continue
        low, ratio, high = speedup(stock, ours)
        text = f"{case['name']}: {ours['peer']} is {ratio:.2f} ({low:.2f}-{high:.2f}) times as fast"
        found.append(Claim(f"{text} as eager channels_last_3d (must be above 1)", ratio > 1))
        if ours["peak_bytes"] is not None and stock["peak_bytes"]:
            share = ours["peak_bytes"] / stock["peak_bytes"]
            text = f"{case['name']}: {ours['peer']}'s peak extra memory is {share:.2f} of eager's"
            found.append(Claim(f"{text} channels_last_3d (must be at most 1/3)", share <= 1 / 3))
    return found


def plot(run: dict[str, Any], path: Path) -> None:
    """A PNG: for each case, every peer's time over ours, on a logarithmic axis.

    Raises:
        ResultError: no case in which a backend of ours was timed.
        ImportError: matplotlib is missing (``pip install 'r21d[train]'``).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [case for case in run["cases"] if reference_peer(case) is not None]
    if not cases:
        raise ResultError("there is no case in which a backend of r21d was timed; nothing to plot")
    figure = Figure(figsize=(9, 0.45 * len(cases) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["peer"] for case in cases for row in case["peers"]))
    for name in names:
        points = []
        for place, case in enumerate(cases):
            ours = reference_peer(case)
            rows = [r for r in case["peers"] if r["peer"] == name and r["status"] == "timed"]
            if ours is not None and rows and rows[0] is not ours:
                points.append((speedup(rows[0], ours)[1], place))
        if points:
            axes.plot(*zip(*points, strict=True), "o", label=name)
    axes.axvline(1, color="black", linewidth=1)
    # A logarithmic axis shows a peer twice as fast as far from 1 as one half as fast.
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases])
    axes.invert_yaxis()
    axes.set_xlabel("time over ours (right of 1: ours is faster)")
    axes.set_title(heading(run)[0], fontsize=9)
    axes.legend(fontsize=8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".png")
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=150)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def render(run: dict[str, Any], markdown: bool = False) -> str:
    """Heading, table and claims of one run."""
    lines = heading(run)
    parts = ["\n".join(f"{line}  " if markdown else line for line in lines), table(run, markdown)]
    stated = claims(run)
    if stated:
        mark = {True: "holds", False: "DOES NOT HOLD"}
        bullet = "- " if markdown else ""
        parts.append("\n".join(f"{bullet}{mark[claim.holds]}: {claim.text}" for claim in stated))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 for unreadable results or a failed claim."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="Print results"
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of benchmark runs")
    parser.add_argument("--markdown", action="store_true", help="a table for a markdown page")
    parser.add_argument("--plot", type=Path, help="also draw the last run as this PNG")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a claim fails")
    options = parser.parse_args(arguments)
    holds = True
    try:
        for number, path in enumerate(options.results):
            run = read_results(path)
            print("\n" * bool(number) + render(run, options.markdown))
            holds = holds and all(claim.holds for claim in claims(run))
        if options.plot is not None:
            plot(run, options.plot)
    except (ResultError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if holds or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
