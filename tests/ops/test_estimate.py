"""The planner's estimate: the design's model, and what follows where nothing was measured."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from r21d.models.layers import LAYERS
from r21d_ops import dispatch, native
from r21d_ops.dispatch import cuda_plan, estimate, measurements
from r21d_ops.dispatch.cost import problem_cost
from r21d_ops.dispatch.estimate import ASSUMPTIONS, GPUS, estimates
from r21d_ops.problem import Problem

_NATIVE = pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))
H200 = "NVIDIA H200"
BOTH = (dispatch.Candidate("triton", ("fused", "two")), dispatch.Candidate("eager"))
CUDA = dispatch.Candidate("cuda", ("fused", "two"), unproven=True)

# GFLOP; MB of input, intermediate, output; microseconds at 788 TFLOP/s and 4.3 TB/s: arithmetic,
# then bytes of the fused kernel, of two kernels, of eager. R(2+1)D-18, bfloat16, 32x16x112x112.
PRINTED = {
    "stem": (49, 39, 145, 206, 62, 57, 124, 258),
    "conv2_x": (355, 206, 462, 206, 451, 96, 311, 741),
    "conv3_1a": (142, 206, 185, 51, 180, 60, 146, 317),
    "conv3_x": (178, 51, 116, 51, 225, 24, 78, 185),
    "conv4_1a": (71, 51, 46, 13, 90, 15, 37, 80),
    "conv4_x": (89, 13, 29, 13, 113, 7, 20, 47),
    "conv5_1a": (35, 13, 12, 3, 45, 5, 11, 21),
    "conv5_x": (44, 3, 7, 3, 56, 5, 8, 15),
}


@pytest.fixture(autouse=True)
def _nothing_forced_or_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("R21D_INFERENCE", raising=False)
    empty = tmp_path / "measurements.json"
    empty.write_text('{"schema": 1, "rows": []}')
    monkeypatch.setattr(measurements, "TABLE", empty)
    _forget()
    yield
    _forget()


def _forget() -> None:
    dispatch._route.cache_clear()
    measurements._table.cache_clear()


def _problem(
    name: str = "conv2_x", batch: int = 32, dtype: torch.dtype = torch.bfloat16
) -> Problem:
    return LAYERS[name].problem(batch, 16, dtype)


@pytest.mark.parametrize("name", PRINTED)
def test_the_model_is_that_of_the_design(name: str) -> None:
    cost = problem_cost(_problem(name))
    figures = [cost.flops / 1e9, cost.input / 1e6, cost.mid / 1e6, cost.output / 1e6]
    figures.append(cost.flops / 788e12 * 1e6)
    traffic = (cost.fused_bytes, cost.two_kernel_bytes, cost.eager_bytes)
    figures += [moved / 4.3e12 * 1e6 for moved in traffic]
    assert tuple(map(round, figures)) == PRINTED[name]
    gpu = GPUS[H200]
    assert round(gpu.flops["bfloat16"] / 1e12) == 788
    assert round(gpu.bytes_per_second / 1e12, 1) == 4.3


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_an_estimate_keeps_to_the_floor(name: str, training: bool) -> None:
    problem = _problem(name)
    cost, gpu = problem_cost(problem), GPUS[H200]
    passes = 3 if training else 1
    floor = max(
        passes * cost.flops / gpu.flops["bfloat16"], cost.fused_bytes / gpu.bytes_per_second
    )
    found = estimates(problem, training, gpu, "bfloat16")
    assert all(seconds > floor for seconds in found.values())
    ours = {("triton", ""): 1} if training else {("triton", "fused"): 1, ("triton", "two"): 1}
    cuda = {("cuda", ""): 1} if training else {("cuda", "fused"): 1, ("cuda", "two"): 1}
    cuda = {} if native.load_error else cuda
    assert found.keys() == {("eager", ""), *ours, *cuda}


def test_what_is_estimated_on_an_h200() -> None:
    chosen = {name: dispatch.route(_problem(name), False, H200, BOTH) for name in LAYERS}
    assert {route.source for route in chosen.values()} == {"estimated"}
    ways = {name: (route.backend, route.kernels) for name, route in chosen.items()}
    # One kernel where the intermediate is largest and one tile holds all output channels; where
    # arithmetic is everything, cuDNN's is assumed to be faster.
    assert ways["stem"] == ways["conv2_x"] == ("triton", "fused")
    assert ways["conv3_x"] == ("triton", "two")
    assert ways["conv5_x"] == ("eager", "")
    assert dispatch.route(_problem("conv5_x"), True, H200, BOTH).backend == "triton"
    assert "triton two" in chosen["conv5_x"].detail


def test_a_split_of_the_frames_is_charged() -> None:
    """One clip leaves an H200 idle, and more programs compute frames twice."""
    seconds = {batch: _ways_on_h200(_problem(batch=batch)) for batch in (1, 32)}
    assert seconds[32]["fused"] == pytest.approx(seconds[32]["two"], rel=0.01)
    assert seconds[1]["fused"] > 1.3 * seconds[1]["two"]
    assert dispatch.inference_kernels("triton", _problem(batch=1), H200) == "two"


def test_of_equal_estimates_the_first_is_taken() -> None:
    for fused, expected in ((1.005, "fused"), (1.02, "two")):
        seconds = {("triton", "fused"): fused, ("triton", "two"): 1.0}
        way, detail = dispatch._fastest(seconds, list(seconds))
        assert way == ("triton", expected)
        assert ("triton two 1e+03 ms" in detail) == (expected == "fused")


def test_the_fused_kernel_is_charged_for_the_tile_it_has() -> None:
    fused = pytest.importorskip("r21d_ops.triton.fused", exc_type=ImportError)
    for dtype in (torch.bfloat16, torch.float32):
        tile = fused.tiles(dtype)[0]
        assert estimate._FUSED_TILE[dtype.itemsize] == (tile.pixels, tile.columns)


def test_nothing_assumed_is_called_measured() -> None:
    assert "0.80" in ASSUMPTIONS and "0.90" in ASSUMPTIONS
    assert f"Triton {estimate._TRITON}" in ASSUMPTIONS and f"{estimate._CUDNN}" in ASSUMPTIONS
    assert f"CUDA kernels {estimate._CUDA}" in ASSUMPTIONS


@_NATIVE
def test_the_cuda_kernels_are_estimated_by_their_planner() -> None:
    gpu = GPUS[H200]
    plan = cuda_plan.cuda_plan(_problem(), gpu.planned)
    assert plan is not None and plan["product_share"] == estimate._CUDA
    found = estimates(_problem(), False, gpu, "bfloat16")
    assert found["cuda", "fused"] == plan["fused_seconds"]
    assert found["cuda", "two"] == plan["two_seconds"]
    step = estimates(_problem(), True, gpu, "bfloat16")["cuda", ""]
    assert step == plan["training"]["seconds"] > 2 * plan["two_seconds"]
    # What they do not serve.
    for training, kind in ((True, "float32"), (False, "float32"), (False, "tf32")):
        assert not any(way[0] == "cuda" for way in estimates(_problem(), training, gpu, kind))


@_NATIVE
def test_the_ways_of_the_cuda_kernels_are_chosen_by_estimate() -> None:
    route = dispatch.route(_problem(), False, H200, (CUDA,))
    assert route[:3] == ("cuda", "fused", "estimated")
    slower = dispatch.route(_problem(batch=1), False, H200, (CUDA,))
    assert slower.kernels == dispatch.inference_kernels("cuda", _problem(batch=1), H200) == "two"
    # Were it proven, the least estimate beside others.
    proven = dispatch.route(_problem(), False, H200, (CUDA._replace(unproven=False), *BOTH))
    found = estimates(_problem(), False, GPUS[H200], "bfloat16")
    assert proven.seconds == found[proven[:2]] == pytest.approx(min(found.values()), rel=0.01)


@_NATIVE
@pytest.mark.parametrize("gpu", GPUS)
def test_what_is_unproven_is_chosen_by_measurements_alone(
    gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = (CUDA, *BOTH)
    problems = [_random_problem(random.Random(seed)) for seed in range(100)]
    for problem in problems:
        # The others' choice is what it would be without it; its estimate is still told.
        route, without = (dispatch.route(problem, False, gpu, c) for c in (everybody, BOTH))
        assert route[:4] == without[:4] and route.backend != "cuda"
        assert "cuda" in route.detail
    # Unknown arithmetic and unknown GPUs prefer it no more.
    double = problems[0]._replace(dtype=torch.float64)
    assert dispatch.route(double, False, gpu, everybody[:2]).backend == "triton"
    assert dispatch.route(problems[0], False, "Abacus 3", everybody[:2]).backend == "triton"
    rows = [
        _measured(problem, gpu, *way)
        for problem in problems
        for way in (("cuda", "two", 1.0), ("triton", "two", 2.0), ("eager", "", 3.0))
    ]
    measurements.TABLE.write_text(json.dumps({"schema": 1, "rows": rows}))
    _forget()
    for problem in problems:
        assert dispatch.route(problem, False, gpu, everybody)[:3] == ("cuda", "two", "measured")


@_NATIVE
def test_an_estimate_that_is_passed_over_is_told() -> None:
    """A problem on which the CUDA kernels' estimate is the least on an A100."""
    small = Problem(
        "cuda", torch.float16, 4, 64, 16, 16, (64, 112, 112), (1, 1, 1), (3, 2, 2), (0, 0, 0)
    )
    gpu = "NVIDIA A100-SXM4-80GB"
    found = estimates(small, False, GPUS[gpu], "float16")
    assert min(found, key=found.__getitem__)[0] == "cuda"
    route = dispatch.route(small, False, gpu, (CUDA, *BOTH))
    assert route.backend != "cuda"
    assert route.detail.endswith("; without measurements cuda is not chosen")


def _random_problem(draw: random.Random) -> Problem:
    frames, side = draw.choice([1, 2, 4, 8, 16, 32, 64]), draw.choice([7, 14, 28, 56, 112, 224])
    d, t = draw.choice([1, 3, 5, 7]), draw.choice([1, 3, 5, 7])
    return Problem(
        "cuda",
        draw.choice([torch.bfloat16, torch.float16]),
        draw.choice([1, 2, 4, 8, 32]),
        draw.choice([3, 8, 32, 64, 128, 512]),
        draw.choice([16, 45, 144, 288, 1152]),
        draw.choice([8, 16, 64, 128, 512]),
        (frames, side, side),
        (t, d, d),
        (draw.choice([1, 2, 3]), *[draw.choice([1, 2, 3])] * 2),
        (t // 2, d // 2, d // 2),
    )


def _measured(
    problem: Problem, gpu: str, backend: str, kernels: str, seconds: float
) -> dict[str, Any]:
    row = problem._asdict() | {"gpu": gpu, "training": False, "backend": backend}
    row["arithmetic"] = str(row.pop("dtype")).removeprefix("torch.")
    return row | {"kernels": kernels, "seconds": seconds, "file": "a.json", "commit": "0123456789"}


@_NATIVE
def test_what_the_planner_refuses_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four output frames see one frame: one CUDA kernel sums three, Triton's four."""
    long = _problem()._replace(kernel=(4, 3, 3))
    assert dispatch.inference_kernels("cuda", long, H200) == "two"
    found = estimates(long, False, GPUS[H200], "bfloat16")
    assert ("cuda", "fused") not in found and ("triton", "fused") in found
    monkeypatch.setenv("R21D_INFERENCE", "fused")
    candidates = (dispatch.Candidate("cuda", ("fused", "two")),)
    route = dispatch.route(long, False, H200, candidates)
    assert route.kernels == "two"
    reason = "not fused: 4 output frames see one frame, and one kernel sums at most 3"
    assert reason in route.detail
    assert dispatch.inference_kernels("cuda", long, "A GPU of next year") == "two"


@_NATIVE
def test_the_limit_on_live_frames_is_the_planners() -> None:
    most = cuda_plan.MOST_LIVE
    for frames in (most, most + 1):
        problem = _problem()._replace(kernel=(frames, 3, 3))
        plan = cuda_plan.cuda_plan(problem, GPUS[H200].planned)
        assert plan is not None and bool(plan["fused"]["refusal"]) == (frames > most)


def test_where_nothing_is_known_the_library_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    # An H200 could not run it in one kernel; of others only their library knows.
    wide = _problem()._replace(size=(4, 32, 1500))
    for problem in (_problem(), wide):
        assert dispatch.inference_kernels("cuda", problem, "A GPU of next year") == ""
        for kernels in ("fused", "two"):
            with monkeypatch.context() as forced:
                forced.setenv("R21D_INFERENCE", kernels)
                found = dispatch.inference_kernels("cuda", problem, "A GPU of next year")
                assert found == kernels


def _ways_on_h200(problem: Problem) -> dict[str, float]:
    found = estimates(problem, False, GPUS[H200], "bfloat16")
    return {kernels: s for (backend, kernels), s in found.items() if backend == "triton"}


def test_the_model_has_no_rate_for_float64() -> None:
    route = dispatch.route(_problem(dtype=torch.float64), False, H200, BOTH)
    assert route[:3] == ("eager", "", "default") and "float64" in route.detail


def test_an_empty_batch_has_a_route() -> None:
    assert dispatch.route(_problem(batch=0), False, H200, BOTH).source == "estimated"
