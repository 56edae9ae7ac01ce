"""The CUDA training kernels in the simulator: every tile, random problems, early and late (about
60 s). Values of whole steps: tests/ops/test_training.py.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from ops.problems import Case
from simt import training
from simt.random_problems import DTYPES, TRAINING_TILES, WEIGHT_TILES
from simt.training import KERNELS, Forced, mid, tiles_of
from simt.training_steps import Inputs, Results, assert_step_accurate, real_channels, run_step
from torch import Tensor

from r21d_ops.backends import cuda, eager

#: Every tile of every kernel, each with the others' taken in turn; in each dtype.
WANTED = [
    (dtype, index, (1, 3)[index // len(TRAINING_TILES) % 2])
    for dtype in DTYPES
    for index in range(4 * len(TRAINING_TILES))
]

#: Multiply-adds that a step may take.
_BUDGET = 1.2e7


def _draw(rng: random.Random) -> Case:
    """A small problem with odd sizes."""
    while True:
        case = Case(
            "random",
            n=rng.choice((1, 1, 2, 3)),
            c=rng.choice((1, 2, 3, 5, 7, 8, 12, 16, 24, 33)),
            m=rng.choice((rng.randint(1, 40), rng.randint(41, 170))),
            o=rng.choice((rng.randint(1, 90), rng.choice((8, 16, 64, 72)))),
            size=(rng.randint(1, 6), rng.randint(1, 14), rng.randint(1, 14)),
            kernel=tuple(rng.choice((1, 2, 3, 3, 3, 5)) for _ in range(3)),
            stride=tuple(rng.choice((1, 1, 2, 3)) for _ in range(3)),
            padding=tuple(rng.randint(0, 3) for _ in range(3)),
        )
        if min(case.out_size) < 1:
            continue
        (t, h, w), (kt, kh, kw) = case.out_size, case.kernel
        pixels = case.n * h * w
        spatial = pixels * case.size[0] * case.m * case.c * kh * kw
        temporal = pixels * t * case.m * case.o * kt
        if 3 * (spatial + temporal) <= _BUDGET and pixels * case.size[0] > 1:
            return case


@pytest.mark.parametrize("index", range(len(WANTED)), ids=lambda i: "-".join(map(str, WANTED[i])))
def test_random_problem(index: int, seed: int, generator: torch.Generator) -> None:
    """Each operator as accurate as stock PyTorch's, on a problem that no other test has."""
    name, choice, parts = WANTED[index]
    dtype = getattr(torch, name)
    rng = random.Random(seed)
    case = _draw(rng)
    force = tiles_of(choice, parts)
    print(case, force)

    def ours(inputs: Inputs) -> Results:
        found = run_step(inputs, force)
        if not compared:
            compared.append(True)
            other = run_step(inputs, force, mode="early", order="shuffled", seed=seed)
            for key, value in found.items():
                assert torch.equal(value, other[key]), f"{key} differs early and late"
        return found

    compared: list[bool] = []
    assert_step_accurate(case, dtype, rng, generator, ours)


@pytest.mark.parametrize("index", [8, 9, 10])
def test_weights_of_several_tiles(index: int, generator: torch.Generator) -> None:
    """Both weights' gradients in two rows of tiles and more columns, some of them full."""
    case = Case("large", n=1, c=24, m=150, o=150, size=(3, 5, 7))
    force = tiles_of(index, 3)
    assert len({force[name]["columns"] for name in ("temporal_weight", "spatial_weight")}) == 1
    assert_step_accurate(
        case,
        torch.bfloat16,
        random.Random(index),
        generator,
        lambda inputs: run_step(inputs, force),
    )


def _compiled_tiles(macro: str) -> set[tuple[int, ...]]:
    text = (Path(__file__).parents[2] / "csrc" / "cuda" / "config.h").read_text(encoding="utf-8")
    found = re.search(rf"#define {macro}\(tile\)((?:.*\\\n)*.*)", text)
    assert found is not None
    return {
        tuple(map(int, numbers.split(",")))
        for numbers in re.findall(r"tile\(([\d, ]+)\)", found[1])
    }


def test_every_tile_is_covered() -> None:
    """Each tile of each kernel, whole and in parts, in each dtype."""
    assert _compiled_tiles("R21D_TRAINING_TILES") == set(TRAINING_TILES)
    assert _compiled_tiles("R21D_WEIGHT_TILES") == set(WEIGHT_TILES)
    covered = {
        (dtype, parts, name, *force.values())
        for dtype, index, parts in WANTED
        for name, force in tiles_of(index, parts).items()
    }
    for dtype in DTYPES:
        for parts in (1, 3):
            for name in KERNELS:
                tiles = WEIGHT_TILES if name.endswith("weight") else TRAINING_TILES
                for tile in tiles:
                    assert (dtype, parts, name, *tile, parts) in covered


def _inputs(case: Case, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    return Inputs(case, random.Random(1), generator, dtype)


@pytest.mark.parametrize("what", ["y: y", "back: temporal weight", "norm, u", "norm, back: g",
                                  "to x: x", "norm, to x: spatial weight"])  # fmt: skip
def test_padding_comes_after_the_prologue(what: str, generator: torch.Generator) -> None:
    """A shift that makes relu(shift), or the gradient of a zero u, a thousand times its values."""
    case = Case("padded", n=1, c=8, m=20, o=12, size=(3, 5, 4), padding=(2, 2, 2))
    inputs = _inputs(case, generator, torch.bfloat16)
    for shift in (inputs.of_x[1], inputs.of_u[1], inputs.at_u[2], inputs.at_y[2]):
        shift.fill_(1000.0)
    found = real_channels(run_step(inputs, {}), case.m)
    exact, stock = inputs.wide().results(eager), inputs.results(eager)
    assert_accurate(found[what], exact[what], stock[what], what)


@pytest.mark.parametrize("what", ["u", "y"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_far_from_zero(dtype: str, what: str, generator: torch.Generator) -> None:
    """Mean 1e3 with variance 1: statistics of u and y as stored, within twice stock's error."""
    kind = getattr(torch, dtype)
    channels, outputs, size = 8, 24, (4, 3, 17, 19)
    x = torch.zeros(size[0], channels, *size[1:])
    x[:, 0] = 1000.0
    x[:, 1:] = torch.randn(size[0], channels - 1, *size[1:], generator=generator)
    weight = torch.randn(outputs, channels, 1, 1, 1, generator=generator) / (channels - 1) ** 0.5
    weight[:, 0] = 1.0
    arguments = (weight.to(kind), (1, 1, 1), (0, 0, 0), True)
    if what == "u":
        stored, mean, m2 = cuda.spatial_forward(x.to(kind), *arguments)
    else:
        x[:, 1:] *= 2  # ReLU takes a half
        norm = torch.ones(channels), torch.zeros(channels)
        stored, mean, m2 = cuda.temporal_forward(mid(x.to(kind)), *norm, *arguments)
    stored = stored[:, :outputs]
    values = stored.double()
    variance, centre = torch.var_mean(values, (0, 2, 3, 4), correction=0)
    count = values.numel() // outputs
    # Stock BatchNorm's, of the same values.
    stock = torch.nn.BatchNorm3d(outputs, momentum=1.0)
    stock(stored)
    assert stock.running_mean is not None and stock.running_var is not None
    assert_accurate(mean, centre, stock.running_mean, "mean")
    assert_accurate(m2 / count, variance, stock.running_var * ((count - 1) / count), "variance")
    assert centre.min() > 900 and variance.min() > 0.01 and variance.max() < 10


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["grad", "g", "u", "x", "y", "residual"])
def test_nan_and_infinity_propagate(name: str, value: float, generator: torch.Generator) -> None:
    """GradScaler looks for them in the gradients of parameters."""
    case = Case("special", n=1, c=8, m=24, o=16, size=(3, 6, 5))
    inputs = _inputs(case, generator, torch.float16)
    getattr(inputs, name)[0, 3, 1, 2, 2] = value
    found = real_channels(run_step(inputs, {}), case.m)
    reached = 0
    for key, wanted in inputs.wide().results(eager).items():
        # Of values with an infinity a mean of NaN is as good as an infinite one.
        assert torch.equal(wanted.isfinite(), found[key].isfinite()), f"{key}: {value} of {name}"
        reached += int((~wanted.isfinite()).sum())
    assert reached > 0


@pytest.mark.parametrize("where", ["u", "y"])
def test_frozen_statistics_read_nothing(where: str, generator: torch.Generator) -> None:
    """Without the second factor the gradient is scaled, whatever u or y holds."""
    case = Case("frozen", n=1, c=8, m=24, o=16, size=(2, 6, 5), stride=(1, 2, 1))
    inputs = _inputs(case, generator, torch.bfloat16)
    geometry = (case.stride, case.padding)

    def results(ops: Any, given: Inputs, held: Any) -> Any:
        nan = torch.full_like
        if where == "u":
            u = nan(held(given.u), torch.nan) if ops is cuda else given.u
            arguments = (held(given.g), u, given.x, given.spatial, given.at_u[0], None, None)
            return ops.spatial_backward(*arguments, *geometry, True, True)[:2]
        y = nan(given.y, torch.nan) if ops is cuda else given.y
        norm = eager.NormGradient(y, given.at_y[0], None, None)
        arguments = (given.grad, held(given.u), *given.of_u, given.temporal, *geometry)
        return ops.temporal_backward(*arguments, True, norm)

    ours = results(cuda, inputs, mid)
    exact, stock = results(eager, inputs.wide(), lambda t: t), results(eager, inputs, lambda t: t)
    for found, reference, theirs in zip(ours, exact, stock, strict=True):
        found = found[:, : case.m] if found.shape != reference.shape else found
        assert_accurate(found, reference, theirs)


def test_many_tiles_are_merged_in_turns(generator: torch.Generator) -> None:
    """More tiles than one merge takes: 129 rows of sums, the last of one pixel."""
    case = Case("long", n=1, c=8, m=9, o=8, size=(1, 1, 64 * 128 + 1), kernel=(1, 1, 1),
                padding=(0, 0, 0))  # fmt: skip
    inputs = _inputs(case, generator, torch.bfloat16)
    force = {name: {"pixel_warps": 2, "columns": 64} for name in KERNELS}
    with Forced(force):
        cuda.spatial_forward(inputs.x, inputs.spatial, case.stride, case.padding, True)
    assert training.last["spatial_forward"]["entries"] == 129
    assert training.last["launched"].count("merge") == 2
    found = run_step(inputs, force)
    exact, stock = inputs.wide().results(eager), inputs.results(eager)
    for key in exact:
        if key.split(" ")[-1] in ("mean", "m2", "normalized") or key.endswith("sum of g"):
            assert_accurate(found[key], exact[key], stock[key], key)


@pytest.mark.parametrize("parts", [1, 3])
def test_one_gradient_alone(parts: int, generator: torch.Generator) -> None:
    """What is not wanted is not computed, and the rest is the same to the bit."""
    case = Case("alone", n=1, c=8, m=24, o=16, size=(3, 6, 5))
    inputs = _inputs(case, generator, torch.bfloat16)
    geometry = (case.stride, case.padding)
    spatial = (mid(inputs.g), mid(inputs.u), inputs.x, inputs.spatial, *inputs.at_u, *geometry)
    temporal = (inputs.grad, mid(inputs.u), *inputs.of_u, inputs.temporal, *geometry)
    with Forced(tiles_of(0, parts)):
        both = cuda.spatial_backward(*spatial, True, True)
        launches = len(training.last["launched"])
        of_x = cuda.spatial_backward(*spatial, True, False)
        assert len(training.last["launched"]) < launches
        of_weight = cuda.spatial_backward(*spatial, False, True)
        assert len(training.last["launched"]) < launches
        whole = cuda.temporal_backward(*temporal, True)
        without = cuda.temporal_backward(*temporal, False)
    assert of_x[1] is None and of_weight[0] is None and without[1] is None
    assert torch.equal(_there(of_x[0]), _there(both[0]))
    assert torch.equal(_there(of_weight[1]), _there(both[1]))
    for place in (0, 2, 3):
        assert torch.equal(_there(whole[place]), _there(without[place]))


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def test_recomputed_u_is_the_same(generator: torch.Generator) -> None:
    case = Case("again", n=1, c=8, m=24, o=16, size=(3, 6, 5))
    inputs = _inputs(case, generator, torch.bfloat16)
    arguments = (inputs.x, inputs.spatial, case.stride, case.padding)
    u, _, _ = cuda.spatial_forward(*arguments, True)
    again, mean, _ = cuda.spatial_forward(*arguments, False)
    assert torch.equal(u, again) and mean.numel() == 0
