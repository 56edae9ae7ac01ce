"""Which backend serves: devices, measurements, what is forced, graphs (about 2 s)."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from r21d.models.layers import LAYERS
from r21d_ops import dispatch
from r21d_ops.backends import BackendError, choose, route_on_gpu
from r21d_ops.dispatch import measurements
from r21d_ops.problem import Problem

H200 = "NVIDIA H200"
EAGER = dispatch.Candidate("eager")
BOTH = (dispatch.Candidate("triton", ("fused", "two")), EAGER)


def _forget() -> None:
    dispatch._route.cache_clear()
    measurements._table.cache_clear()


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts rows in place of the committed measurements; without a call there are none."""

    def write(*rows: dict[str, Any]) -> None:
        path = tmp_path / "measurements.json"
        path.write_text(json.dumps({"schema": 1, "rows": rows}))
        monkeypatch.setattr(measurements, "TABLE", path)
        _forget()

    monkeypatch.delenv("R21D_BACKEND", raising=False)
    monkeypatch.delenv("R21D_INFERENCE", raising=False)
    write()
    yield write
    _forget()


def _problem(
    name: str = "conv2_x", batch: int = 32, dtype: torch.dtype = torch.bfloat16
) -> Problem:
    return LAYERS[name].problem(batch, 16, dtype)


def _row(backend: str, seconds: float, kernels: str = "", **changed: Any) -> dict[str, Any]:
    problem = _problem()
    names = (
        "in_channels",
        "mid_channels",
        "out_channels",
        "size",
        "kernel",
        "stride",
        "padding",
        "batch",
    )
    row = {name: getattr(problem, name) for name in names}
    row |= {"gpu": H200, "arithmetic": "bfloat16", "training": False, "backend": backend}
    row |= {"kernels": kernels, "seconds": seconds, "file": "h200/a.json", "commit": "0123456789ab"}
    return row | changed


def _backend(
    name: str,
    devices: tuple[str, ...] | None,
    missing: str | None = None,
    refusal: str | None = None,
    **more: Any,
) -> ModuleType:
    """A backend without operators."""
    module = ModuleType(name)
    vars(module).update(more)
    vars(module).update(
        NAME=name, DEVICES=devices, unavailable=lambda: missing, can_run=lambda problem: refusal
    )
    return module


def _install(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    # By its name: the package has a function of the same one.
    package = sys.modules["r21d_ops.backends"]
    monkeypatch.setattr(package, "_BACKENDS", {module.NAME: module for module in modules})
    monkeypatch.setattr(package, "_warned", set())


def _fakes(monkeypatch: pytest.MonkeyPatch, **triton: str | None) -> None:
    _install(
        monkeypatch,
        _backend("cpu", ("cpu",), refusal="it serves CPU tensors"),
        _backend("triton", ("cuda",), KERNELS=("fused", "two"), **triton),
        _backend("eager", None),
    )


def test_the_fastest_measured_serves(table: Any) -> None:
    table(_row("triton", 3.0, "fused"), _row("triton", 2.0, "two"), _row("eager", 2.5))
    route = dispatch.route(_problem(), False, H200, BOTH)
    assert route[:4] == ("triton", "two", "measured", 2.0)
    assert all(part in route.detail for part in ("eager 2.5e+03 ms", "h200/a.json at 0123456789"))
    table(_row("triton", 3.0, "fused"), _row("triton", 2.0, "two"), _row("eager", 1.5))
    assert dispatch.route(_problem(), False, H200, BOTH)[:4] == ("eager", "", "measured", 1.5)
    # Which kernels the backend runs when it is forced is a question among its own.
    assert dispatch.inference_kernels("triton", _problem(), H200) == "two"


def test_what_was_not_measured_is_not_chosen_beside_what_was(table: Any) -> None:
    table(_row("triton", 200.0, "two"), _row("eager", 100.0))
    assert dispatch.route(_problem(), False, H200, BOTH)[:3] == ("eager", "", "measured")
    # Of a backend that cannot run here the measurement counts for nothing.
    table(_row("triton", 1.0, "two"), _row("eager", 2.0))
    assert dispatch.route(_problem(), False, H200, (EAGER,))[:3] == ("eager", "", "measured")


@pytest.mark.parametrize(
    "rows",
    [
        [_row("eager", 1e-9)],
        [_row("triton", 1e-9, "two")],
        [_row("triton", 1e-9, "two"), _row("triton", 1e-10, "fused")],
        [_row("triton", 1e-9, "two"), _row("eager", 1e-10, file="h200/b.json")],
        [_row("triton", 1e-9, "two"), _row("eager", 1e-10, batch=8)],
    ],
    ids=["eager alone", "one alone", "without eager", "in two runs", "with two batches"],
)
def test_what_was_not_measured_beside_eager_decides_nothing(
    rows: list[dict[str, Any]], table: Any
) -> None:
    table(*rows)
    route = dispatch.route(_problem(), False, H200, BOTH)
    assert route[:3] == ("triton", "fused", "estimated")


def test_within_a_percent_the_way_with_fewer_kernels_is_taken(table: Any) -> None:
    rows = [_row("eager", 1.0), _row("triton", 1.0, "two")]
    table(*rows, _row("triton", 1.009, "fused"))
    assert dispatch.route(_problem(), False, H200, BOTH)[:4] == (
        "triton", "fused", "measured", 1.009,
    )  # fmt: skip
    table(*rows, _row("triton", 1.011, "fused"))
    assert dispatch.route(_problem(), False, H200, BOTH).kernels == "two"


def test_measurements_of_other_problems_do_not_count(table: Any) -> None:
    table(
        _row("eager", 1e-9, gpu="NVIDIA H100 PCIe"),
        _row("eager", 1e-9, arithmetic="float16"),
        _row("eager", 1e-9, size=(16, 56, 55)),
        _row("eager", 1e-9, padding=(1, 1, 0)),
        _row("eager", 1e-9, training=True),
        _row("triton", 1e-6, training=True),
    )
    route = dispatch.route(_problem(), False, H200, BOTH)
    assert (route.backend, route.source) == ("triton", "estimated")
    assert dispatch.route(_problem(), True, H200, BOTH)[:3] == ("eager", "", "measured")


def test_another_batch_is_scaled_from_the_nearest(table: Any) -> None:
    table(
        _row("eager", 4.0),
        _row("eager", 1.0, batch=2),
        _row("triton", 5.0, "two"),
        _row("triton", 0.5, "two", batch=2),
        # Nearer, but nothing to compare with.
        _row("triton", 9.0, "two", batch=4),
    )
    route = dispatch.route(_problem(batch=4), False, H200, BOTH)
    assert route[:4] == ("triton", "two", "measured", 1.0)
    assert "scaled from 2 clips" in route.detail
    assert dispatch.route(_problem(batch=64), False, H200, BOTH)[:4] == (
        "eager",
        "",
        "measured",
        8.0,
    )
    assert "scaled" not in dispatch.route(_problem(batch=32), False, H200, BOTH).detail


def test_tf32_and_float32_are_measured_apart(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for_both = [("tf32", 1.0), ("float32", 3.0)]
    table(
        *[_row("eager", seconds, arithmetic=name) for name, seconds in for_both],
        *[_row("triton", 2.0, "two", arithmetic=name) for name, _ in for_both],
    )
    problem = _problem(dtype=torch.float32)
    for allowed, expected in ((True, "eager"), (False, "triton")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert dispatch.route(problem, False, H200, BOTH)[:3:2] == (expected, "measured")


@pytest.mark.parametrize("gpu", ["", "A GPU of next year"])
def test_an_unknown_gpu_is_served_by_eager(gpu: str) -> None:
    route = dispatch.route(_problem(), False, gpu, BOTH)
    assert route[:4] == ("eager", "", "default", None)
    assert (gpu or "no GPU") in route.detail
    assert dispatch.inference_kernels("triton", _problem(), gpu) == "fused"
    # Each tile of O would make u again: one kernel where one tile holds all of O.
    wider = _problem()._replace(out_channels=65)
    assert dispatch.inference_kernels("triton", wider, gpu) == "two"


@pytest.mark.parametrize("kernels", ["fused", "two"])
def test_kernels_are_forced(kernels: str, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table(_row("triton", 1.0, "fused"), _row("triton", 1.1, "two"), _row("eager", 1.05))
    monkeypatch.setenv("R21D_INFERENCE", kernels)
    assert dispatch.inference_kernels("triton", _problem(), H200) == kernels
    assert dispatch.inference_kernels("triton", _problem()._replace(device="cpu")) == kernels
    # The choice of the backend counts with them.
    expected = {"fused": "triton", "two": "eager"}[kernels]
    assert dispatch.route(_problem(), False, H200, BOTH).backend == expected


def test_training_does_not_ask_for_the_kernels_of_inference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("R21D_INFERENCE", "three")
    assert dispatch.route(_problem(), True, H200, BOTH).backend == "triton"


@pytest.mark.parametrize("forced", [None, "fused", "two"])
def test_one_kernel_is_not_offered_where_it_sums_too_many_frames(
    forced: str | None, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = _problem()._replace(kernel=(5, 3, 3), padding=(2, 1, 1))
    row = {"kernel": long.kernel, "padding": long.padding}
    table(
        _row("triton", 1.0, "fused", **row),
        _row("triton", 2.0, "two", **row),
        _row("eager", 3.0, **row),
    )
    if forced is not None:
        monkeypatch.setenv("R21D_INFERENCE", forced)
    route = dispatch.route(long, False, H200, BOTH)
    assert route[:4] == ("triton", "two", "measured", 2.0)
    reason = "not fused: 5 output frames see one frame, and one kernel sums at most 4"
    assert (reason in route.detail) == (forced == "fused")
    assert dispatch.inference_kernels("triton", long, H200) == "two"
    assert dispatch.inference_kernels("triton", long, "") == "two"
    # Every other frame: three see one.
    strided = long._replace(stride=(2, 1, 1))
    expected = forced or "fused"
    assert dispatch.inference_kernels("triton", strided, "") == expected


def test_other_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R21D_INFERENCE", "three")
    for call in (
        lambda: dispatch.inference_kernels("triton", _problem(), H200),
        lambda: dispatch.route(_problem(), False, H200, BOTH),
    ):
        with pytest.raises(ValueError, match=r"R21D_INFERENCE must be fused or two, got 'three'"):
            call()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"schema": 7, "rows": []}')
    with pytest.raises(ValueError, match=r"other\.json has schema 7; this version reads 1"):
        measurements.read_table(other)


def test_on_a_gpu_dispatch_decides_and_nobody_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fakes(monkeypatch)
    monkeypatch.setattr(dispatch, "gpu_name", lambda: H200)
    with caplog.at_level(logging.WARNING):
        assert choose(_problem()) == "triton"
        assert choose(_problem("conv5_x")) == "eager"
        assert choose(_problem("conv5_x"), training=True) == "triton"
    # eager is no fall-back there, and cpu was never meant for a GPU.
    assert caplog.records == []
    assert route_on_gpu(_problem(), False, H200, elsewhere=False).kernels == "fused"


def test_a_backend_that_cannot_run_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fakes(monkeypatch, missing="triton is not installed")
    monkeypatch.setattr(dispatch, "gpu_name", lambda: H200)
    with caplog.at_level(logging.WARNING):
        assert [choose(_problem()) for _ in range(2)] == ["eager", "eager"]
    assert [record.getMessage() for record in caplog.records] == [
        "backend 'triton' does not serve this call: triton is not installed"
    ]
    with pytest.raises(BackendError, match="triton is not installed"):
        choose(_problem(), "triton")
    # On the machine that is asked about it may be installed.
    assert route_on_gpu(_problem(), False, H200, elsewhere=True).backend == "triton"
    assert route_on_gpu(_problem(), False, H200, elsewhere=False).backend == "eager"


def test_a_reason_is_told_once_whatever_its_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fakes(monkeypatch)
    triton = sys.modules["r21d_ops.backends"]._BACKENDS["triton"]
    monkeypatch.setattr(
        triton,
        "can_run",
        lambda p: f"{p.dtype} with {p.batch} clips of {'x'.join(map(str, p.size))} is too large",
    )
    with caplog.at_level(logging.WARNING):
        for batch in (2, 30, 400):
            for dtype in (torch.float32, torch.float64):
                size = (batch, batch, 10 * batch)
                choose(_problem()._replace(batch=batch, size=size, dtype=dtype))
    told = [record.getMessage() for record in caplog.records]
    assert [message.partition(": ")[2] for message in told] == [
        "torch.float32 with 2 clips of 2x2x20 is too large",
        "torch.float64 with 2 clips of 2x2x20 is too large",
    ]
    assert len(sys.modules["r21d_ops.backends"]._warned) == 2


def test_a_named_gpu_is_asked_as_the_environment_forces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _fakes(monkeypatch, missing="triton is not installed")
    monkeypatch.setenv("R21D_BACKEND", "eager")
    assert route_on_gpu(_problem(), False, H200, elsewhere=True)[:2] == ("eager", "")
    monkeypatch.setenv("R21D_BACKEND", "triton")
    monkeypatch.setenv("R21D_INFERENCE", "two")
    assert route_on_gpu(_problem(), False, H200, elsewhere=True)[:2] == ("triton", "two")
    with pytest.raises(BackendError, match="'triton' was asked for and cannot run: triton is not"):
        route_on_gpu(_problem(), False, H200, elsewhere=False)
    monkeypatch.setenv("R21D_BACKEND", "cpu")
    with pytest.raises(BackendError, match="'cpu' was asked for and cannot run: it serves CPU"):
        route_on_gpu(_problem(), False, H200, elsewhere=True)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_off_a_gpu_its_backend_serves_only_when_forced(
    device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _install(
        monkeypatch,
        _backend("cpu", ("cpu",)),
        _backend("triton", ("cuda",)),
        _backend("eager", None),
    )
    problem = _problem()._replace(device=device)
    with caplog.at_level(logging.WARNING):
        assert choose(problem) == {"cpu": "cpu", "mps": "eager"}[device]
    assert caplog.records == []
    assert choose(problem, "triton") == "triton"
    monkeypatch.setenv("R21D_BACKEND", "triton")
    assert choose(problem) == "triton"


def test_any_backend_may_have_several_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    abacus = _backend("abacus", None, KERNELS=("fused", "two"))
    _install(monkeypatch, abacus, _backend("eager", None, refusal="not today"))
    assert route_on_gpu(_problem(), False, "", elsewhere=True)[:2] == ("abacus", "fused")
    monkeypatch.setenv("R21D_INFERENCE", "two")
    assert route_on_gpu(_problem(), False, "", elsewhere=True)[:2] == ("abacus", "two")
    monkeypatch.setattr(abacus, "KERNELS", ("fused",))
    assert route_on_gpu(_problem(), False, "", elsewhere=True)[:2] == ("abacus", "fused")


def test_nobody_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, _backend("triton", ("cuda",), refusal="no"))
    with pytest.raises(BackendError, match="no backend can run Problem"):
        choose(_problem())
    with pytest.raises(BackendError, match="no backend can run Problem"):
        route_on_gpu(_problem(), False, H200, elsewhere=False)


def test_the_gpu_is_asked_for_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise AssertionError("the CPU has no GPU's name")

    _fakes(monkeypatch)
    monkeypatch.setattr(dispatch, "gpu_name", refuse)
    assert choose(_problem()._replace(device="cpu")) == "eager"
    assert dispatch.inference_kernels("triton", _problem()._replace(device="cpu")) == "fused"


class _Chosen(nn.Module):
    """Adds the lengths of the chosen names for a problem of x's size that lies on a GPU."""

    def __init__(self, batch: int | None = None) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        problem = Problem(
            "cuda",
            torch.bfloat16,
            x.shape[0] if self.batch is None else self.batch,
            64,
            144,
            64,
            (16, x.shape[1], 56),
            (3, 3, 3),
            (1, 1, 1),
            (1, 1, 1),
        )
        chosen = choose(problem, training=False), dispatch.inference_kernels("triton", problem)
        return x * 0 + len(chosen[0]) + 100 * len(chosen[1])


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_choice_is_a_constant_of_a_compiled_graph(
    dynamic: bool, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(_row("triton", 1.0, "two"), _row("triton", 2.0, "fused"))
    _fakes(monkeypatch)
    monkeypatch.setattr(dispatch, "gpu_name", lambda: H200)
    torch._dynamo.reset()
    graphs = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(_Chosen(), fullgraph=True, dynamic=dynamic, backend=record)
    for batch in (2, 3, 5):
        assert (compiled(torch.randn(batch, 56)) == len("triton") + 100 * len("two")).all()
    if dynamic:
        # A size that is not known yet binds no graph to itself.
        assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_the_choice_is_a_constant_of_an_exported_program(
    strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fakes(monkeypatch)
    monkeypatch.setattr(dispatch, "gpu_name", lambda: H200)
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(
        _Chosen(), (torch.randn(4, 56),), dynamic_shapes=shapes, strict=strict
    )
    assert (program.module()(torch.randn(7, 56)) == len("triton") + 100 * len("fused")).all()


def test_a_size_that_is_not_known_binds_no_traced_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _fakes(monkeypatch)
    monkeypatch.setattr(dispatch, "gpu_name", lambda: H200)
    traced = make_fx(_Chosen(batch=8), tracing_mode="symbolic")(torch.randn(4, 40))
    assert traced.shape_env.guards == []
    assert (traced(torch.randn(4, 50)) == len("triton") + 100 * len("fused")).all()


@pytest.mark.parametrize("strict", [False, True])
def test_a_size_that_is_not_known_is_no_part_of_an_exported_program(
    strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fakes(monkeypatch)
    monkeypatch.setattr(dispatch, "gpu_name", lambda: H200)
    shapes = {"x": {1: torch.export.Dim("rows", min=2, max=64)}}
    program = torch.export.export(
        _Chosen(batch=8), (torch.randn(4, 40),), dynamic_shapes=shapes, strict=strict
    )
    assert (program.module()(torch.randn(4, 50)) == len("triton") + 100 * len("fused")).all()
