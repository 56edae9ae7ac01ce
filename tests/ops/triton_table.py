"""The table of what Triton makes of the kernels, as a file: ``triton_resources.json``.

:mod:`ops.triton_compilation` fills it, ``test_triton_compile.py`` asserts what its rows must be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import triton

ARCHES = (80, 90)
TRITON = triton.__version__

#: What became of the sources whose digest it holds, by the version of Triton that it names.
TABLE = Path(__file__).with_name("triton_resources.json")

_ROOT = Path(__file__).parents[2]
_SOURCES = (
    "r21d_ops/triton/*.py",
    "r21d_ops/dispatch/__init__.py",
    "r21d_ops/problem.py",
    "r21d_ops/shapes.py",
    "python/r21d/models/layers.py",
    "tests/ops/triton_compilation.py",
)


@dataclass
class Row:
    """What became of one kernel; ``shared`` memory and ``stack`` in bytes.

    ``case`` is its place in :func:`ops.triton_compilation.list_cases`.
    ``tensor_cores`` is their instruction with the operands' type, e.g. ``wgmma bf16``; loads are
    ``wide`` with 16 bytes and ``narrow`` with a single 16-bit value; ``summed`` is how many
    products go into one value of the first matrix product, padding included; ``atomics`` are
    operations whose order is not fixed.
    """

    case: int
    operator: str
    layer: str
    arithmetic: str
    variant: str
    run: str
    tile: str
    pixels: int
    depth: int
    descriptors: bool
    arch: int
    registers: int
    stack: int
    shared: int
    tensor_cores: str
    tma: bool
    wide: int
    narrow: int
    summed: int | None
    atomics: int


def digest_of_sources() -> str:
    """Of every file that decides what is compiled, and of its name."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        paths = sorted(_ROOT.glob(pattern))
        assert paths, f"there is no {pattern}"
        for path in paths:
            content = hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n"))
            digest.update(f"{path.name} {content.hexdigest()}\n".encode())
    return digest.hexdigest()


def write_rows(path: Path, sources: str, rows: Iterable[Row]) -> None:
    """A table with a row a line; ``sources``: their digest before anything was compiled."""
    if sources != digest_of_sources():
        raise RuntimeError("a source was changed while it was compiled")
    head = {
        "triton": TRITON,
        "sources": sources,
        "fields": [field.name for field in fields(Row)],
    }
    lines = ",\n".join(f"  {json.dumps(astuple(row))}" for row in rows)
    text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
    path.write_text(text, encoding="utf-8")


class Table(NamedTuple):
    """What :func:`write_rows` wrote."""

    triton: str
    sources: str
    rows: list[Row]

    def is_current(self) -> bool:
        """Whether it is of these kernels and this Triton."""
        return (self.triton, self.sources) == (TRITON, digest_of_sources())


def read_rows(path: Path) -> Table:
    """The table at ``path``."""
    table = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**dict(zip(table["fields"], row, strict=True))) for row in table["rows"]]
    return Table(table["triton"], table["sources"], rows)


def print_table(rows: Iterable[Row]) -> None:
    """A line for each kernel."""
    print(
        "| arch | operator | layer | arithmetic | variant | run | tile "
        "| registers | stack | shared | tensor cores | TMA |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        small = " (fits 99 KB)" if row.shared <= 99 * 1024 else ""
        print(
            f"| sm_{row.arch} | {row.operator} | {row.layer} | {row.arithmetic} | {row.variant} "
            f"| {row.run} | {row.tile} | {row.registers} | {row.stack} | {row.shared}{small} "
            f"| {row.tensor_cores or '-'} | {'yes' if row.tma else '-'} |"
        )
