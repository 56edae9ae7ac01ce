"""Makes the table by which backends are chosen on a GPU from committed result files.

    python -m benchmarks.measurements benchmarks/results/nvidia-*/*.json

Every layer's case on a GPU gives a row for each way in which a backend of ours ran it, with the
median of its samples. All rows of a case come from one file: the newest in which ``eager`` and
another way were measured side by side, else the newest. The table is
``r21d_ops/dispatch/measurements.json`` (:mod:`r21d_ops.dispatch.measurements` describes it).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import quartiles
from benchmarks.report import ResultError, read_results
from r21d_ops.dispatch.measurements import SCHEMA, TABLE

#: (backend, kernels) that a peer is; what chooses by itself, or is no default, is none of them.
_INFERENCE = {
    "conv2d views": ("eager", ""),
    "r21d cuda fused": ("cuda", "fused"),
    "r21d cuda two kernels": ("cuda", "two"),
    "r21d triton fused": ("triton", "fused"),
    "r21d triton two kernels": ("triton", "two"),
}
_TRAINING = {"r21d eager": ("eager", ""), "r21d triton": ("triton", "")}

#: What tells the ways of one case apart.
_OF_A_WAY = ("backend", "kernels", "seconds", "file", "commit")

_Row = dict[str, Any]


def _rows(run: dict[str, Any], file: str) -> Iterable[_Row]:
    if run["machine"]["gpu"] is None or run["settings"]["shrink"] != 1:
        return
    for case in run["cases"]:
        # Files from before layers were told apart from what is made of them have no problem.
        problem = case.get("problem")
        ways = _TRAINING if case["training"] else _INFERENCE
        for peer in case["peers"]:
            if problem is None or peer["status"] != "timed" or peer["peer"] not in ways:
                continue
            backend, kernels = ways[peer["peer"]]
            yield {
                "gpu": run["machine"]["gpu"],
                **problem,
                "arithmetic": case["arithmetic"],
                "training": case["training"],
                "backend": backend,
                "kernels": kernels,
                "seconds": quartiles(peer["samples"])[1],
                "file": file,
                "commit": run["commit"] or "",
            }


def collect(paths: Sequence[Path]) -> list[_Row]:
    """The rows of all files, each case's of one, in the order of the cases' first appearance.

    Raises:
        ResultError: a file holds no results.
    """
    runs = sorted(((read_results(path), path) for path in paths), key=lambda r: r[0]["created"])
    found: dict[str, list[_Row]] = {}
    for run, path in runs:
        cases: dict[str, list[_Row]] = {}
        for row in _rows(run, f"{path.parent.name}/{path.name}"):
            case = {k: v for k, v in row.items() if k not in _OF_A_WAY}
            cases.setdefault(json.dumps(case, sort_keys=True), []).append(row)
        for case_key, rows in cases.items():
            if _compares(rows) or not _compares(found.get(case_key, [])):
                found[case_key] = rows
    return [row for rows in found.values() for row in rows]


def _compares(rows: Sequence[_Row]) -> bool:
    """Whether ``eager`` is among several."""
    return len(rows) > 1 and any(row["backend"] == "eager" for row in rows)


def write(rows: Sequence[_Row], path: Path) -> None:
    """The table as JSON, a row a line, whole or not at all."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    body = f"[\n{lines}\n ]" if rows else "[]"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".json")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f'{{\n "schema": {SCHEMA},\n "rows": {body}\n}}\n')
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 for a file without results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.measurements", description="Make the table of measurements"
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of benchmark runs")
    parser.add_argument("--output", type=Path, default=TABLE, help="default: the package's table")
    options = parser.parse_args(arguments)
    try:
        rows = collect(options.results)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write(rows, options.output)
    print(f"{len(rows)} rows: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
