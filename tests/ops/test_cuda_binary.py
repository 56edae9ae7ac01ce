"""What the compiler made of the CUDA kernels, without a GPU (5 s, most of it cuobjdump's).

The rules hold for every compiler; the committed table of registers and memory, which
``python tests/ops/cuda_binary.py --write`` makes, for the toolkit that it names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import asdict

import pytest
from ops import cuda_binary
from ops.cuda_binary import ARCHES, LIBRARY, Resources

_MOST_KERNELS = 119
#: Registers of a multiprocessor, all of which one block may take; they come to a warp in units.
_ALL_REGISTERS, _REGISTER_UNIT = 65536, 8

_TENSOR_CORES = {"Bfloat16": "HMMA.16816.F32.BF16", "Float16": "HMMA.16816.F32"}


class Code:
    """The machine code for one architecture."""

    def __init__(self, arch: str) -> None:
        self.resources: dict[str, Resources] = cuda_binary.read_resources(LIBRARY, arch)
        self.instructions: dict[str, Counter[str]] = cuda_binary.read_instructions(LIBRARY, arch)


@pytest.fixture(scope="module")
def toolkit() -> str:
    """The library's CUDA toolkit; skips where it has none or cannot be read."""
    found = cuda_binary.toolkit(LIBRARY) if LIBRARY.exists() else None
    if found is None:
        wanted = os.environ.get("R21D_NATIVE") == "1" and os.environ.get("R21D_CUDA") != "0"
        if wanted and shutil.which("nvcc") is not None:
            pytest.fail(f"nvcc is on PATH, and {LIBRARY.name} holds no CUDA kernels")
        pytest.skip(f"{LIBRARY.name} is not built, or without CUDA")
    if cuda_binary.find_cuobjdump() is None:
        pytest.skip("there is no cuobjdump: neither a CUDA toolkit nor Triton's wheel has one")
    return found


@pytest.fixture(scope="module", params=ARCHES)
def code(request: pytest.FixtureRequest, toolkit: str) -> Code:
    """Each architecture's kernels."""
    return Code(request.param)


def _offenders(instructions: dict[str, Counter[str]], pattern: str) -> dict[str, list[str]]:
    """By kernel, its instructions that match."""
    found = {name: [i for i in ours if re.match(pattern, i)] for name, ours in instructions.items()}
    return {name: ours for name, ours in found.items() if ours}


def test_ptx_for_later_gpus(toolkit: str) -> None:
    assert cuda_binary.ptx_targets(LIBRARY) == {"sm_90"}


def test_kernels_are_those_of_the_tables_and_few(code: Code) -> None:
    assert len(code.resources) <= _MOST_KERNELS
    assert code.resources.keys() == code.instructions.keys()
    tiled = {
        name for name in code.resources if name.startswith(("conv<", "fused<", "weight_gradient<"))
    }
    assert tiled == set(cuda_binary.tiles())


def test_no_stack_and_no_local_memory(code: Code) -> None:
    assert {k: r for k, r in code.resources.items() if r.stack or r.local} == {}
    # LDL and STL are spills and arrays that are not in registers; LD and ST may be.
    assert _offenders(code.instructions, r"(LDL|STL|LD|ST)(\.|$)") == {}


def test_registers_within_the_planners_bounds(code: Code) -> None:
    over = {}
    for name, tile in cuda_binary.tiles().items():
        registers = code.resources[name].registers
        if registers > tile.most_registers:
            over[name] = (registers, tile.most_registers)
        warps = tile.threads // 32
        units = -(-registers // _REGISTER_UNIT) * warps
        assert units * 32 * _REGISTER_UNIT <= _ALL_REGISTERS, f"{name} could not be launched"
    assert over == {}, "registers and kRegisters of csrc/cuda/config.h"


def test_instructions(code: Code) -> None:
    """Tensor cores, matrices by ldmatrix, and 16 bytes at a time to and from global memory."""
    for name in cuda_binary.tiles():
        ours = code.instructions[name]
        sums_weights = name.startswith("weight_gradient<")
        (wanted,) = (i for dtype, i in _TENSOR_CORES.items() if f"<{dtype}," in name)
        assert {i for i in ours if re.match(r"\w*MMA", i)} == {wanted}, name
        assert ours["LDSM.16.MT88.4" if sums_weights else "LDSM.16.M88.4"] > 0, name
        copies = [i.split(".") for i in ours if i.startswith("LDGSTS")]
        assert copies and all({"BYPASS", "128"} < set(parts) for parts in copies), name
        # A weight's gradient is small beside what it is summed over.
        assert sums_weights or ours["STG.E.128"] > 0, name
        assert ours["LDG.E.128.CONSTANT"] > 0, name


@pytest.mark.parametrize("arch", ARCHES)
def test_resources_are_those_of_the_table(arch: str, toolkit: str) -> None:
    table = json.loads(cuda_binary.TABLE.read_text())
    if toolkit != table["toolkit"]:
        pytest.skip(
            f"the library is of CUDA {toolkit} and the table of {table['toolkit']}: the rules are "
            "checked, equality is not"
        )
    found = {k: asdict(r) for k, r in cuda_binary.read_resources(LIBRARY, arch).items()}
    expected = table["kernels"][arch]
    changed = {
        name: {"now": found.get(name), "table": expected.get(name)}
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    }
    told = "\n".join(f"{arch} {name}: {values}" for name, values in changed.items())
    assert not changed, (
        f"{told}\nIf that is meant, write the table anew: python tests/ops/cuda_binary.py --write"
    )
