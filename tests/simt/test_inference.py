"""The CUDA kernels in the simulator: every tile, random problems, early and late (about 40 s)."""

from __future__ import annotations

import collections
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import Draw, assert_accurate_over_draws
from ops.problems import Case, Operands, exact, make_operands, stock, with_epilogue
from simt.random_problems import (
    CONV_TILES,
    DTYPES,
    FUSED_TILES,
    Wanted,
    draw_problem,
    every_wanted,
    roomier,
)
from simt.simulated import Setting, simulate
from torch import Tensor

WANTED = every_wanted()


def _operands(
    rng: random.Random, case: Case, generator: torch.Generator, dtype: torch.dtype
) -> Operands:
    """Random operands with a random part of the epilogue, weights in any memory format.

    In one of four, x holds infinities and NaN.
    """
    operands = make_operands(case, generator, dtype)
    operands = with_epilogue(operands, generator, *(rng.random() < 0.5 for _ in range(4)))
    if rng.random() < 0.25:
        places = torch.randperm(operands.x.numel(), generator=generator)[:3]
        values = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)[: len(places)]
        operands.x.view(-1)[places] = values
    layout = rng.choice(("contiguous", "channels last", "sliced"))
    if layout == "contiguous":
        return operands
    operands = operands.channels_last()
    if layout == "sliced":
        operands.spatial_weight = _every_second(operands.spatial_weight)
        operands.temporal_weight = _every_second(operands.temporal_weight)
    return operands


def _every_second(weight: Tensor) -> Tensor:
    """The same weight as every second output channel of a larger one, channels last."""
    larger = torch.full((2 * weight.shape[0], *weight.shape[1:]), torch.nan, dtype=weight.dtype)
    view = larger.contiguous(memory_format=torch.channels_last_3d)[::2]
    return view.copy_(weight)


def _late(operands: Operands, drawn: Setting) -> tuple[Tensor, dict[str, Any], Setting] | None:
    """y, what ran and how, with the shared memory that it takes; None where no GPU has as much."""
    setting: Setting | None = drawn
    while setting is not None:
        try:
            return *simulate(operands, setting, mode="late", order="forward"), setting
        except ValueError as error:
            assert "shared memory" in str(error)
            setting = roomier(setting)
    return None


def _check_what_ran(ran: dict[str, Any], wanted: Wanted, case: Case) -> None:
    assert ran["uninitialised_reads"] == 0
    if wanted.fused is None:
        tiles = [(ran[k]["pixel_warps"], ran[k]["columns"]) for k in ("spatial", "temporal")]
        assert tiles == [wanted.spatial, wanted.temporal]
        return
    fused = ran["fused"]
    assert (fused["pixel_warps"], fused["mids"], fused["live"]) == wanted.fused
    if wanted.deep:
        assert fused["slices"] > 1 and fused["chunk"] > 1 and case.size[0] >= 4
        # Of one frame alone; a block makes several.
        assert fused["units"] > fused["stages"]


@pytest.mark.parametrize("index", range(len(WANTED)), ids=lambda i: f"{i}-{WANTED[i]}")
def test_random_problem(index: int, seed: int, generator: torch.Generator) -> None:
    """As accurate as stock PyTorch, on a problem that no other test has."""
    wanted = WANTED[index]
    rng = random.Random(seed)
    dtype = getattr(torch, wanted.dtype)
    first = None
    while first is None:
        case, setting = draw_problem(rng, wanted)
        operands = _operands(rng, case, generator, dtype)
        first = _late(operands, setting)
    y, ran, setting = first
    print(case, setting)
    _check_what_ran(ran, wanted, case)
    other, _ = simulate(operands, setting, mode="early", order="shuffled", seed=seed)
    assert torch.equal(y.view(torch.int16), other.view(torch.int16))

    drawn = iter([(operands, y)])

    def draw() -> Draw:
        again = _operands(rng, case, generator, dtype)
        given, out = next(drawn, (again, None))
        out = simulate(given, setting)[0] if out is None else out
        return out, exact(given), stock(given)

    assert_accurate_over_draws(draw)


def _compiled_tiles() -> set[tuple[str | int, ...]]:
    """(kernel, numbers of its tile) from the macros of csrc/cuda/config.h."""
    text = (Path(__file__).parents[2] / "csrc" / "cuda" / "config.h").read_text(encoding="utf-8")
    found: set[tuple[str | int, ...]] = set()
    for kernel in ("conv", "fused"):
        macro = re.search(rf"#define R21D_{kernel.upper()}_TILES\(tile\)((?:.*\\\n)*.*)", text)
        assert macro is not None
        for numbers in re.findall(r"tile\(([\d, ]+)\)", macro[1]):
            found.add((kernel, *map(int, numbers.split(","))))
    return found


def test_every_tile_and_depth_is_covered() -> None:
    """Each tile at least five times in each dtype, 200 problems, half of them deep."""
    tiles = collections.Counter(
        (w.dtype, tile)
        for w in WANTED
        for tile in ([w.fused] if w.fused else [w.spatial, w.temporal])
    )
    assert {("fused", *tile) for tile in FUSED_TILES} | {
        ("conv", *tile) for tile in CONV_TILES
    } == _compiled_tiles()
    for dtype in DTYPES:
        for tile in (*FUSED_TILES, *CONV_TILES):
            assert tiles[dtype, tile] >= 5, f"{tile} in {dtype}"
    assert len(WANTED) >= 200
    assert 2 * sum(w.deep for w in WANTED) >= len(WANTED)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("frame", range(7))
def test_nan_stays_in_the_frames_that_see_it(
    frame: int, stride: int, generator: torch.Generator
) -> None:
    """A block that makes several output frames gives each the frames that it sees, no others."""
    case = Case("nan", n=1, c=8, m=16, o=8, size=(7, 4, 5), stride=(stride, 1, 1))
    operands = make_operands(case, generator, torch.float16)
    operands.x[0, 0, frame, 1, 2] = torch.nan
    for bands in (1, 2):
        force = {"pixel_warps": 2, "columns": 48, "bands": bands, "chunk": case.out_size[0]}
        y, _ = simulate(operands, Setting("fused", {"fused": force}))
        assert torch.equal(y.isnan(), exact(operands).isnan())
