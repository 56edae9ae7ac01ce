"""Every synchronisation site of the CUDA kernels, perturbed: does a test notice? (about 20 s)

A perturbed kernel runs the problems below until one faults or differs. The outcomes are written to
``build/simt/mutations-<group>.json``.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ops.problems import Case, Operands, make_operands, with_epilogue
from simt.library import simulator
from simt.simulated import Setting, simulate
from simt.training import UninitialisedReadError, tiles_of
from simt.training_steps import Inputs, run_step
from torch import Tensor

_ROOT = Path(__file__).parents[2]
_ARTEFACTS = _ROOT / "build" / "simt"
_SOURCES = _ROOT / "csrc" / "cuda"

_WIDE = Case("wide", n=2, c=24, m=49, o=72, size=(5, 9, 9))
_STRIDED = Case("strided", n=1, c=16, m=147, o=7, size=(6, 17, 15), kernel=(3, 3, 2),
                stride=(2, 2, 2), padding=(1, 2, 1))  # fmt: skip
_NARROW = Case("narrow", n=2, c=3, m=18, o=16, size=(4, 13, 15), kernel=(3, 5, 5),
               stride=(1, 2, 2), padding=(1, 3, 2))  # fmt: skip
_FIVE = Case("five-channels", n=1, c=5, m=21, o=9, size=(3, 7, 9), kernel=(2, 3, 3),
             stride=(1, 1, 1), padding=(1, 1, 1))  # fmt: skip
_WHOLE = Case("whole", n=1, c=8, m=144, o=8, size=(5, 5, 9), kernel=(3, 1, 1), stride=(2, 1, 1),
              padding=(1, 0, 0))  # fmt: skip
_DEEP = Case("deep", n=1, c=40, m=48, o=64, size=(4, 6, 7), kernel=(3, 3, 3))


def _fused(warps: int, mids: int, bands: int, chunk: int) -> Setting:
    force = {"pixel_warps": warps, "columns": mids, "bands": bands, "chunk": chunk}
    return Setting("fused", {"fused": force})


def _two(spatial: tuple[int, int], temporal: tuple[int, int]) -> Setting:
    tiles = {"spatial": spatial, "temporal": temporal}
    return Setting("two", {k: {"pixel_warps": w, "columns": c} for k, (w, c) in tiles.items()})


_PROBLEMS: dict[str, list[tuple[Case, Setting]]] = {
    "fused": [
        (_FIVE, _fused(2, 48, 1, 4)),
        (_WIDE, _fused(2, 48, 2, 2)),
        (_NARROW, _fused(2, 48, 1, 2)),
        (_STRIDED, _fused(2, 48, 1, 3)),
        (_WIDE, _fused(2, 48, 1, 5)),
        (_STRIDED, _fused(2, 144, 2, 2)),
        (_DEEP, _fused(4, 48, 2, 4)),
        (_DEEP, _fused(2, 48, 1, 4)),
        (_WHOLE, _fused(4, 144, 1, 3)),
    ],
    "two": [
        (_FIVE, _two((2, 64), (2, 64))),
        (_NARROW, _two((2, 64), (4, 48))),
        (_WIDE, _two((4, 48), (4, 144))),
        (_STRIDED, _two((4, 96), (2, 64))),
        (_DEEP, _two((4, 64), (4, 128))),
    ],
}

#: Case, choice of tiles, parts of the sums: training steps.
_STEPS: list[tuple[Case, int, int]] = [
    (replace(_FIVE, size=(3, 5, 9)), 3, 1),
    (_NARROW, 3, 2),
    (Case("padded", n=2, c=12, m=20, o=9, size=(3, 4, 5), stride=(2, 2, 1), padding=(2, 1, 2)), 2,
     3),
    (Case("pointwise", n=1, c=9, m=72, o=65, size=(2, 8, 9), kernel=(1, 1, 1), padding=(0, 0, 0)),
     3, 1),
    (Case("entries", n=1, c=8, m=33, o=8, size=(1, 1, 64 * 128 + 33), kernel=(1, 1, 1),
          padding=(0, 0, 0)), 3, 1),
]  # fmt: skip


def _special(operands: Operands, generator: torch.Generator) -> Operands:
    """The same with infinities in x that ReLU takes away, so that infinity times zero shows.

    Each makes u minus infinity in all channels that there are. Those beyond them have zero weights.
    """
    places = torch.randperm(operands.x.numel(), generator=generator)[:3]
    operands.x.view(-1)[places] = torch.inf
    assert operands.bn_weight is not None
    operands.bn_weight.abs_()
    operands.spatial_weight.abs_().neg_()
    return operands


@functools.cache
def _operands(case: Case, special: bool) -> Operands:
    generator = torch.Generator().manual_seed(len(case.name) + special)
    operands = make_operands(case, generator, torch.bfloat16)
    operands = with_epilogue(operands, generator, True, True, True, case.name != "deep")
    return _special(operands, generator) if special else operands


#: A problem's name, and what the kernels make of it with some options of the simulator.
_Run = tuple[str, Callable[..., Tensor]]


def _inference_runs(kernels: str) -> list[_Run]:
    def bits(case: Case, setting: Setting, special: bool, **options: Any) -> Tensor:
        y, _ = simulate(_operands(case, special), setting, **options)
        return y.view(torch.int16)

    return [
        (case.name + (", with infinities" if special else ""),
         functools.partial(bits, case, setting, special))
        for case, setting in _PROBLEMS[kernels]
        for special in (False, True)
    ]  # fmt: skip


def _training_bits(case: Case, index: int, parts: int, special: bool, **options: Any) -> Tensor:
    """Everything that a step's operators return."""
    generator = torch.Generator().manual_seed(len(case.name))
    inputs = Inputs(case, random.Random(index), generator, torch.bfloat16)
    if special:
        # What lies beyond M must not become zero times infinity.
        inputs.x[0, 0, 0, 0, 0] = torch.inf
        inputs.grad[0, 0, 0, 0, 0] = torch.inf
    found = run_step(inputs, tiles_of(index, parts), **options)
    return torch.cat([
        (value if value.dtype == torch.float32 else value.float()).flatten().view(torch.int32)
        for value in found.values()
    ])  # fmt: skip


def _training_runs() -> list[_Run]:
    return [
        (f"{case.name} in {parts}{', with infinities' if special else ''}",
         functools.partial(_training_bits, case, index, parts, special))
        for case, index, parts in _STEPS
        for special in (False, True)
    ]  # fmt: skip


class Runs:
    """Problems, with what unperturbed kernels make of them."""

    def __init__(self, kernels: tuple[str, ...], files: tuple[str, ...]) -> None:
        self._runs = [run for name in kernels for run in _RUNS[name]()]
        self._expected = [run() for _, run in self._runs]
        self.sites: dict[str, list[str]] = {
            row["id"]: row["perturbations"]
            for row in simulator().sites()
            if row["perturbations"] and row["id"].split(":")[0] in files
        }

    def outcome(self, site: str, perturbation: str) -> str:
        """What happens to the first problem that notices, or ``survived``."""
        for (name, run), expected in zip(self._runs, self._expected, strict=True):
            for mode in ("late", "early"):
                try:
                    bits = run(mode=mode, mutate=(site, perturbation))
                except simulator().Fault as fault:
                    return f"{fault.kind} ({name}, {mode})"
                except UninitialisedReadError:
                    return f"uninitialised read ({name}, {mode})"
                different = int((bits != expected).sum())
                if different:
                    return f"{different} values differ ({name}, {mode})"
        return "survived"


_RUNS: dict[str, Callable[[], list[_Run]]] = {
    "fused": functools.partial(_inference_runs, "fused"),
    "two": functools.partial(_inference_runs, "two"),
    "training": _training_runs,
}

#: By the kernels' files: which problems reach their sites.
_GROUPS = {
    "fused": (("fused",), ("cuda/fused.cuh", "cuda/band.cuh")),
    "others": (
        ("two", "fused", "training"), ("cuda/conv.cuh", "cuda/pack.cuh", "cuda/tile.cuh"),
    ),
    "training": (
        ("training",),
        ("cuda/channel_sums.cuh", "cuda/join.cuh", "cuda/merge.cuh", "cuda/prologue.cuh",
         "cuda/weight_gradient.cuh"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("group", list(_GROUPS))
def test_no_perturbation_survives(group: str) -> None:
    """Every barrier, wait, commit, stage and bound is needed, and its loss is noticed."""
    runs = Runs(*_GROUPS[group])
    rows: list[dict[str, Any]] = []
    for site, perturbations in sorted(runs.sites.items()):
        for perturbation in perturbations:
            outcome = runs.outcome(site, perturbation)
            rows.append({"site": site, "perturbation": perturbation, "outcome": outcome})
            print(f"{site}: {perturbation}: {outcome}")
    _ARTEFACTS.mkdir(parents=True, exist_ok=True)
    path = _ARTEFACTS / f"mutations-{group}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    survivors = [row for row in rows if row["outcome"] == "survived"]
    assert rows and not survivors, f"{len(survivors)} of {len(rows)} survive: {survivors}"


def test_every_site_is_reached() -> None:
    """No site of the sources is missed by the problems, and none hides in a file of no group."""
    for kernels, _ in _GROUPS.values():
        for name in kernels:
            for _, run in _RUNS[name]():
                run()
    reached = {row["id"].split(":")[0] + " " + row["name"] for row in simulator().sites()}
    named = {file for _, files in _GROUPS.values() for file in files}
    written = set()
    for path in _SOURCES.glob("*.cuh"):
        found = re.findall(r'R21D_SITE\(\s*"([^"]+)"\s*\)', path.read_text(encoding="utf-8"))
        if path.name not in ("ptx.cuh", "probes.cuh"):
            written |= {f"cuda/{path.name} {name}" for name in found}
    assert {name.split(" ")[0] for name in written} == named
    assert written <= reached, f"never reached: {sorted(written - reached)}"
