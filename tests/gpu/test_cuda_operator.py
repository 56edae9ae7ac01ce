"""Inference on a CUDA device, over every way to serve it (seconds on one GPU).

Values are held to twice the error of stock PyTorch in the same dtype, against float64.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from accuracy import Draw, assert_accurate, assert_accurate_over_draws
from gpu.conftest import Way
from gpu.problems import CASES, SMALL, GpuCase, Operands, draw, with_layout
from torch import Tensor, nn

import r21d_ops

pytestmark = pytest.mark.usefixtures("poisoned")


def _call(operands: Operands, epilogue: bool = False) -> Tensor:
    return r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(False, epilogue))


def _draw(case: GpuCase, way: Way, epilogue: bool) -> Draw:
    operands = draw(case, way.dtype)
    y = _call(operands, epilogue)
    return y, operands.to(torch.float64).reference(epilogue), operands.stock(epilogue)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("epilogue", [False, True], ids=["plain", "epilogue"])
def test_inference(case: GpuCase, way: Way, epilogue: bool) -> None:
    assert_accurate_over_draws(lambda: _draw(case, way, epilogue))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d", "sliced"])
def test_layouts(way: Way, layout: str) -> None:
    def once() -> Draw:
        operands = draw(SMALL, way.dtype)
        exact, stock = operands.to(torch.float64).reference(), operands.stock()
        operands.main["x"] = with_layout(operands.main["x"], layout)
        y = _call(operands)
        assert y.is_contiguous(memory_format=torch.channels_last_3d)
        return y, exact, stock

    assert_accurate_over_draws(once)


def test_empty_batch(way: Way) -> None:
    operands = draw(SMALL, way.dtype)
    for name in ("x", "residual"):
        operands.main[name] = operands.main[name][:0]
    assert tuple(_call(operands, True).shape) == (0, *SMALL.out_shape[1:])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_special_values_pass_relu(way: Way, value: float) -> None:
    operands = draw(SMALL, way.dtype)
    operands.main["x"][0, 1, 1, 2, 3] = value
    y = _call(operands, True)
    expected = operands.to(torch.float64).reference(True)
    assert expected.isnan().any()
    assert y.isnan()[expected.isnan()].all()
    if way.backend != "eager":  # stock PyTorch may spread NaN to pixels that do not see it
        assert torch.equal(y.isnan(), expected.isnan())


def test_changed_weights_are_seen(way: Way) -> None:
    """Weights that are packed for the kernels are never those of an earlier call."""
    first, second = (draw(CASES[1], way.dtype) for _ in range(2))
    words = first.keywords(False, True)
    before = r21d_ops.conv2plus1d(*first.tensors(), **words)
    for name in ("spatial_weight", "temporal_weight"):
        first.main[name].copy_(second.main[name])
        after = r21d_ops.conv2plus1d(*first.tensors(), **words)
        assert not torch.equal(after, before)
        fresh = [tensor.clone() for tensor in first.tensors()]
        assert torch.equal(after, r21d_ops.conv2plus1d(*fresh, **words))
        before = after


@pytest.mark.parametrize("case", [SMALL, CASES[0], CASES[1]], ids=str)
def test_cuda_graph_replays_on_new_operands(case: GpuCase, way: Way) -> None:
    static, *others = (draw(case, way.dtype) for _ in range(3))
    words = static.keywords(False, True)

    def call() -> Tensor:
        return r21d_ops.conv2plus1d(*static.tensors(), **words)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for other in others:
        for name, tensor in static.main.items():
            tensor.copy_(other.main[name])
        captured.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, call())


def test_streams_at_once(way: Way) -> None:
    """Each stream's scratch memory is its own, also while others run."""
    problems = [draw(case, way.dtype) for case in CASES for _ in range(2)]
    expected = [_call(operands, True) for operands in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    found = []
    for _ in range(3):
        for stream, operands in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                found.append(_call(operands, True))
    torch.cuda.synchronize()
    for y, right in zip(found, expected * 3, strict=True):
        assert torch.equal(y, right)


def test_other_device(way: Way) -> None:
    """Tensors of a device that is not the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    operands = draw(CASES[1], way.dtype)
    expected = _call(operands, True)
    assert torch.cuda.current_device() == 0
    there = Operands(
        operands.case,
        {name: tensor.to("cuda:1") for name, tensor in operands.main.items()},
        {name: tensor.to("cuda:1") for name, tensor in operands.vectors.items()},
    )
    y = _call(there, True)
    assert y.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    exact = operands.to(torch.float64).reference(True)
    assert_accurate(y.to("cuda:0"), exact, [expected, *operands.stock(True)])


def test_compiled(way: Way) -> None:
    torch.compiler.reset()
    operands = draw(SMALL, way.dtype)
    words = operands.keywords(False, True)

    def call(x: Tensor, spatial: Tensor, temporal: Tensor) -> Tensor:
        return r21d_ops.conv2plus1d(x, spatial, temporal, **words)

    with torch.no_grad():
        y = torch.compile(call, backend="aot_eager", fullgraph=True)(*operands.tensors())
        assert torch.equal(y, call(*operands.tensors()))


def test_fused_network_gives_the_same_logits(first_way: Way) -> None:
    import r21d

    options = {"num_classes": 50, "widths": (16, 16, 32, 32), "stem_channels": 16}
    model = r21d.create_model("r2plus1d_18", **options).cuda().eval().to(first_way.dtype)
    stock = copy.deepcopy(model)
    for parent in list(stock.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, (r21d_ops.Conv2Plus1D, r21d_ops.modules.FusedSequential)):
                parent._modules[name] = nn.Sequential(*child.children())
    wide = copy.deepcopy(stock).double()
    fused = r21d_ops.fuse(stock)
    assert any(row.fused for row in r21d_ops.fuse_report(fused))

    def once(ours: nn.Module) -> Draw:
        x = torch.randn(2, 3, 8, 56, 56, device="cuda").to(first_way.dtype)
        return ours(x), wide(x.double()), [stock(x)]

    with torch.no_grad():
        for ours, what in ((model, "logits"), (fused, "logits of fuse")):
            assert_accurate_over_draws(partial(once, ours), what)


def test_backend_that_serves_the_cpu_alone_says_so() -> None:
    operands = draw(SMALL, torch.float32)
    if not any(row.name == "cpu" and row.available for row in r21d_ops.backends()):
        pytest.skip("the native library is not loaded")
    with pytest.raises(RuntimeError, match="it serves CPU tensors, not cuda"):
        r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(False, False), backend="cpu")
