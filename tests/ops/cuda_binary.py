"""What the compiler made of the CUDA kernels: read from the built library, with ``cuobjdump``.

Run as ``python tests/ops/cuda_binary.py`` it prints the table of all kernels; with ``--write`` it
writes it to ``cuda_resources.json``, which the tests compare. ``--library`` names another file than
the package's own.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).resolve().parents[2]

LIBRARY = _ROOT / "r21d_ops" / "_native.so"
TABLE = Path(__file__).with_name("cuda_resources.json")
ARCHES = ("sm_80", "sm_90a")

#: Prints a line a tile of csrc/cuda/config.h: what its kernels are called, their block's threads,
#: the bound of their registers, the bytes of dynamic shared memory (fused: without the bands).
_TILES = """
#include <cstdio>
#include "cuda/config.h"
using namespace r21d::cuda;
int main() {
#define CONV_OF(w, c, k) { using T = ConvTile<w, c, k>; std::printf( \\
  "conv %d, %d, %d|%d %d %d\\n", w, c, k, T::kThreads, T::kRegisters, T::kSharedBytes); }
#define CONV(w, c) CONV_OF(w, c, kInfer)
  R21D_CONV_TILES(CONV)
#define TRAINING(w, c) CONV_OF(w, c, kForward) CONV_OF(w, c, kNormForward) \\
  CONV_OF(w, c, kGradient) CONV_OF(w, c, kNormGradient)
  R21D_TRAINING_TILES(TRAINING)
#define WEIGHT_OF(w, c, k) { using T = WeightTile<w, c, k>; std::printf( \\
  "weight_gradient %d, %d, %d|%d %d %d\\n", w, c, k, T::kThreads, T::kRegisters, T::kSharedBytes); }
#define WEIGHT(w, c) WEIGHT_OF(w, c, kNormColumns) WEIGHT_OF(w, c, kNormRows) \\
  WEIGHT_OF(w, c, kNormBoth)
  R21D_WEIGHT_TILES(WEIGHT)
#define FUSED(w, m, l) { using T = FusedTile<w, m, l>; std::printf( \\
  "fused %d, %d, %d|%d %d %d\\n", w, m, l, T::kThreads, T::kRegisters, T::kFixedBytes); }
  R21D_FUSED_TILES(FUSED)
}
"""
_DTYPES = ("Bfloat16", "Float16")


class Tile(NamedTuple):
    """``shared``: bytes of dynamic shared memory; of a fused kernel, without the bands."""

    threads: int
    most_registers: int
    shared: int


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers of a thread; bytes of its stack frame and of local memory; bytes of
    shared memory, static (on sm_90 with 1024 of the system) and, where known, dynamic."""

    registers: int
    stack: int
    local: int
    shared: int
    dynamic: int | None


def find_cuobjdump() -> str | None:
    """Path of ``cuobjdump``: on ``PATH``, of the CUDA toolkit, or in Triton's wheel."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])
    return shutil.which("cuobjdump", path=search)


def toolkit(library: Path) -> str | None:
    """Version of the CUDA toolkit that assembled the library's kernels; None: it holds none."""
    note = re.search(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", library.read_bytes())
    return None if note is None else note[1].decode()


def short_name(mangled: str) -> str:
    """``fused<Bfloat16, 4, 144, 3>`` of a kernel's mangled name."""
    names, rest = [], mangled.removeprefix("_ZN")
    while length := re.match(r"\d+", rest):
        end = length.end() + int(length[0])
        names.append(rest[length.end() : end])
        rest = rest[end:]
    if names[:2] != ["r21d", "cuda"]:
        raise ValueError(f"{mangled} is no kernel of r21d::cuda")
    words = [*re.findall("|".join(_DTYPES), rest), *re.findall(r"Li(\d+)E", rest)]
    arguments = f"<{', '.join(words)}>" if words else ""
    return names[-1].removesuffix("_kernel") + arguments


@functools.cache
def tiles() -> dict[str, Tile]:
    """Every kernel with a tile that ``csrc/cuda/config.h`` asks for, by :func:`short_name`."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "clang++"))))
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "tiles.cpp", Path(folder) / "tiles"
        source.write_text(_TILES)
        subprocess.run(
            [compiler, "-std=c++17", f"-I{_ROOT / 'csrc'}", source, "-o", program], check=True
        )
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in lines.splitlines():
        tile, numbers = line.split("|")
        kind, arguments = tile.split(" ", 1)
        for dtype in _DTYPES:
            found[f"{kind}<{dtype}, {arguments}>"] = Tile(*map(int, numbers.split()))
    return found


def _dump(library: Path, *options: str) -> str:
    tool = find_cuobjdump()
    assert tool is not None
    command = [tool, *options, str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ptx_targets(library: Path) -> set[str]:
    """Architectures that the library holds PTX for, e.g. ``sm_90``."""
    return set(re.findall(r"^PTX file.*\.(sm_\w+)\.ptx$", _dump(library, "-lptx"), re.MULTILINE))


def read_resources(library: Path, arch: str) -> dict[str, Resources]:
    """What each kernel of machine code for ``arch`` takes, by :func:`short_name`."""
    found: dict[str, Resources] = {}
    text = _dump(library, "-res-usage", "-arch", arch)
    for name, usage in re.findall(r"^ *Function (\S+):\n(.*)$", text, re.MULTILINE):
        value = {key: int(number) for key, number in re.findall(r"(\w+):(\d+)", usage)}
        kernel = short_name(name)
        assert kernel not in found, f"{name}: another kernel is called {kernel} as well"
        dynamic = tiles()[kernel].shared if kernel in tiles() else None
        found[kernel] = Resources(
            value["REG"], value["STACK"], value["LOCAL"], value["SHARED"], dynamic
        )
    return found


def read_instructions(library: Path, arch: str) -> dict[str, Counter[str]]:
    """How often each instruction, e.g. ``LDSM.16.M88.4``, stands in each kernel's machine code."""
    found = {}
    # Every line of an instruction has its address in four or more digits and ends with its code.
    instruction = re.compile(r"^ +/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z][\w.]*)", re.MULTILINE)
    parts = re.split(r"^\t+Function : (\S+)$", _dump(library, "-sass", "-arch", arch), flags=re.M)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        found[short_name(name)] = Counter(instruction.findall(text))
    return found


def make_table(library: Path) -> dict[str, object]:
    """The committed table: the toolkit's version and a row per architecture and kernel."""
    rows = {}
    for arch in ARCHES:
        kernels = sorted(read_resources(library, arch).items())
        rows[arch] = {name: asdict(resources) for name, resources in kernels}
    return {"toolkit": toolkit(library), "kernels": rows}


def _as_text(table: dict[str, object]) -> str:
    """JSON with one kernel a line."""
    text = json.dumps(table, indent=1) + "\n"
    return re.sub(r"\{[^{}]*\}", lambda row: re.sub(r"\s*\n\s*", " ", row[0]), text)


def main() -> int:
    """Prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--write", action="store_true", help=f"to {TABLE.name}")
    options = parser.parse_args()
    text = _as_text(make_table(options.library))
    if options.write:
        TABLE.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
