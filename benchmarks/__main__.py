"""``python -m benchmarks``: the suite without pytest, its file written anew after every case.

A run that is cut short keeps what it has measured. Exit status: 1 if a case or a backend of ours
failed or was wrong, 2 for options that cannot be served.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence

from benchmarks.options import add_options, prepare
from benchmarks.report import heading, read_results, table
from benchmarks.results import document, write_results
from benchmarks.suite import Suite


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases one by one; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks")
    add_options(parser.add_argument)
    parser.add_argument(
        "--within", type=float, help="seconds after which no further case is started"
    )
    options = parser.parse_args(arguments)
    try:
        suite = Suite(prepare(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    begin, failed = time.monotonic(), []
    print("\n".join(heading(document(suite))), flush=True)
    for number, name in enumerate(suite.cases):
        if options.within is not None and time.monotonic() - begin > options.within:
            left = ", ".join(list(suite.cases)[number:])
            print(f"out of time after {options.within:g} s; not measured: {left}", flush=True)
            break
        try:
            suite.result(name)
        except Exception as error:
            # Of stock layers too, such as too little memory for float64: the others still count.
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            failed.append(name)
            gc.collect()
            continue
        run = read_results(write_results(suite, options.results))
        print(table({**run, "cases": run["cases"][-1:]}), flush=True)
    rows = [row for result in suite.results.values() for row in result.rows]
    bad = [row for row in rows if row.ours and row.status in ("failed", "wrong")]
    return 1 if bad or failed else 0


if __name__ == "__main__":
    sys.exit(main())
