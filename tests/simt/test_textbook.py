"""The simulator runs textbook kernels right and finds one planted bug in each (about 2 s)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simt.library import simulator
from simt.textbook import KERNELS, MODES, ORDERS

_CSRC = Path(__file__).parents[2] / "csrc"


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Random operands with the test's seed."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ORDERS)
def test_right_in_every_order(
    kernel: str, mode: str, order: str, seed: int, rng: np.random.Generator
) -> None:
    """Numbers as numpy's, no fault, nothing read that was not written."""
    library = simulator()
    library.options(mode=mode, order=order, seed=seed)
    got, wanted = KERNELS[kernel](rng, "none")
    np.testing.assert_array_equal(got, wanted)
    assert library.report()["uninitialised_reads"] == 0


@dataclass(frozen=True)
class Planted:
    """A bug and its report: the thread, with the first turn going to thread 0, and the line."""

    kernel: str
    bug: str
    kind: str
    thread: int
    line: str
    message: str
    block: str = "(0, 0, 0)"
    name: str = ""
    other_order: str = ""  # the kind where other threads come first, if another

    def __str__(self) -> str:
        return f"{self.kernel}-{self.bug}"


_SUM = "value += ptx::shuffle_down"
_OUTPUT = "ptx::store_global(p.sums + (p.bug"
_FULL = "ptx::sync_named(R21D_SITE("

PLANTED = (
    Planted("reduce", "missing_barrier", "race", 32, "ptx::store_shared(partial",
            "which thread 1 read, with no barrier in between"),
    Planted("reduce", "store_outside", "out of bounds", 224, "ptx::store_shared(partial",
            "writes 4 bytes at byte 32 of partial (32 bytes)"),
    Planted("reduce", "store_to_input", "read-only", 0, "ptx::store_global(p.x", "writes 'x'"),
    Planted("reduce", "read_output", "race", 0, "ptx::load_global<float>(p.sums + block - 1)",
            "reads 4 bytes at byte 0 of 'sums' as memory that nobody writes", block="(1, 0, 0)"),
    Planted("reduce", "write_what_was_read", "race", 0, _OUTPUT,
            "which was read in this launch as memory that nobody writes"),
    Planted("reduce", "divergent_shuffle", "divergent collective", 16, "ptx::shuffle(",
            "wait in shuffle_down at simt/textbook/reduce.h:", name="other shuffle"),
    Planted("reduce", "skipped_shuffle", "divergent collective", 0, _SUM,
            "threads 16-31 48-63 80-95 112-127 144-159 176-191 208-223 240-255 wait in "
            "sync_threads", name="warp sum"),
    Planted("reduce", "early_exit", "divergent collective", 7, _SUM,
            "leaves the kernel while threads of its warp wait in shuffle_down", name="warp sum"),
    Planted("reduce", "late_after_exit", "divergent collective", 1, _SUM,
            "but thread 0 of its warp has left the kernel", name="warp sum"),
    Planted("reduce", "unordered_writes", "race", 251, "ptx::store_global(p.sums + block, ptx",
            "which thread 250 wrote at simt/textbook/reduce.h:"),
    Planted("reduce", "shared_by_blocks", "race", 0, _OUTPUT,
            "which a thread of another block wrote at", block="(1, 0, 0)"),
    Planted("transpose", "missing_barrier", "race", 8, "ptx::store_shared(slot(r, lane)",
            "which thread 0 read, with no barrier in between"),
    Planted("transpose", "store_outside", "out of bounds", 160, "ptx::store_global(p.y",
            "writes 4 bytes at byte 12600 of 'y', which has 12600", block="(1, 0, 0)"),
    Planted("transpose", "divergent_barrier", "divergent barrier", 16, "ptx::sync_threads(",
            "while threads of the same warp wait in that of", name="tile loaded"),
    Planted("stencil", "missing_barrier", "race", 1, "ptx::store_shared(",
            "which thread 0 read, with no barrier in between"),
    Planted("stencil", "halo_outside", "out of bounds", 0, "ptx::load_global(p.x + i)",
            "reads 4 bytes at byte -4 of 'x', which has 1200"),
    Planted("pipeline", "missing_barrier", "race", 1, "ptx::load_shared<float>(",
            "which thread 0 wrote at simt/textbook/pipeline.h:"),
    Planted("pipeline", "missing_barrier_before_reuse", "race", 40, "ptx::cp_async16(",
            "which thread 32 read, with no barrier in between"),
    Planted("pipeline", "missing_wait", "race", 63, "ptx::load_shared<float>(",
            "which thread 15 is still copying to, from simt/textbook/pipeline.h:"),
    Planted("pipeline", "wait_one_too_late", "race", 63, "ptx::load_shared<float>(",
            "which thread 15 is still copying to"),
    Planted("pipeline", "missing_commit", "race", 63, "ptx::load_shared<float>(",
            "which thread 15 is still copying to"),
    Planted("pipeline", "misaligned", "misaligned", 0, "ptx::cp_async16(",
            "copies to 16 bytes at byte 8 of dynamic shared memory"),
    Planted("pipeline", "misaligned_input", "misaligned", 0, "ptx::cp_async16(",
            "reads 16 bytes at byte 4 of 'x'"),
    Planted("producer", "missing_barrier", "race", 64, "ptx::load_shared<float>(slot_of",
            "which thread 63 wrote at simt/textbook/producer.h:"),
    Planted("producer", "wrong_count", "deadlock", 0, _FULL,
            "no thread can go on: threads 0-63 wait in sync_named at simt/textbook/producer.h:",
            name="slot empty", other_order="race"),
    Planted("producer", "missing_arrival", "deadlock", 0, _FULL,
            "slot empty; threads 64-127 wait in sync_named at", name="slot empty"),
    Planted("producer", "different_counts", "invalid barrier", 64, _FULL,
            "barrier 1 of 96 threads, where others came to it with 128", name="slot full"),
    Planted("producer", "half_a_warp", "invalid barrier", 64, _FULL,
            "112 threads are not whole warps of a block of 128", name="slot full"),
    Planted("histogram", "missing_barrier", "race", 1, "ptx::store_shared(bin_of(thread)",
            "which thread 0 added to, with no barrier in between"),
    Planted("histogram", "not_atomic", "race", 64, "ptx::store_shared(bin_of(bin), ptx",
            "wrote at simt/textbook/histogram.h:"),
    Planted("relay", "missing_barrier", "race", 95, "ptx::load_shared<float>(opposite)",
            "which thread 0 wrote at simt/textbook/relay.h:"),
    Planted("rotate", "missing_barrier", "race", 1, "ptx::store_shared(",
            "which thread 0 read, with no barrier in between"),
    Planted("rotate", "missing_barrier_before_reuse", "race", 0, "ptx::store_shared(",
            "which thread 31 read, with no barrier in between"),
)  # fmt: skip


def _report(planted: Planted, **options: Any) -> Any:
    """The fault that the kernel ends with, on operands that are always the same."""
    library = simulator()
    library.options(**options)
    with pytest.raises(library.Fault) as caught:
        KERNELS[planted.kernel](np.random.default_rng(0), planted.bug)
    return caught.value


@pytest.mark.parametrize("planted", PLANTED, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_planted_bug_is_reported(planted: Planted, mode: str) -> None:
    """By kind, kernel, block, thread, line and what happened there."""
    fault = _report(planted, mode=mode)
    found = (fault.kind, fault.kernel, fault.block, fault.thread)
    assert found == (planted.kind, planted.kernel, planted.block, planted.thread), fault
    at, _, name = fault.site.partition(" ")
    file, line = at.split(":")
    assert planted.line in (_CSRC / file).read_text().splitlines()[int(line) - 1], fault
    assert name == planted.name
    assert planted.message in fault.message
    assert str(fault) == (
        f"{fault.kind} in kernel '{fault.kernel}', block {fault.block}, thread {fault.thread}, "
        f"{fault.site}: {fault.message}"
    )


@pytest.mark.parametrize("planted", PLANTED, ids=str)
@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_planted_bug_is_found_in_every_order(planted: Planted, order: str, seed: int) -> None:
    fault = _report(planted, order=order, seed=seed)
    assert fault.kind == (planted.other_order or planted.kind), fault
    assert fault.kernel == planted.kernel


def test_blocks_come_in_the_order_that_is_asked_for() -> None:
    """The first block to run is the one that is found to write to its input."""
    writes = next(planted for planted in PLANTED if planted.bug == "store_to_input")
    assert _report(writes, order="reversed").block == "(2, 0, 0)"
    first = {_report(writes, order="shuffled", seed=seed).block for seed in range(12)}
    assert first == {"(0, 0, 0)", "(1, 0, 0)", "(2, 0, 0)"}


@pytest.mark.parametrize("kernel", ["matmul", "matmul, float16", "matmul, transposed"])
def test_wrong_swizzle_gives_wrong_values(kernel: str, rng: np.random.Generator) -> None:
    simulator().options()
    got, wanted = KERNELS[kernel](rng, "wrong_swizzle")
    assert np.isfinite(got).all() and (got != wanted).any()


@pytest.mark.parametrize(
    ("kernel", "bug", "reads"), [("reduce", "uninitialised", 3), ("stencil", "narrow_halo", 2)]
)
@pytest.mark.parametrize("order", ORDERS)
def test_what_nobody_wrote_is_nan(
    kernel: str, bug: str, reads: int, order: str, seed: int, rng: np.random.Generator
) -> None:
    """In every block: nothing is left of the one before."""
    library = simulator()
    library.options(order=order, seed=seed)
    got, wanted = KERNELS[kernel](rng, bug)
    assert np.isnan(got).sum() == reads
    assert ((got == wanted) | np.isnan(got)).all()
    assert library.report()["uninitialised_reads"] == reads
