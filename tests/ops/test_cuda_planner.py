"""The plan of the CUDA kernels: sums, limits, every tile (about 8 s)."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r21d.models.layers import LAYERS
from r21d_ops import native
from r21d_ops.backends import cuda
from r21d_ops.dispatch.cost import problem_cost
from r21d_ops.dispatch.cuda_plan import Device, cuda_plan
from r21d_ops.dispatch.estimate import GPUS
from r21d_ops.problem import Problem

pytestmark = pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))

_KIB = 1024
H200 = GPUS["NVIDIA H200"].planned
#: A device of each class of shared memory: compute capability 9.0, 8.0, and 8.6 or 8.9.
DEVICES = {
    "sm_90": H200,
    "sm_80": GPUS["NVIDIA A100-SXM4-80GB"].planned,
    "sm_86": Device(84, 99 * _KIB, 100 * _KIB, 120e12, 0.7e12),
    # No such GPU: what a block may have is not what a multiprocessor has.
    "small blocks": H200._replace(shared_block=64 * _KIB),
}
_CHUNK = 8  # values of 16 bytes


def _plan(problem: Problem, device: Device = H200, force: str = "") -> dict[str, Any]:
    plan = cuda_plan(problem, device, force)
    assert plan is not None
    return plan


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _tiles(kind: str) -> list[list[int]]:
    tiles: list[list[int]] = _plan(LAYERS["stem"].problem(1, 8, torch.bfloat16))["tiles"][kind]
    return tiles


def _check(problem: Problem, device: Device, plan: dict[str, Any]) -> None:
    """What holds for every plan."""
    n, c, m, o = problem[2:6]
    (t, ho, wo), (to, _, _) = problem.mid_size, problem.out_size
    kt, kh, kw = problem.kernel
    assert plan["narrow"] == (c < _CHUNK)
    assert plan["channels"] == (c if c < _CHUNK else _up(c, _CHUNK))
    assert plan["packs_x"] == (plan["channels"] != c)
    assert (plan["pack_seconds"] > 0) == (plan["packs_x"] and n > 0)
    assert plan["mid_pitch"] == _up(m, 16)

    spatial, temporal = plan["spatial"], plan["temporal"]
    assert spatial["depth"] == _up(kh * kw * plan["channels"], 8)
    assert temporal["depth"] == kt * plan["mid_pitch"]
    for conv, pixels, columns in (
        (spatial, n * t * ho * wo, plan["mid_pitch"]),
        (temporal, n * to * ho * wo, o),
    ):
        assert [conv["pixel_warps"], conv["columns"]] in plan["tiles"]["conv"]
        assert conv["grid_x"] == math.ceil(pixels / conv["pixels"])
        assert conv["grid_y"] == math.ceil(columns / conv["columns"]) <= 65535
        _check_block(conv, device, conv["grid_x"] * conv["grid_y"])
    # Padding only adds to what the definition asks for.
    cost = problem_cost(problem)
    assert spatial["flops"] >= cost.spatial_flops and temporal["flops"] >= cost.temporal_flops
    assert plan["two_seconds"] == pytest.approx(
        plan["pack_seconds"] + spatial["seconds"] + temporal["seconds"]
    )
    fused = plan["fused"]
    if fused["refusal"] is None:
        _check_fused(problem, device, plan)
    else:
        assert plan["fused_seconds"] is None and plan["kernels"] == "two"
    _check_training(problem, device, plan)


def _check_training(problem: Problem, device: Device, plan: dict[str, Any]) -> None:
    n, c, m, o = problem[2:6]
    (t, h, w), (_, ho, wo), (to, _, _) = problem.size, problem.mid_size, problem.out_size
    (kt, kh, kw), (st, sh, sw) = problem.kernel, problem.stride
    training, cost = plan["training"], problem_cost(problem)
    assert training["refusal"] is None
    names = {"spatial_forward", "temporal_forward", "temporal_gradient", "spatial_gradient",
             "temporal_weight", "spatial_weight"}  # fmt: skip
    assert training.keys() == {"refusal", "seconds", *names}
    rows, cols, frames = min(sh, h), min(sw, w), min(st, t)
    for name, phases, pixels, columns in (
        ("spatial_forward", 1, n * t * ho * wo, plan["mid_pitch"]),
        ("temporal_forward", 1, n * to * ho * wo, o),
        ("temporal_gradient", frames, n * math.ceil(t / frames) * ho * wo, plan["mid_pitch"]),
        ("spatial_gradient", rows * cols, n * t * math.ceil(h / rows) * math.ceil(w / cols), c),
    ):
        conv = training[name]
        assert [conv["pixel_warps"], conv["columns"]] in plan["tiles"]["training"]
        assert conv["phases"] == phases and conv["grid_z"] == phases * conv["parts"] <= 65535
        assert conv["grid_x"] == math.ceil(pixels / conv["pixels"])
        assert conv["grid_y"] == math.ceil(columns / conv["columns"]) <= 65535
        _check_block(conv, device, conv["grid_x"] * conv["grid_y"] * conv["grid_z"])
    for name, sums, outputs, columns in (
        ("temporal_weight", n * to * ho * wo, o, kt * plan["mid_pitch"]),
        ("spatial_weight", n * t * ho * wo, m, kh * kw * plan["channels"]),
    ):
        weight = training[name]
        assert [weight["pixel_warps"], weight["columns"]] in plan["tiles"]["weight"]
        assert weight["grid_x"] == math.ceil(columns / weight["columns"])
        assert weight["grid_y"] == math.ceil(outputs / weight["rows"]) <= 65535
        assert weight["grid_z"] == weight["parts"] <= 65535
        # All pixels, and none of the parts empty.
        assert (weight["parts"] - 1) * weight["part_pixels"] <= max(0, sums - 1)
        assert weight["parts"] * weight["part_pixels"] >= sums
        _check_block(weight, device, weight["grid_x"] * weight["grid_y"] * weight["grid_z"])
    # The gradients at inputs make nothing for outputs that see padding alone.
    for name in names - {"temporal_gradient", "spatial_gradient"}:
        whole = cost.spatial_flops if name.startswith("spatial") else cost.temporal_flops
        assert training[name]["flops"] >= whole * 0.999, name
    assert training["seconds"] == pytest.approx(sum(training[name]["seconds"] for name in names))


def _held(fused: dict[str, Any]) -> int:
    """Bytes of the bands, raw and not."""
    held: int = fused["bands"] * fused["band_bytes"] + fused["raw_bytes"]
    return held


@functools.cache
def _beside_the_bands(warps: int, mids: int, live: int) -> int:
    """Bytes of the ring and of v, which a tile has whatever the problem."""
    problem = _with_live(LAYERS["conv2_x"].problem(1, 8, torch.bfloat16), live)
    force = f"fused.pixel_warps={warps} fused.mids={mids} fused.bands=1"
    fused = _plan(problem, force=force)["fused"]
    assert fused["band_bytes"] > 0
    beside: int = fused["shared_bytes"] - _held(fused)
    assert beside > 32 * warps * mids * 2
    return beside


def _with_live(problem: Problem, live: int) -> Problem:
    """A temporal kernel of 3 with the stride at which ``live`` output frames see one frame."""
    return problem._replace(stride=({3: 1, 2: 2, 1: 3}[live], *problem.stride[1:]))


def _check_fused(problem: Problem, device: Device, plan: dict[str, Any]) -> None:
    n, c, m, o = problem[2:6]
    (_, ho, wo), (to, _, _) = problem.mid_size, problem.out_size
    _, kh, kw = problem.kernel
    fused, pixels = plan["fused"], plan["fused"]["pixels"]
    assert fused["live"] == math.ceil(problem.kernel[0] / problem.stride[0]) <= 3
    tile = [fused[k] for k in ("pixel_warps", "mids", "live")]
    assert tile in plan["tiles"]["fused"]
    assert (fused["chunks"] - 1) * fused["chunk"] < to <= fused["chunks"] * fused["chunk"]
    assert fused["tiles"] == math.ceil(ho * wo / pixels)
    assert (fused["slices"] - 1) * fused["mids"] < m <= fused["slices"] * fused["mids"]
    assert (fused["column_tiles"] - 1) * 64 < o <= fused["column_tiles"] * 64
    grid = [fused[f"grid_{axis}"] for axis in "xyz"]
    assert grid == [n * fused["tiles"], fused["chunks"], fused["column_tiles"]]
    assert max(grid[1:]) <= 65535
    # The rows of output that tiles lie in, each counted.
    rows = max(
        (min(first + pixels, ho * wo) - 1) // wo - first // wo + 1
        for first in range(0, ho * wo, pixels)
    )
    assert (rows - 1) * problem.stride[1] + kh <= fused["band_rows"]
    assert fused["band_cols"] == (wo - 1) * problem.stride[2] + kw
    places = fused["band_rows"] * fused["band_cols"]
    pitch = (fused["band_channels"] // _CHUNK | 1) * 16
    if plan["narrow"]:
        assert fused["depth"] == fused["band_channels"] == _up(kh * kw * c, 16)
        assert fused["band_bytes"] == pixels * pitch
        assert fused["raw_bytes"] == _up(places * c * 2, 16) and fused["bands"] == 1
    else:
        assert fused["band_channels"] == _up(c, 16)
        assert fused["depth"] == kh * kw * fused["band_channels"]
        assert fused["band_bytes"] == places * pitch and fused["raw_bytes"] == 0
    assert fused["shared_bytes"] - _held(fused) == _beside_the_bands(*tile)
    _check_block(fused, device, math.prod(grid))
    assert plan["fused_seconds"] == pytest.approx(plan["pack_seconds"] + fused["seconds"])
    assert plan["kernels"] == ("fused" if plan["fused_seconds"] <= plan["two_seconds"] else "two")


def _check_block(part: dict[str, Any], device: Device, blocks: int) -> None:
    # Two warps side by side share the columns; four where a tile has 192.
    assert part["threads"] == 32 * part["pixel_warps"] * (4 if part.get("columns") == 192 else 2)
    assert part["shared_bytes"] <= device.shared_block
    resident = part["blocks_per_multiprocessor"]
    assert resident >= 1
    assert resident * (part["shared_bytes"] + _KIB) <= device.shared_multiprocessor
    assert resident * part["threads"] * _up(part["registers"], 8) <= 65536
    # The products' and memory's floor; of an empty batch there are no blocks.
    floor = max(part["flops"] / device.flops, part["bytes"] / device.bytes_per_second)
    assert part["seconds"] >= floor * 0.999
    assert (part["flops"] > 0) == (blocks > 0)


@pytest.mark.parametrize("batch", [1, 2, 5, 32, 64])
@pytest.mark.parametrize("frames", [8, 16, 32, 48])
@pytest.mark.parametrize("scale", [1, 2])
def test_every_layer_has_a_plan_on_every_class_of_gpu(scale: int, frames: int, batch: int) -> None:
    """Of the 18 and of the 34 layers, which have the same shapes: 112 and 224 pixels."""
    for device in DEVICES.values():
        for layer in LAYERS.values():
            problem = layer.problem(batch, frames, torch.bfloat16)
            t, h, w = problem.size
            problem = problem._replace(size=(t, scale * h, scale * w))
            plan = _plan(problem, device)
            assert plan["refusal"] is None
            _check(problem, device, plan)
            # Their output sees every frame.
            if plan["fused"]["refusal"] is None:
                assert plan["fused"]["flops"] >= problem_cost(problem).flops


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_can_be_fused_where_shared_memory_is_large(name: str) -> None:
    for device in (DEVICES["sm_90"], DEVICES["sm_80"]):
        assert _plan(LAYERS[name].problem(32, 16, torch.bfloat16), device)["fused_seconds"]


@pytest.mark.parametrize("name", ["stem", "conv2_x", "conv3_x"])
def test_the_layers_with_the_largest_intermediate_can_be_fused_everywhere(name: str) -> None:
    plan = _plan(LAYERS[name].problem(32, 16, torch.bfloat16), DEVICES["sm_86"])
    assert plan["fused"]["refusal"] is None


_TRIPLES = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
_SMALL = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
_SIZES = st.tuples(st.integers(1, 70), st.integers(1, 130), st.integers(1, 130))


@st.composite
def _problems(draw: st.DrawFn) -> Problem:
    kernel = draw(_TRIPLES)
    padding = tuple(draw(st.integers(0, 3)) for _ in range(3))
    lengths = zip(draw(_SIZES), kernel, padding, strict=True)
    size = tuple(max(length, k - 2 * p) for length, k, p in lengths)
    channels = [draw(st.integers(1, 700)) for _ in range(2)]
    inputs = draw(st.one_of(st.integers(1, 20), st.integers(1, 700)))
    batch = draw(st.integers(0, 40))
    problem = Problem(
        "cuda", torch.float16, batch, inputs, channels[0], channels[1], size, kernel,
        draw(_SMALL), padding,
    )  # type: ignore[arg-type]  # fmt: skip
    return problem


@settings(max_examples=300, deadline=None)
@given(problem=_problems(), device=st.sampled_from(sorted(DEVICES)))
def test_any_problem_is_covered(problem: Problem, device: str) -> None:
    plan = _plan(problem, DEVICES[device])
    assert plan["refusal"] is None
    _check(problem, DEVICES[device], plan)
    live = math.ceil(problem.kernel[0] / problem.stride[0])
    refusal = plan["fused"]["refusal"]
    if live > 3:
        assert refusal == f"{live} output frames see one frame; at most 3 are served"
    elif refusal is not None:
        assert f"the GPU gives {DEVICES[device].shared_block}" in refusal


@settings(max_examples=100, deadline=None)
@given(problem=_problems(), chunk=st.integers(1, 80), bands=st.integers(1, 2))
def test_what_is_forced_is_obeyed(problem: Problem, chunk: int, bands: int) -> None:
    free = _plan(problem)
    forced = _plan(problem, force=f"fused.chunk={chunk} fused.bands={bands}")
    _check(problem, H200, forced)
    if forced["fused"]["refusal"] is None:
        assert forced["fused"]["chunk"] == min(chunk, problem.out_size[0])
        assert forced["fused"]["bands"] == bands
        # What is free is at least as fast.
        assert free["fused_seconds"] <= forced["fused_seconds"]
    elif free["fused"]["refusal"] is None and free["narrow"]:
        assert bands == 2 and forced["fused"]["refusal"] == "no tile is what was forced"


def test_every_tile_can_be_forced() -> None:
    problem = LAYERS["conv2_x"].problem(2, 8, torch.bfloat16)
    free = _plan(problem)
    for warps, columns in _tiles("conv"):
        for part in ("spatial", "temporal"):
            force = f"{part}.pixel_warps={warps} {part}.columns={columns}"
            plan = _plan(problem, force=force)
            assert [plan[part][k] for k in ("pixel_warps", "columns")] == [warps, columns]
            _check(problem, H200, plan)
            assert free[part]["seconds"] <= plan[part]["seconds"]
    for warps, mids, live in _tiles("fused"):
        strided = _with_live(problem, live)
        plan = _plan(strided, force=f"fused.pixel_warps={warps} fused.mids={mids}")
        found = [plan["fused"][k] for k in ("pixel_warps", "mids", "live")]
        assert found == [warps, mids, live]
        _check(strided, H200, plan)


def test_a_tile_that_does_not_exist_is_refused() -> None:
    problem = LAYERS["conv2_x"].problem(2, 8, torch.bfloat16)
    plan = _plan(problem, force="fused.mids=96")
    assert plan["fused"]["refusal"] == "no tile is what was forced"
    assert plan["kernels"] == "two"
    refusal = _plan(problem, force="temporal.columns=8")["refusal"]
    assert refusal == "no tile of a convolution is what was forced and fits the GPU"
    for force in ("fused.mids", "mids=48", "fused.mids=0", "fused.mids=48,fused.bands=2x"):
        with pytest.raises(RuntimeError, match="force must name parts of a plan"):
            _plan(problem, force=force)


def test_more_work_takes_no_less_time() -> None:
    for layer in LAYERS.values():
        problem = layer.problem(32, 16, torch.bfloat16)
        before = _plan(problem)
        t, h, w = problem.size
        for larger in (
            problem._replace(batch=64),
            problem._replace(mid_channels=problem.mid_channels + 144),
            problem._replace(out_channels=problem.out_channels + 144),
            problem._replace(size=(2 * t, h, w)),
            problem._replace(size=(t, 2 * h, w)),
        ):
            after = _plan(larger)
            assert after["two_seconds"] > before["two_seconds"]
            if after["fused_seconds"]:
                assert after["fused_seconds"] >= before["fused_seconds"]


def test_few_clips_cut_time_into_chunks() -> None:
    layer = LAYERS["conv2_x"]
    assert _plan(layer.problem(1, 16, torch.bfloat16))["fused"]["chunks"] > 1
    assert _plan(layer.problem(64, 16, torch.bfloat16))["fused"]["chunks"] == 1


_ONE = Problem("cuda", torch.bfloat16, 1, 8, 16, 8, (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0))
_TOO_LARGE = {
    "x": _ONE._replace(batch=2**11, size=(1, 2**10, 2**10)),
    "u": _ONE._replace(batch=2, size=(1, 2**15, 2**15 - 1), padding=(0, 4, 4)),
    "y": _ONE._replace(size=(2, 2**14, 2**14), kernel=(1, 1, 1), padding=(4, 0, 0)),
    # A tile behind the last pixel would have no number.
    "y has 2147483520 pixels;": _ONE._replace(size=(1, 2688, 53261), padding=(7, 0, 0)),
    "a size,": _ONE._replace(stride=(1, 2**28 + 1, 1)),
    "spatial_weight": _ONE._replace(in_channels=2**24, kernel=(1, 16, 16), padding=(0, 8, 8)),
    "temporal_weight": _ONE._replace(
        mid_channels=2**20, kernel=(2**12, 1, 1), padding=(2**11, 0, 0)
    ),
}


@pytest.mark.parametrize("what", _TOO_LARGE)
def test_what_32_bits_do_not_index_is_refused(what: str) -> None:
    refusal = _plan(_TOO_LARGE[what])["refusal"]
    assert refusal.startswith(f"{what} ") and "at most" in refusal
    assert cuda.can_run(_TOO_LARGE[what]) is not None


_LENGTHS = st.one_of(st.integers(1, 2**12), st.integers(2**12, 2**29))


@settings(max_examples=400, deadline=None)
@given(
    numbers=st.tuples(*[_LENGTHS] * 7),
    kernel=_TRIPLES,
    stride=st.tuples(*[st.one_of(st.integers(1, 3), _LENGTHS)] * 3),
    padding=st.tuples(*[st.one_of(st.integers(0, 3), _LENGTHS)] * 3),
)
def test_the_backend_refuses_what_the_library_refuses(
    numbers: tuple[int, ...],
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
) -> None:
    n, c, m, o, t, h, w = numbers
    padded = [size + 2 * p - k for size, p, k in zip((t, h, w), padding, kernel, strict=True)]
    if min(padded) < 0:
        return
    problem = Problem("cuda", torch.float16, n, c, m, o, (t, h, w), kernel, stride, padding)
    plan = _plan(problem)
    refused = plan["refusal"] or plan["training"]["refusal"]
    assert (cuda.can_run(problem) is None) == (refused is None)


def test_the_limit_is_where_it_is_said_to_be() -> None:
    """2^31 - 1 pixels with a clip of a tile behind them, and the row that the last taps reach."""
    rows, cols = 2**10, 2**10 - 1
    most = (2**31 - 1) // cols // rows - 3
    for batch, runs in ((most, True), (most + 1, False)):
        problem = _ONE._replace(batch=batch, size=(1, rows, cols), padding=(0, rows - 2, 0))
        problem = problem._replace(kernel=(1, rows, 1), stride=(1, rows, 1))
        assert (_plan(problem)["refusal"] is None) == runs
        assert (cuda.can_run(problem) is None) == runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: [1] * 6}, "sizes must hold 7 values"),
        ({0: [1, 1, 0, 1, 1, 1, 1]}, "the problem has an empty axis or output"),
        ({0: [1, 1, 1, 1, 1, 1, -1]}, "sizes must be at least 0, got -1"),
        ({1: [3, 3, 3]}, "the problem has an empty axis or output"),
        ({2: [0, 1, 1]}, "stride must be at least 1, got 0"),
        ({3: [0, 0, -1]}, "padding must be at least 0, got -1"),
        ({4: [132, 1, 1, 1]}, "gpu must hold 5 values"),
    ],
)
def test_the_operator_checks_its_arguments(change: dict[int, list[int]], message: str) -> None:
    arguments = [[1] * 7, [1] * 3, [1] * 3, [0] * 3, [132, 232448, 233472, 788000, 4300]]
    torch.ops.r21d.cuda_plan(*arguments)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.r21d.cuda_plan(*arguments)
