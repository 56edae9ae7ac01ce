"""The ``cuda`` backend where there is no GPU: why it cannot run, what it refuses (about 3 s)."""

from __future__ import annotations

import functools
import logging
import re
import sys
from typing import Any

import pytest
import torch
from ops.problems import case_named, make_operands
from torch import Tensor, nn
from torch.export import Dim, export

import r21d_ops
from r21d.models.layers import LAYERS
from r21d_ops import dispatch, native
from r21d_ops.backends import BackendError, choose, cpu, cuda, route_on_gpu, triton
from r21d_ops.problem import Problem

_NATIVE = pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))
_GPU = {"name": "NVIDIA H200", "capability": "9.0", "memory": 1, "runs": True}


def _problem(**changed: Any) -> Problem:
    return LAYERS["conv2_x"].problem(2, 16, torch.bfloat16)._replace(**changed)


def _machine(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any] | None) -> None:
    """A machine whose native library reports ``info``, beside a torch with CUDA."""
    monkeypatch.setattr(native, "load_error", None)
    _report(monkeypatch, info)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    # What the real machine said is forgotten, and what this one says not remembered.
    monkeypatch.setattr(cuda, "_unavailable", functools.cache(cuda._unavailable.__wrapped__))
    monkeypatch.setattr(cuda, "_torch_finds_a_gpu", torch.cuda.is_available)
    # By its name: the package has a function of the same one.
    monkeypatch.setattr(sys.modules["r21d_ops.backends"], "_warned", set())
    monkeypatch.setattr(dispatch, "gpu_name", lambda: "NVIDIA H200")
    for variable in ("R21D_BACKEND", "R21D_INFERENCE"):
        monkeypatch.delenv(variable, raising=False)


def _report(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any] | None) -> list[int]:
    """Lets the library report ``info`` of all devices; returns the indices that it is asked for."""
    asked: list[int] = []

    def cuda_info(device: int = -1) -> dict[str, Any] | None:
        asked.append(device)
        if info is None or device < 0:
            return info
        return info | {"devices": info["devices"][device : device + 1]}

    monkeypatch.setattr(native, "cuda_info", cuda_info)
    return asked


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (None, "the native library is built without CUDA; where nvcc is on PATH, `R21D_CUDA=1 "),
        ({"driver": None, "devices": []}, "no NVIDIA driver is found"),
        ({"driver": "13.0", "devices": []}, "no CUDA device is available"),
        (
            {"driver": "13.0", "devices": [_GPU | {"name": "Tesla T4", "capability": "7.5"}]},
            "the Tesla T4 has compute capability 7.5; it needs 8.0",
        ),
        ({"driver": "13.0", "devices": [None]}, "the driver tells nothing about CUDA device 0"),
        (
            {"driver": "12.1", "devices": [_GPU | {"runs": False}]},
            "this build of the native library holds no code that the NVIDIA H200 (compute "
            "capability 9.0) with this driver can run",
        ),
    ],
    ids=["without CUDA", "no driver", "no device", "old", "silent", "no code"],
)
def test_it_says_why_it_cannot_run(
    info: dict[str, Any] | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _machine(monkeypatch, info)
    (row,) = (row for row in r21d_ops.backends() if row.name == "cuda")
    assert not row.available and row.reason.startswith(reason)
    with pytest.raises(BackendError, match="backend 'cuda' was asked for and cannot run: "):
        choose(_problem(), "cuda")
    # Another one serves, and the reason is told once.
    with caplog.at_level(logging.WARNING, logger="r21d_ops"):
        assert {choose(_problem()) for _ in range(2)} <= {"triton", "eager"}
    told = [r.getMessage() for r in caplog.records if "'cuda'" in r.getMessage()]
    assert told == [f"backend 'cuda' does not serve this call: {row.reason}"]


def test_it_needs_a_torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, {"driver": "13.0", "devices": [_GPU]})
    assert cuda.unavailable() is None
    cuda._unavailable.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.unavailable() == f"this torch, {torch.__version__}, is built without CUDA"


def test_it_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, None)
    monkeypatch.setattr(native, "load_error", "it is not built")
    assert cuda.unavailable() == "it is not built"


def test_each_device_is_asked_once_when_it_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, None)
    old = _GPU | {"name": "Tesla T4", "capability": "7.5"}
    asked = _report(monkeypatch, {"driver": "13.0", "devices": [_GPU, None, old]})
    for _ in range(2):
        for device, reason in enumerate((None, "tells nothing about CUDA device 1", "Tesla T4")):
            monkeypatch.setattr(torch.cuda, "current_device", lambda device=device: device)
            found = cuda.unavailable()
            assert found is None if reason is None else reason in str(found)
    assert asked == [0, 1, 2]


def test_without_a_device_none_is_made_current(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise AssertionError("torch would raise")

    _machine(monkeypatch, {"driver": "13.0", "devices": [_GPU]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda, "_torch_finds_a_gpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", refuse)
    assert cuda.unavailable() == "no CUDA device is available"


@_NATIVE
def test_the_library_tells_about_cuda() -> None:
    info = native.cuda_info()
    assert info == native.build_info()["cuda"]
    assert info is None or info.keys() == {"toolkit", "driver", "devices"}


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (_problem(device="cpu"), "it serves CUDA tensors, not cpu"),
        (_problem(dtype=torch.float32), "it serves bfloat16 and float16, not torch.float32"),
        (_problem(dtype=torch.float64), "it serves bfloat16 and float16, not torch.float64"),
        (
            _problem(batch=50000),
            "x has 2508800000 pixels; at most 2147483519 are served",
        ),
    ],
    ids=["device", "float32", "float64", "size"],
)
def test_what_it_does_not_serve(
    problem: Problem, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _machine(monkeypatch, {"driver": "13.0", "devices": [_GPU]})
    assert cuda.can_run(problem) == reason
    with pytest.raises(BackendError, match=re.escape(f"asked for and cannot run: {reason}")):
        choose(problem, "cuda")
    assert choose(problem) != "cuda"
    for dtype in (torch.bfloat16, torch.float16):
        assert cuda.can_run(_problem(dtype=dtype)) is None


def test_no_estimate_puts_it_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was never seen at work: by name, or by measurements, it serves inference and training."""
    _machine(monkeypatch, {"driver": "13.0", "devices": [_GPU]})
    for training in (False, True):
        assert choose(_problem(), "cuda", training=training) == "cuda"
        route = route_on_gpu(_problem(), training, "NVIDIA H200", elsewhere=True)
        assert route.backend != "cuda"
    monkeypatch.setenv("R21D_BACKEND", "cuda")
    for training in (False, True):
        forced = route_on_gpu(_problem(), training, "NVIDIA H200", elsewhere=True)
        assert forced.backend == "cuda"


@_NATIVE
@pytest.mark.parametrize("forced", ["", "fused", "two"])
def test_the_operator_is_told_which_kernels(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's implementation of the same operator has one way."""
    operands = make_operands(case_named("mixed"), torch.default_generator, torch.bfloat16)
    x, spatial, temporal = operands.tensors()
    ones, zeros = torch.ones(spatial.shape[0]), torch.zeros(spatial.shape[0])
    keywords = operands.keywords()
    arguments = (x, spatial, temporal, ones, zeros, None, None, None, True)
    geometry = (keywords["stride"], keywords["padding"])
    monkeypatch.setenv("R21D_INFERENCE", forced)
    if forced == "two":
        with pytest.raises(RuntimeError, match="the CPU has one way"):
            cuda.inference(*arguments, *geometry)
    else:
        found = cuda.inference(*arguments, *geometry)
        assert torch.equal(found, cpu.inference(*arguments, *geometry))


class _Chosen(nn.Module):
    """Adds the lengths of the chosen names for a problem of x's size that lies on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        problem = _problem()._replace(batch=x.shape[0], size=(16, x.shape[1], 56))
        kernels = dispatch.inference_kernels("cuda", problem)
        return x * 0 + len(choose(problem, "cuda")) + 100 * len(kernels)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_limits_bound_no_exported_size(
    name: str, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    monkeypatch.setattr(triton, "INTERPRETED", False)
    sizes = ({0: Dim("b"), 1: Dim("h")},)
    model = _Served(name)
    program = export(model, (torch.ones(4, 56),), dynamic_shapes=sizes, strict=strict)
    assert (program.module()(torch.ones(5, 48)) == len(name)).all()
    # What is known to be too much is refused.
    model.frames = 2**31
    with pytest.raises(Exception, match="asked for and cannot run: "):
        export(model, (torch.ones(4, 56),), dynamic_shapes=sizes, strict=strict)


class _Served(nn.Module):
    """The length of the name of the backend that serves clips of x's size on a GPU."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend, self.frames = backend, 16

    def forward(self, x: Tensor) -> Tensor:
        problem = _problem()._replace(batch=x.shape[0], size=(self.frames, x.shape[1], 56))
        return x * 0 + len(choose(problem, self.backend))


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_too_many_frames_are_known_while_sizes_are_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setenv("R21D_INFERENCE", "fused")

    for frames, expected in ((3, "fused"), (7, "two")):
        torch._dynamo.reset()
        model = _Kernels(name, frames)
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
        assert (compiled(torch.ones(5)) == len(expected)).all()
    torch._dynamo.reset()


class _Kernels(nn.Module):
    """The length of the name of the kernels that serve x's length of clips and a long kernel."""

    def __init__(self, backend: str, frames: int) -> None:
        super().__init__()
        self.backend, self.frames = backend, frames

    def forward(self, x: Tensor) -> Tensor:
        kernel, padding = (self.frames, 3, 3), (self.frames // 2, 1, 1)
        problem = _problem(kernel=kernel, padding=padding)._replace(batch=x.shape[0])
        return x * 0 + len(dispatch.inference_kernels(self.backend, problem))


@_NATIVE
@pytest.mark.parametrize("dynamic", [False, True])
def test_sizes_that_are_not_known_bind_no_graph(
    dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_unavailable", lambda device: None)
    monkeypatch.setattr(dispatch, "gpu_name", lambda: "NVIDIA H200")
    monkeypatch.delenv("R21D_INFERENCE", raising=False)
    torch._dynamo.reset()
    graphs = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(_Chosen(), fullgraph=True, dynamic=dynamic, backend=record)
    # Of sizes that may yet be others the library decides, at the call.
    kernels = "" if dynamic else dispatch.inference_kernels("cuda", _problem(batch=3))
    for batch in (3, 5, 7) if dynamic else (3,):
        assert (compiled(torch.randn(batch, 56)) == len("cuda") + 100 * len(kernels)).all()
    assert len(graphs) == 1
    torch._dynamo.reset()
