"""Each instruction in the simulator: as the PTX manual says, and as hardware did (under 1 s)."""

from __future__ import annotations

import numpy as np
import pytest
from instruction_probes import PROBES, Probe, Words, canonical, golden
from simt.library import simulator


def _run(probe: Probe, **options: object) -> Words:
    library = simulator()
    library.options(**options)
    return canonical(library.probe(probe.name, probe.input().ravel()), probe.numbers)


def test_every_probe_has_a_statement() -> None:
    assert [probe.name for probe in PROBES] == list(simulator().probes)


@pytest.mark.parametrize("probe", PROBES, ids=str)
@pytest.mark.parametrize("mode", ["late", "early"])
@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_as_the_manual_says(probe: Probe, mode: str, order: str) -> None:
    assert probe.input().size > 0 or probe.name == "indices"
    np.testing.assert_array_equal(_run(probe, mode=mode, order=order), probe.expected())


def test_as_hardware_does() -> None:
    """Compares what has run on hardware; the reason of the skip names what has not."""
    unproven = []
    for probe in PROBES:
        seen = golden(probe)
        if seen is None:
            unproven.append(probe.name)
        else:
            np.testing.assert_array_equal(_run(probe), seen, err_msg=probe.name)
    if unproven:
        pytest.skip(f"never run on hardware (benchmarks/gpu_session.sh): {', '.join(unproven)}")
