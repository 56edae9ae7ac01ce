"""The planner's estimate: the design's model, and what follows where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
    cuda = {} if training or native.load_error else {("cuda", "fused"): 1, ("cuda", "two"): 1}
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
        way, detail = dispatch._fastest({("triton", "fused"): fused, ("triton", "two"): 1.0})
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
    # What they do not serve.
    for training, kind in ((True, "bfloat16"), (False, "float32"), (False, "tf32")):
        assert not any(way[0] == "cuda" for way in estimates(_problem(), training, gpu, kind))


@_NATIVE
def test_the_cuda_kernels_are_chosen_by_estimate() -> None:
    cuda = dispatch.Candidate("cuda", ("fused", "two"))
    route = dispatch.route(_problem(), False, H200, (cuda,))
    assert route[:3] == ("cuda", "fused", "estimated")
    slower = dispatch.route(_problem(batch=1), False, H200, (cuda,))
    assert slower.kernels == dispatch.inference_kernels("cuda", _problem(batch=1), H200) == "two"
    # Beside others, the least estimate.
    listed = dispatch.route(_problem(), False, H200, (cuda, *BOTH))
    found = estimates(_problem(), False, GPUS[H200], "bfloat16")
    assert listed.seconds == found[listed[:2]] == pytest.approx(min(found.values()), rel=0.01)


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
    assert "not fused: 4 output frames see one frame; at most 3 are served" in route.detail
    assert dispatch.inference_kernels("cuda", long, "A GPU of next year") == "two"


def test_where_nothing_is_known_the_library_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.inference_kernels("cuda", _problem(), "A GPU of next year") == ""
    monkeypatch.setenv("R21D_INFERENCE", "two")
    assert dispatch.inference_kernels("cuda", _problem(), "A GPU of next year") == "two"


def _ways_on_h200(problem: Problem) -> dict[str, float]:
    found = estimates(problem, False, GPUS[H200], "bfloat16")
    return {kernels: s for (backend, kernels), s in found.items() if backend == "triton"}


def test_the_model_has_no_rate_for_float64() -> None:
    route = dispatch.route(_problem(dtype=torch.float64), False, H200, BOTH)
    assert route[:3] == ("eager", "", "default") and "float64" in route.detail


def test_an_empty_batch_has_a_route() -> None:
    assert dispatch.route(_problem(batch=0), False, H200, BOTH).source == "estimated"
