"""The simulator's switches: sites and their perturbations, modes, orders, launches (about 2 s)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from simt.library import simulator
from simt.textbook import KERNELS


def _sites_of(kernel: str) -> list[dict[str, Any]]:
    """Those that the kernel executes."""
    library = simulator()
    library.options()
    KERNELS[kernel](np.random.default_rng(0), "none")
    return [row for row in library.sites() if row["executed"]]


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_perturbation_is_noticed(kernel: str) -> None:
    """By a fault or by wrong values; and none is in force afterwards."""
    library = simulator()
    survivors = []
    for site in _sites_of(kernel):
        for perturbation in site["perturbations"]:
            library.options(mutate=(site["id"], perturbation))
            try:
                got, wanted = KERNELS[kernel](np.random.default_rng(0), "none")
            except library.Fault:
                continue
            if np.array_equal(got, wanted):
                survivors.append((site["id"], perturbation))
    assert survivors == []
    library.options()
    got, wanted = KERNELS[kernel](np.random.default_rng(0), "none")
    np.testing.assert_array_equal(got, wanted)


def _by_name(kernel: str) -> dict[str, dict[str, Any]]:
    return {site["name"]: site for site in _sites_of(kernel)}


def test_sites_tell_what_they_are() -> None:
    """Operations, perturbations and executions by threads, of the last launch alone."""
    found = _by_name("pipeline")
    told = {
        name: (row["operations"], row["perturbations"], row["executed"])
        for name, row in found.items()
    }
    rows, threads = 7, 64
    assert told == {
        "stage loaded": (["stage"], ["wrong stage"], (rows + 1) * threads),
        "rows": (["below"], ["one more", "one less"], (rows + 1) * threads),
        "row issued": (["cp_async_commit"], ["removed"], (rows + 1) * threads),
        "row landed": (["cp_async_wait"], ["removed", "one later"], rows * threads),
        "row visible": (["sync_threads"], ["removed"], rows * threads),
        "stage used": (["stage"], ["wrong stage"], rows * threads),
        "row used": (["sync_threads"], ["removed"], rows * threads),
    }
    assert all(row["id"].startswith("simt/textbook/pipeline.h:") for row in found.values())
    found = _by_name("rotate")
    assert found["values read"]["operations"] == ["sync_warp"]
    assert found["values read"]["perturbations"] == ["removed"]
    assert found["values read"]["executed"] == 3 * 64
    assert "row used" not in found


def test_collectives_are_sites_without_perturbations() -> None:
    found = _by_name("matmul, transposed")
    assert found["a"]["operations"] == ["ldmatrix_x4"]
    assert found["b, transposed"]["operations"] == ["ldmatrix_x4_transposed"]
    assert "mma_m16n8k16<Bfloat16>" in found["mma"]["operations"]
    assert not any(found[name]["perturbations"] for name in ("a", "b, transposed", "mma"))


def test_instantiations_of_a_template_share_a_site() -> None:
    """Both formats' kernels are perturbed alike."""
    library = simulator()
    landed = _by_name("matmul")["tiles landed"]["id"]
    assert landed == _by_name("matmul, float16")["tiles landed"]["id"]
    library.options(mutate=(landed, "removed"))
    for kernel in ("matmul", "matmul, float16"):
        with pytest.raises(library.Fault, match="race"):
            KERNELS[kernel](np.random.default_rng(0), "none")


_FRESH = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
import numpy as np
spec = spec_from_file_location("_simt", sys.argv[1])
library = module_from_spec(spec)
spec.loader.exec_module(library)
assert library.sites() == []
library.options(mutate=(sys.argv[2], "removed"))
try:
    library.rotate(np.zeros(64, np.float32), np.zeros(64, np.float32), 3)
except library.Fault as fault:
    print(fault.kind)
"""


def test_a_site_is_perturbed_the_first_time_it_is_reached() -> None:
    """In a process of its own: sites are known once they were executed."""
    site = _by_name("rotate")["values written"]["id"]
    command = [sys.executable, "-c", _FRESH, str(simulator().__file__), site]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "race\n"


def test_a_site_that_is_never_reached_changes_nothing() -> None:
    library = simulator()
    library.options(mutate=("simt/textbook/nowhere.h:1 nothing", "removed"))
    got, wanted = KERNELS["reduce"](np.random.default_rng(0), "none")
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "never"}, "mode='never' is not one of late, early"),
        ({"order": "random"}, "order='random' is not one of forward, reversed, shuffled"),
        ({"mutate": ("x", "broken")}, "perturbation 'broken' is not one of removed, one later, "),
    ],
)
def test_unknown_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulator().options(**given)


def test_a_perturbation_that_does_not_fit_is_refused() -> None:
    library = simulator()
    used = _by_name("pipeline")["row used"]["id"]
    with pytest.raises(ValueError, match="'one later'"):
        library.options(mutate=(used, "one later"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 33}, "threads=33 is not a multiple of 32"),
        ({"threads": 0}, "threads=0"),
        ({"threads": 1056}, "threads=1056"),
        ({"threads": 32, "dynamic_shared": 232449}, "232449 bytes are more than the 232448"),
        ({"threads": 32, "dynamic_shared": 101377, "shared_limit": 101376}, "more than the 101376"),
    ],
)
def test_impossible_launches_are_refused(given: dict[str, int], message: str) -> None:
    library = simulator()
    library.options()
    with pytest.raises(ValueError, match=message):
        library.idle(**given)
    library.idle(threads=1024, dynamic_shared=101376, shared_limit=101376)
    assert library.report()["blocks"] == 1


def test_shuffled_orders_repeat_with_their_seed() -> None:
    """The thread that a race is found in depends on the seed, and on nothing else."""
    library = simulator()

    def racing_thread(seed: int) -> int:
        library.options(order="shuffled", seed=seed)
        with pytest.raises(library.Fault) as caught:
            KERNELS["transpose"](np.random.default_rng(0), "missing_barrier")
        thread: int = caught.value.thread
        return thread

    threads = [racing_thread(seed) for seed in range(8)]
    assert len(set(threads)) > 1
    assert threads == [racing_thread(seed) for seed in range(8)]
