"""``torch.compile(fullgraph=True)`` and ``torch.export`` (15 s; 40 s on a first run)."""

from __future__ import annotations

import copy
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from accuracy import Draw, assert_accurate, assert_accurate_over_draws
from ops.chosen_backend import Backend
from ops.gradients import stock_step
from ops.modules_under_test import (
    Results,
    TinyNet,
    collect,
    conv,
    exact_step,
    randomize,
    run_children,
    stock_ways,
)
from torch import Tensor, nn
from torch.compiler import assume_constant_result

import r21d_ops
from r21d_ops.dynamo import constant_result

_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile on the CPU needs a C++ compiler",
)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.fixture
def x() -> Tensor:
    """(2, 5, 4, 9, 8)."""
    return torch.randn(2, 5, 4, 9, 8)


def test_constant_results_are_marked_as_torch_marks_them() -> None:
    ours, theirs = (mark(lambda: 1) for mark in (constant_result, assume_constant_result))
    assert vars(ours) == vars(theirs) != {}


@_COMPILER
@pytest.mark.interpreted
def test_compiled_in_eval(backend: Backend, x: Tensor) -> None:
    module = conv().eval()
    compiled = torch.compile(module, fullgraph=True)
    with torch.no_grad():
        exact = run_children(copy.deepcopy(module).double(), x.double())
        assert_accurate(compiled(x), exact, run_children(module, x))
        module[0].weight.data.mul_(2)
        exact = run_children(copy.deepcopy(module).double(), x.double())
        assert_accurate(compiled(x), exact, run_children(module, x))


def test_compiled_graph_holds_the_operator(backend: Backend, x: Tensor) -> None:
    graphs = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        torch.compile(conv().eval(), fullgraph=True, backend=record)(x)
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert any("r21d" in target for target in targets) == (backend.name != "eager")


@_COMPILER
@pytest.mark.interpreted(compiler=["inductor"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("compiler", ["inductor", "aot_eager"])
def test_compiled_training_step(
    compiler: str, recompute: bool, backend: Backend, x: Tensor
) -> None:
    if compiler == "inductor" and backend.name == "eager":
        pytest.skip("Inductor's own sums over pixels are less accurate than stock batch_norm's")
    module = conv()
    module.recompute = recompute
    before = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend=compiler)

    @functools.lru_cache
    def step(number: int) -> tuple[Results, Results, dict[str, list[Tensor]]]:
        module.load_state_dict(before.state_dict())
        given = (torch.randn_like(x), torch.randn(2, 7, 4, 9, 8))
        ours = collect(module, *given, compiled)
        return ours, exact_step(before, *given), stock_step(before, *given)

    def draw(name: str, numbers: Iterator[int]) -> Draw:
        ours, exact, stock = step(next(numbers))
        return ours[name], exact[name], stock[name]

    for name, value in step(0)[0].items():
        if value.is_floating_point():
            assert_accurate_over_draws(functools.partial(draw, name, itertools.count()), name)
        else:
            assert torch.equal(value, step(0)[1][name]), name


@_COMPILER
def test_compiled_with_a_dynamic_batch(backend: Backend) -> None:
    module = conv().eval()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (2, 3, 5):
            x = torch.randn(batch, 5, 4, 9, 8)
            exact = run_children(copy.deepcopy(module).double(), x.double())
            assert_accurate(compiled(x), exact, run_children(module, x))


@_COMPILER
def test_compiled_fused_model(backend: Backend) -> None:
    """Without a code generator: what the tracer makes of a whole fused model, in one graph."""
    stock = randomize(TinyNet()).eval()
    traced = torch.compile(r21d_ops.fuse(stock), fullgraph=True, backend="aot_eager")
    exact, ways = copy.deepcopy(stock).double(), stock_ways(stock)

    def draw() -> Draw:
        x = torch.randn(2, 3, 4, 10, 9)
        return traced(x), exact(x.double()), [way(x) for way in ways]

    with torch.no_grad():
        assert_accurate_over_draws(draw)


def test_exported_and_run(backend: Backend, x: Tensor) -> None:
    module = conv().eval()
    program = torch.export.export(module, (x,))
    other = torch.randn_like(x)
    with torch.no_grad():
        exact = run_children(copy.deepcopy(module).double(), other.double())
        assert_accurate(program.module()(other), exact, run_children(module, other))


@pytest.mark.interpreted
def test_exported_without_gradients_holds_the_operator(backend: Backend, x: Tensor) -> None:
    module = conv().eval()
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        exact = run_children(copy.deepcopy(module).double(), x.double())
        assert_accurate(program.module()(x), exact, run_children(module, x))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("r21d" in target for target in targets) == (backend.name != "eager")


@pytest.mark.interpreted
def test_exported_with_a_dynamic_batch(backend: Backend, x: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu()

    model = Model().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
        other = torch.randn(7, 5, 4, 9, 8)
        exact = run_children(copy.deepcopy(model.conv).double(), other.double()).relu()
        assert_accurate(program.module()(other), exact, run_children(model.conv, other).relu())
