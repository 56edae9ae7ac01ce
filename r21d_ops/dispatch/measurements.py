"""The committed measurements: ``measurements.json``, made by ``python -m benchmarks.measurements``.

Layout (schema 1)::

    rows    gpu, in_channels, mid_channels, out_channels, size, kernel, stride, padding (each
            (t, h, w)), batch, arithmetic (the dtype, or tf32), training, backend, kernels
            ("fused", "two", or "" where a backend has one way), seconds (median), file (of
            benchmarks/results/ with every sample), commit
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r21d_ops.problem import Problem

SCHEMA = 1
TABLE = Path(__file__).with_name("measurements.json")

_GEOMETRY = ("in_channels", "mid_channels", "out_channels", "size", "kernel", "stride", "padding")
_Key = tuple[Any, ...]


class Measurement(NamedTuple):
    """Median ``seconds`` of one way of running a problem with ``batch`` clips."""

    backend: str
    kernels: str
    batch: int
    seconds: float
    file: str
    commit: str

    def scaled(self, batch: int) -> float:
        """Seconds for ``batch`` clips, in proportion."""
        return self.seconds * batch / self.batch


def read_table(path: Path) -> dict[_Key, list[Measurement]]:
    """The table in ``path`` by GPU, geometry, arithmetic and training.

    Raises:
        ValueError: another schema.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        found = content.get("schema")
        raise ValueError(f"{path} has schema {found!r}; this version reads {SCHEMA}")
    table: dict[_Key, list[Measurement]] = {}
    for row in content["rows"]:
        # JSON has lists for tuples.
        geometry = [tuple(v) if isinstance(v, list) else v for v in (row[k] for k in _GEOMETRY)]
        key = (row["gpu"], *geometry, row["arithmetic"], row["training"])
        values = (row[name] for name in Measurement._fields)
        table.setdefault(key, []).append(Measurement(*values))
    return table


@functools.cache
def _table() -> dict[_Key, list[Measurement]]:
    return read_table(TABLE)


def gpus() -> set[str]:
    """The GPUs that something was measured on."""
    return {key[0] for key in _table()}


def find(
    problem: Problem,
    training: bool,
    gpu: str,
    arithmetic: str,
    ways: Sequence[tuple[str, str]],
) -> list[Measurement]:
    """The rows that decide between ``ways``, (backend, kernels), in their order; else none.

    Those of one file and one batch, the nearest to the problem's. They decide where they compare:
    where ``eager``, if it is one of ``ways``, was measured, and another one beside it.
    """
    geometry = (getattr(problem, name) for name in _GEOMETRY)
    side_by_side: dict[tuple[str, int], dict[tuple[str, str], Measurement]] = {}
    for row in _table().get((gpu, *geometry, arithmetic, training), []):
        if (row.backend, row.kernels) in ways:
            rows = side_by_side.setdefault((row.file, row.batch), {})
            rows[row.backend, row.kernels] = row
    needed = {way for way in ways if way[0] == "eager"}
    decisive = [
        (abs(math.log(batch / max(1, problem.batch))), -len(rows), rows)
        for (_, batch), rows in side_by_side.items()
        if needed <= rows.keys() and len(rows) >= min(2, len(ways))
    ]
    if not decisive:
        return []
    rows = min(decisive, key=lambda group: group[:2])[2]
    return [rows[way] for way in ways if way in rows]
