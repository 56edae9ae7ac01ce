"""Every configuration of every Triton kernel compiles for sm_80 and sm_90, as it should.

Nothing runs: what is asserted is in the PTX, the machine code and its metadata, a table that
``tests/ops/triton_compilation.py`` makes. All of it is compiled where the kernels or Triton are not
those of the committed table (100 s of both cores), else a few cases drawn anew in each run, which
must be as the table has them (10 s). The table is printed (``pytest -s``).
"""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("triton")

from ops.triton_compilation import LAUNCHERS, compile_in_processes, list_cases
from ops.triton_table import ARCHES, TABLE, TRITON, Row, digest_of_sources, print_table, read_rows

from r21d.models.layers import LAYERS

#: Cases that are compiled for each architecture where the committed table is of these sources.
_DRAWN = 4

#: Shared memory that one block may have, in bytes: A100, H100 and H200.
_MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024}
#: The same of sm_86 and sm_89, which run code for sm_80.
_SMALLEST_SHARED = 99 * 1024

#: What the tensor cores are given, by the arithmetic asked for.
_OPERANDS = {"bfloat16": "bf16", "float16": "f16", "tf32": "tf32"}


def _compile(folder: Path) -> None:
    cases: Sequence[int] = range(len(list_cases()))
    if read_rows(TABLE).is_current():
        cases = random.sample(cases, _DRAWN)
        print("compiled anew:", *cases)
    compile_in_processes(folder, cases)


@pytest.fixture(scope="module")
def compiled_now(once: Callable[[str, Callable[[Path], None]], Path]) -> list[Row]:
    """The rows of what was compiled in this run."""
    return read_rows(once("triton-compiled", _compile) / "rows.json").rows


@pytest.fixture(scope="module")
def compiled(compiled_now: list[Row]) -> dict[int, list[Row]]:
    """All rows of each architecture."""
    table = read_rows(TABLE)
    rows = table.rows if table.is_current() else compiled_now
    print_table(rows)
    return {arch: [row for row in rows if row.arch == arch] for arch in ARCHES}


@pytest.fixture(params=ARCHES, ids="sm_{}".format)
def rows(request: pytest.FixtureRequest, compiled: dict[int, list[Row]]) -> list[Row]:
    """Those of one architecture."""
    found: list[Row] = compiled[request.param]
    return found


def _products(rows: list[Row]) -> list[Row]:
    """Without the kernels that only add parts."""
    return [row for row in rows if row.run != "finish"]


def test_the_table_is_what_is_compiled(compiled_now: list[Row]) -> None:
    table = read_rows(TABLE)
    current = table.sources == digest_of_sources()
    assert current, f"{TABLE.name} is of other kernels: make triton-table"
    cases = range(len(list_cases()))
    assert {(row.arch, row.case) for row in table.rows} == set(itertools.product(ARCHES, cases))
    if table.triton != TRITON:
        pytest.skip(f"{TABLE.name} is of Triton {table.triton}, this is {TRITON}")
    drawn = {(row.arch, row.case) for row in compiled_now}
    assert len(drawn) == len(ARCHES) * _DRAWN
    expected = [row for row in table.rows if (row.arch, row.case) in drawn]
    assert sorted(map(str, compiled_now)) == sorted(map(str, expected))


def test_every_configuration_is_compiled(rows: list[Row]) -> None:
    for operator in LAUNCHERS:
        module = importlib.import_module(f"r21d_ops.triton.{operator}")
        for arithmetics, tiles in (
            (("bfloat16",), module.TILES),
            (("tf32", "ieee"), module.TILES_FLOAT32),
        ):
            runnable = {tile.name for tile in tiles if rows[0].arch >= 90 or not tile.descriptors}
            for arithmetic in arithmetics:
                of_this = [row for row in rows if row.operator == operator]
                seen = {row.tile for row in of_this if row.arithmetic == arithmetic}
                assert seen == runnable, (operator, arithmetic)
    assert {row.run for row in rows} == {"whole", "part", "finish"}


def test_no_register_spills(rows: list[Row]) -> None:
    assert [row for row in rows if row.stack] == []


def test_shared_memory_is_within_limits(rows: list[Row]) -> None:
    assert [row for row in rows if row.shared > _MOST_SHARED[row.arch]] == []


def test_planners_choices_fit_smaller_gpus(compiled: dict[int, list[Row]]) -> None:
    """Where nothing may be timed the first configuration is launched, on any GPU."""
    first = {(row.operator, row.layer, row.arithmetic): row for row in reversed(compiled[80])}
    assert first
    assert [row for row in first.values() if row.shared > _SMALLEST_SHARED] == []


def test_tensor_cores(rows: list[Row]) -> None:
    """Hopper's own instruction takes 64 rows at a time; below that it is Ampere's."""
    for row in _products(rows):
        if row.arithmetic == "ieee":
            assert row.tensor_cores == "", row
        else:
            instruction = "wgmma" if row.arch >= 90 and row.pixels >= 64 else "mma"
            assert row.tensor_cores == f"{instruction} {_OPERANDS[row.arithmetic]}", row


def test_descriptors_become_bulk_copies(rows: list[Row]) -> None:
    assert [row for row in _products(rows) if row.tma != row.descriptors] == []
    if rows[0].arch >= 90:
        assert {row.operator for row in rows if row.tma} == {"fused", "spatial", "temporal"}


def test_16_bit_loads_are_wide(rows: list[Row]) -> None:
    """Of activations and weights: their rows are whole multiples of 16 bytes but in the stem."""
    aligned = [row for row in _products(rows) if row.arithmetic in ("bfloat16", "float16")]
    aligned = [row for row in aligned if LAYERS[row.layer].in_channels % 16 == 0]
    assert aligned
    assert [row for row in aligned if row.wide == 0 or row.narrow > 0] == []


def test_sums_are_padded_to_the_depth_alone(rows: list[Row]) -> None:
    """The stem's 3×7×7 products are 147 and some zeros, not 49 times a padded channel count."""
    forward = [row for row in rows if row.operator in ("fused", "spatial") and row.run == "whole"]
    assert {"stem", "conv4_x"} <= {row.layer for row in forward}
    for row in forward:
        _, height, width = LAYERS[row.layer].kernel
        products = LAYERS[row.layer].in_channels * height * width
        assert row.summed == -(-products // row.depth) * row.depth, row


def test_sums_have_a_fixed_order(rows: list[Row]) -> None:
    """No atomics: the same bits every time."""
    assert not [row for row in rows if row.atomics]
