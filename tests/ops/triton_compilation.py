"""Compiles for a GPU that need not be there what the Triton launchers would launch on it.

The real launchers run on tensors without memory, at layers of R(2+1)D-18, while Triton believes in
a GPU of the architecture asked for. Each launch compiles instead, specialised as any launch is, and
the tuner compiles the configurations that it would time.

Run as a module it prints the table of all, and with ``--write``, as in ``make triton-table``, it
goes to ``triton_resources.json`` (:mod:`ops.triton_table`). Each architecture is compiled by a
process of its own: within one Triton launches again what it has compiled, and where
``TRITON_INTERPRET`` is set there is nothing to compile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from ops.triton_table import (
    ARCHES,
    TABLE,
    Row,
    digest_of_sources,
    print_table,
    read_rows,
    write_rows,
)
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from r21d.models.layers import LAYERS
from r21d_ops.shapes import like_ndhwc, padded
from r21d_ops.triton import (
    fused,
    launch,
    spatial,
    spatial_dgrad,
    spatial_wgrad,
    temporal,
    temporal_dgrad,
    temporal_wgrad,
    tuning,
)

#: Those of the table of layers in the design: clips a batch, frames a clip.
_BATCH, _FRAMES = 32, 16

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_RUNS = {0: "whole", 1: "part", 2: "finish"}


class Case(NamedTuple):
    """One call of a launcher, with the planner's configuration or, one by one, ``every`` one.

    ``arithmetic`` is a 16-bit dtype, ``tf32`` or ``ieee``; ``variant`` is ``training``, or
    ``folded`` for inference, or ``frozen`` for a backward through frozen statistics.
    """

    operator: str
    layer: str = "conv4_x"
    arithmetic: str = "bfloat16"
    variant: str = "training"
    parts: int = 1
    every: bool = False


def list_cases() -> list[Case]:
    """Every configuration of every operator, and what else changes the code."""
    cases = []
    for operator in LAUNCHERS:
        cases += [Case(operator, arithmetic=a, every=True) for a in ("bfloat16", "tf32", "ieee")]
        cases += [Case(operator, arithmetic="float16")]
        # Strides unroll the fused kernel further: other registers, whatever the configuration.
        cases += [Case(operator, "conv3_1a", every=operator == "fused")]
    for operator in ("fused", "spatial", "spatial_dgrad", "spatial_wgrad"):
        # Three channels: chunks of several taps, and addresses that do not come in vectors.
        cases += [Case(operator, "stem", every=operator in ("fused", "spatial"))]
        cases += [Case(operator, "stem", arithmetic=a) for a in ("tf32", "ieee")]
    for operator in ("spatial", "temporal"):
        cases += [Case(operator, variant="folded")]
    for operator in ("spatial_dgrad", "spatial_wgrad"):
        cases += [Case(operator, variant="frozen")]
    for operator in ("spatial", "temporal", "spatial_dgrad", "temporal_dgrad"):
        cases += [Case(operator, parts=2)]
    return cases


class _Operands:
    """The tensors of one layer, without memory."""

    def __init__(self, case: Case) -> None:
        dtype = _DTYPES.get(case.arithmetic, torch.float32)
        problem = LAYERS[case.layer].problem(_BATCH, _FRAMES, dtype, "meta")
        empty = torch.empty(0, dtype=dtype, device="meta")
        self.kernel = problem.kernel
        self.size = problem.size
        self.geometry = {"stride": problem.stride, "padding": problem.padding}
        self.mid, self.outputs = problem.mid_channels, problem.out_channels

        self.x = like_ndhwc(empty, (_BATCH, problem.in_channels, *problem.size))
        self.u = like_ndhwc(empty, (_BATCH, padded(self.mid), *problem.mid_size))
        self.y = like_ndhwc(empty, (_BATCH, self.outputs, *problem.out_size))
        taps, *window = problem.kernel
        self.spatial_weight = empty.new_empty(self.mid, problem.in_channels, 1, *window)
        self.temporal_weight = empty.new_empty(self.outputs, self.mid, taps, 1, 1)

    def vectors(self, count: int) -> tuple[Tensor, ...]:
        """Float32, of M values."""
        return tuple(torch.empty(self.mid, device="meta") for _ in range(count))

    @property
    def epilogue(self) -> dict[str, Any]:
        """Everything that may follow the temporal convolution."""
        scale, shift = (torch.empty(self.outputs, device="meta") for _ in range(2))
        return {"out_scale": scale, "out_shift": shift, "residual": self.y, "relu": True}


def _fused(o: _Operands, case: Case) -> None:
    weights = o.spatial_weight, o.temporal_weight
    fused.fused_inference(o.x, *weights, *o.vectors(2), **o.epilogue, **o.geometry)


def _spatial(o: _Operands, case: Case) -> None:
    folded = case.variant == "folded"
    scale, shift = o.vectors(2) if folded else (None, None)
    spatial.spatial_convolution(
        o.x, o.spatial_weight, **o.geometry, scale=scale, shift=shift,
        statistics=not folded, parts=case.parts,
    )  # fmt: skip


def _temporal(o: _Operands, case: Case) -> None:
    folded = case.variant == "folded"
    scale, shift = (None, None) if folded else o.vectors(2)
    temporal.temporal_convolution(
        o.u, o.temporal_weight, **o.geometry, scale=scale, shift=shift,
        **(o.epilogue if folded else {}), parts=case.parts,
    )  # fmt: skip


def _temporal_dgrad(o: _Operands, case: Case) -> None:
    temporal_dgrad.temporal_input_gradient(
        o.y, o.u, *o.vectors(4), o.temporal_weight, **o.geometry, parts=case.parts
    )


def _temporal_wgrad(o: _Operands, case: Case) -> None:
    temporal_wgrad.temporal_weight_gradient(
        o.y, o.u, *o.vectors(2), o.kernel[0], **o.geometry, parts=case.parts
    )


def _factors(o: _Operands, case: Case) -> tuple[Tensor | None, ...]:
    return (*o.vectors(1), None, None) if case.variant == "frozen" else o.vectors(3)


def _spatial_dgrad(o: _Operands, case: Case) -> None:
    spatial_dgrad.spatial_input_gradient(
        o.u, o.u, o.spatial_weight, o.size, *_factors(o, case), **o.geometry, parts=case.parts
    )


def _spatial_wgrad(o: _Operands, case: Case) -> None:
    _, height, width = o.kernel
    spatial_wgrad.spatial_weight_gradient(
        o.u, o.u, o.x, (height, width), o.mid, *_factors(o, case), **o.geometry, parts=case.parts
    )


#: How each operator is launched.
LAUNCHERS: dict[str, Callable[[_Operands, Case], None]] = {
    "fused": _fused,
    "spatial": _spatial,
    "temporal": _temporal,
    "temporal_dgrad": _temporal_dgrad,
    "temporal_wgrad": _temporal_wgrad,
    "spatial_dgrad": _spatial_dgrad,
    "spatial_wgrad": _spatial_wgrad,
}


class _Gpu:
    """Stands in for Triton's driver: a GPU of one architecture, on which nothing can run."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _Compiled(NamedTuple):
    kernel: Any
    tile: Any
    arguments: dict[str, Any]


@contextlib.contextmanager
def _compiling(case: Case, arch: int) -> Iterator[list[_Compiled]]:
    """Launches append to what is yielded, and the tuner tries what it is offered."""
    compiled: dict[int, _Compiled] = {}
    tiles: list[Any] = []
    real_run = JITFunction.run

    def run(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = real_run(function, *args, grid=grid, warmup=True, **options)
        arguments = dict(zip(function.arg_names, args, strict=True))
        compiled.setdefault(id(kernel), _Compiled(kernel, tiles[-1], arguments))

    def pick(
        operator: str, key: object, candidates: Sequence[Any], launch: Callable[[Any], object],
        device: object,
    ) -> Any:  # fmt: skip
        for tile in candidates if case.every else candidates[:1]:
            tiles.append(tile)
            launch(tile)
        return tiles[-1]

    def describable(weight: Tensor) -> bool:
        return arch >= 90 and weight.shape[-1] * weight.element_size() % 16 == 0

    found: list[_Compiled] = []
    driver.set_active(_Gpu(arch))
    torch.backends.cudnn.conv.fp32_precision = "tf32" if case.arithmetic == "tf32" else "ieee"
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(tuning, "pick", pick),
        mock.patch.object(launch, "_describable", describable),
    ):
        yield found
        found += compiled.values()


def compile_case(index: int, arch: int) -> list[Row]:
    """A row for each kernel that the launcher would launch in that case of :func:`list_cases`."""
    case = list_cases()[index]
    with _compiling(case, arch) as compiled:
        LAUNCHERS[case.operator](_Operands(case), case)
    return [_row(index, case, arch, *each) for each in compiled]


def _row(
    index: int, case: Case, arch: int, kernel: Any, tile: Any, arguments: dict[str, Any]
) -> Row:
    ptx = kernel.asm["ptx"]
    run = _RUNS[arguments.get("RUN", 0)]
    registers, stack = _resources(kernel.asm["cubin"], arch)
    return Row(
        case=index,
        operator=case.operator,
        layer=case.layer,
        arithmetic=case.arithmetic,
        variant=case.variant,
        run=run,
        tile=tile.name,
        pixels=tile.pixels,
        depth=tile.depth,
        descriptors=tile.descriptors,
        arch=arch,
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        tensor_cores=", ".join(sorted({" ".join(each) for each in _TENSOR_CORES.findall(ptx)})),
        tma="cp.async.bulk.tensor" in ptx,
        wide=len(_WIDE.findall(ptx)),
        narrow=len(_NARROW.findall(ptx)),
        summed=_summed(kernel.asm["ttir"], arguments) if run == "whole" else None,
        atomics=len(_ATOMICS.findall(ptx)),
    )


_WIDE = re.compile(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10[,;]|ld\.global\S*\.v4\.b32")
_ATOMICS = re.compile(r"\b(?:atom|red)\.")
_NARROW = re.compile(r"ld\.global\S*\.[bu]16\b")
_TENSOR_CORES = re.compile(
    r"\b(wgmma|mma)(?:\.mma_async)?\.sync\.aligned\.m\w+(?:\.row\.col)?\.f32\.(\w+)"
)


def _resources(cubin: bytes, arch: int) -> tuple[int, int]:
    """Registers a thread, and bytes of stack: of use to these kernels for spilt registers alone."""
    tool = Path(get_ptxas(arch).path).with_name("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(path)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return int(found[1]), int(found[2])


_ASSIGNMENT = re.compile(r"(%[\w#]+) = (?:arith|tt)\.(\w+) ?(.*?) : i(?:32|64)$")
_LOOP = re.compile(r"scf\.for %[\w#]+ = (%[\w#]+) to (%[\w#]+) step (%[\w#]+)")
_PRODUCT = re.compile(r"= tt\.dot .* : tensor<\d+x(\d+)x\w+> \*")
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "divsi": lambda a, b: a // b,
    "remsi": lambda a, b: a % b,
    "minsi": min,
    "maxsi": max,
}


def _summed(ttir: str, arguments: dict[str, Any]) -> int:
    """The depth of the first matrix product times the trips of the loop around it, in program 0.

    The loop's bounds are worked out from the arguments: integers and their arithmetic is all that
    they are made of.
    """
    values = {f"%{name}": value for name, value in arguments.items() if isinstance(value, int)}
    trips = 0
    for raw in ttir.splitlines():
        line = re.sub(r" loc\(.*\)$", "", raw).strip()
        if loop := _LOOP.search(line):
            begin, end, step = (values.get(name) for name in loop.groups())
            # Loops over steps, not those over frames, are next to a product and have known bounds.
            if begin is not None and end is not None and step is not None:
                trips = -(-(end - begin) // step)
        elif product := _PRODUCT.search(line):
            return trips * int(product[1])
        elif assignment := _ASSIGNMENT.match(line):
            name, operation, operands = assignment.groups()
            inputs = [values.get(operand) for operand in operands.split(", ")]
            if operation == "constant":
                values[name] = int(operands)
            elif operation == "get_program_id":
                values[name] = 0
            elif operation in _ARITHMETIC and None not in inputs:
                a, b = (value for value in inputs if value is not None)
                values[name] = _ARITHMETIC[operation](a, b)
    raise AssertionError("no matrix product in the kernel")


def compile_in_processes(folder: Path, cases: Sequence[int]) -> None:
    """The rows of those cases for each architecture, to ``rows.json`` in ``folder``."""
    sources = digest_of_sources()
    # Triton's defaults, and an empty cache: nothing that another version of the kernels left is
    # mistaken for ours.
    options = ("TRITON_", "LLVM_", "MLIR_", "DISABLE_", "PTXAS_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(options)}
    environment |= {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    files = {arch: folder / f"{arch}.json" for arch in ARCHES}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ops.triton_compilation", "--arch", str(arch),
             "--json", str(path), "--cases", *map(str, cases)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for arch, path in files.items()
    ]  # fmt: skip
    try:
        outputs = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode != 0:
            raise RuntimeError(output[-8000:])
    rows = [row for path in files.values() for row in read_rows(path).rows]
    write_rows(folder / "rows.json", sources, rows)


def main() -> None:
    """Compiles every case and prints the table, or writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"the table, to {TABLE.name}")
    inner = parser.add_argument_group("one architecture, in this process")
    inner.add_argument("--arch", type=int, choices=ARCHES)
    inner.add_argument("--cases", type=int, nargs="+")
    inner.add_argument("--json", type=Path, help="where the rows go")
    options = parser.parse_args()
    given = [option is not None for option in (options.arch, options.cases, options.json)]
    if any(given) and (options.write or not all(given)):
        parser.error("--arch, --cases and --json go together, and without --write")
    if options.arch is not None:
        sources = digest_of_sources()
        rows = [row for case in options.cases for row in compile_case(case, options.arch)]
        write_rows(options.json, sources, rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        compile_in_processes(Path(folder), range(len(list_cases())))
        table = Path(folder, "rows.json")
        if options.write:
            shutil.copyfile(table, TABLE)
        else:
            print_table(read_rows(table).rows)


if __name__ == "__main__":
    main()
