"""Every case with every peer, as benchmarks of pytest-benchmark.

pytest-benchmark measures one function after the other; here all peers of a case are measured in
interleaved rounds when the first of them is asked for, and each test hands its own samples over:
its timer is a clock that its target moves on by the next sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.suite import Suite


class RecordedClock:
    """A clock that stands still but for :meth:`replay`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.samples: Iterator[float] = iter(())

    def read(self) -> float:
        """Seconds."""
        return self.now

    def replay(self) -> None:
        """Takes as long as the next sample says."""
        self.now += next(self.samples)


_clock = RecordedClock()


@pytest.mark.benchmark(timer=_clock.read)
def test_peer(suite: Suite, case: str, peer: str, benchmark: Any) -> None:
    """One peer of one case: its values are right, and these are its times."""
    result = suite.result(case)
    row = result.row(peer)
    if row.status == "unavailable":
        pytest.skip(row.reason)
    # A foreign runtime that fails or errs is reported and does not fail ours.
    if row.status != "timed" and not row.ours:
        pytest.skip(f"{row.status}: {row.reason}")
    assert row.status == "timed", row.reason
    benchmark.group = case
    benchmark.extra_info.update(
        peak_bytes=row.peak_bytes, floor_s=result.floor, shape=result.case.shape
    )
    _clock.now, _clock.samples = 0.0, iter(row.samples)
    benchmark.pedantic(_clock.replay, rounds=len(row.samples))
