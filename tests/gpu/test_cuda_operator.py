"""The operator on a CUDA device, over every backend that serves one (seconds on one GPU).

Values are held to twice the error of stock PyTorch in the same dtype, against float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from accuracy import assert_accurate, assert_accurate_over_draws
from gpu.problems import CASES, GpuCase, draw
from torch import Tensor, nn

import r21d_ops

_SMALL = next(case for case in CASES if case.name == "primes")
#: Gradients jump where a value of BatchNorm changes sign by rounding: every other channel is cut
#: off by ReLU with a wide margin, the rest passes.
_MARGIN = 10.0


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> GpuCase:
    """Each problem."""
    found: GpuCase = request.param
    return found


def _layouts(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` with the strides that ``layout`` names."""
    if layout == "channels_last_3d":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "sliced":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), device=x.device)
        view = wide.to(x.dtype)[..., ::2]
        view.copy_(x)
        return view
    return x.contiguous()


@pytest.mark.parametrize("epilogue", [False, True], ids=["plain", "epilogue"])
def test_inference(
    case: GpuCase, cuda_backend: str, cuda_dtype: torch.dtype, epilogue: bool
) -> None:
    def once() -> tuple[Tensor, Tensor, list[Tensor]]:
        operands = draw(case, cuda_dtype)
        y = r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(False, epilogue))
        exact = operands.to(torch.float64).reference(epilogue=epilogue)
        return y, exact, operands.stock(epilogue)

    assert_accurate_over_draws(once)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d", "sliced"])
def test_layouts(cuda_backend: str, cuda_dtype: torch.dtype, layout: str) -> None:
    def once() -> tuple[Tensor, Tensor, list[Tensor]]:
        operands = draw(_SMALL, cuda_dtype)
        exact, stock = operands.to(torch.float64).reference(), operands.stock()
        operands.main["x"] = _layouts(operands.main["x"], layout)
        y = r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(False, False))
        assert y.is_contiguous(memory_format=torch.channels_last_3d)
        return y, exact, stock

    assert_accurate_over_draws(once)


def _module(case: GpuCase, margin: float = _MARGIN) -> r21d_ops.Conv2Plus1D:
    c, m, o = case.channels
    conv = r21d_ops.Conv2Plus1D(c, o, m, case.stride, case.padding, kernel_size=case.kernel)
    with torch.no_grad():
        conv[1].bias += margin - 2 * margin * (torch.arange(m) % 2)
    return conv.cuda()


def _step(module: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Output, gradients of input and parameters, running statistics."""
    x = x.detach().requires_grad_()
    y = module(x)
    names = [name for name, _ in module.named_parameters()]
    grads = torch.autograd.grad(y, [x, *module.parameters()], upstream.to(y.dtype))
    found = {"output": y, **dict(zip(["x", *names], grads, strict=True))}
    return {k: v.detach() for k, v in found.items()} | dict(module.named_buffers())


_STEP_RESULTS = (
    "output",
    "x",
    "0.weight",
    "1.weight",
    "1.bias",
    "3.weight",
    "1.running_mean",
    "1.running_var",
)
_WITHOUT_MARGIN = ("output", "3.weight", "1.running_mean", "1.running_var")
_ENOUGH, _MOST_DRAWS = 1000, 12


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("name", _STEP_RESULTS)
def test_training_step(case: GpuCase, cuda_backend: str, recompute: bool, name: str) -> None:
    # Only what goes back through ReLU jumps at zero; elsewhere the margin's large values would
    # cost accuracy.
    margin = 0.0 if name in _WITHOUT_MARGIN else _MARGIN

    def once() -> tuple[Tensor, list[Tensor], Tensor]:
        conv = _module(case, margin)
        x = torch.randn(case.batch, case.channels[0], *case.size, device="cuda")
        upstream = torch.randn(*case.out_shape, device="cuda")
        stock = nn.Sequential(*copy.deepcopy(list(conv.children())))
        exact = _step(copy.deepcopy(stock).double(), x.double(), upstream.double())
        last = copy.deepcopy(stock).to(memory_format=torch.channels_last_3d)
        last_x = x.contiguous(memory_format=torch.channels_last_3d)
        stocks = [_step(stock, x, upstream), _step(last, last_x, upstream)]
        conv.recompute = recompute
        ours = _step(conv, x, upstream)
        assert ours["1.num_batches_tracked"] == 1
        return ours[name], [found[name] for found in stocks], exact[name]

    def pooled() -> tuple[Tensor, Tensor, list[Tensor]]:
        found = [once()]
        # Even the RMS error of a few numbers is a matter of luck.
        while sum(exact.numel() for _, _, exact in found) < _ENOUGH and len(found) < _MOST_DRAWS:
            found.append(once())
        ours, stocks, exact = zip(*found, strict=True)
        return _flat(ours), _flat(exact), [_flat(layout) for layout in zip(*stocks, strict=True)]

    assert_accurate_over_draws(pooled, name)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_autocast(cuda_backend: str) -> None:
    conv = _module(_SMALL)
    x = torch.randn(_SMALL.batch, _SMALL.channels[0], *_SMALL.size, device="cuda")
    stock = nn.Sequential(*copy.deepcopy(list(conv.children())))
    # float32 weights are rounded on the way in, the float64 reference takes them as rounded.
    exact_module = copy.deepcopy(stock)
    for weight in (exact_module[0].weight, exact_module[3].weight):
        weight.data = weight.data.bfloat16().float()
    exact = exact_module.double()(x.bfloat16().double())
    with torch.autocast("cuda", torch.bfloat16):
        y, expected = conv(x), stock(x)
    assert y.dtype == torch.bfloat16
    assert_accurate(y, exact, expected)
    y.float().square().sum().backward()
    gradients = {name: p.grad for name, p in conv.named_parameters()}
    assert all(g is not None and g.dtype == torch.float32 for g in gradients.values())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_empty_batch(cuda_backend: str, training: bool) -> None:
    conv = _module(_SMALL).train(training)
    before = copy.deepcopy(dict(conv.named_buffers()))
    x = torch.zeros(0, _SMALL.channels[0], *_SMALL.size, device="cuda", requires_grad=True)
    y = conv(x)
    assert tuple(y.shape) == (0, *_SMALL.out_shape[1:])
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(conv[1], name), before[f"1.{name}"])


def test_cuda_graph_replays_on_new_input(cuda_backend: str, cuda_dtype: torch.dtype) -> None:
    first, second = (draw(_SMALL, cuda_dtype) for _ in range(2))
    static = first.main["x"].clone()
    _, spatial, temporal = first.tensors()
    words = first.keywords(False, True)

    def call() -> Tensor:
        return r21d_ops.conv2plus1d(static, spatial, temporal, **words)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    static.copy_(second.main["x"])
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, call())


def test_cuda_graph_of_a_training_step(cuda_backend: str) -> None:
    conv = _module(_SMALL)
    first, second = (
        torch.randn(_SMALL.batch, _SMALL.channels[0], *_SMALL.size, device="cuda") for _ in range(2)
    )
    upstream = torch.randn(*_SMALL.out_shape, device="cuda")
    static = first.clone()

    def step() -> dict[str, Tensor]:
        return _step(conv, static, upstream)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    static.copy_(second)
    graph.replay()
    expected = step()
    for name in ("output", "x", "0.weight", "1.weight", "1.bias", "3.weight"):
        assert torch.equal(captured[name], expected[name]), name


def test_other_stream(cuda_backend: str) -> None:
    operands = draw(_SMALL, torch.float32)
    expected = r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(False, False))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(False, False))
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_special_values_pass_relu(cuda_backend: str, value: float) -> None:
    operands = draw(_SMALL, torch.float32)
    operands.main["x"][0, 1, 1, 2, 3] = value
    words = operands.keywords(False, False) | {"relu": True}
    y = r21d_ops.conv2plus1d(*operands.tensors(), **words)
    expected = torch.relu(operands.reference())
    assert expected.isnan().any()
    assert torch.equal(y.isnan(), expected.isnan())


def test_fused_network_gives_the_same_logits(cuda_backend: str) -> None:
    import r21d

    options = {"num_classes": 5, "widths": (16, 16, 32, 32), "stem_channels": 16}
    model = r21d.create_model("r2plus1d_18", **options).cuda().eval()
    stock = copy.deepcopy(model)
    for parent in list(stock.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, (r21d_ops.Conv2Plus1D, r21d_ops.modules.FusedSequential)):
                parent._modules[name] = nn.Sequential(*child.children())
    x = torch.randn(2, 3, 8, 56, 56, device="cuda")
    with torch.no_grad():
        exact = copy.deepcopy(stock).double()(x.double())
        assert_accurate(model(x), exact, stock(x), "logits")
        fused = r21d_ops.fuse(stock)
        assert any(row.fused for row in r21d_ops.fuse_report(fused))
        assert_accurate(fused(x), exact, stock(x), "logits of fuse")


def test_backend_that_serves_the_cpu_alone_says_so() -> None:
    operands = draw(_SMALL, torch.float32)
    if not any(row.name == "cpu" and row.available for row in r21d_ops.backends()):
        pytest.skip("the native library is not loaded")
    with pytest.raises(RuntimeError, match="it serves CPU tensors, not cuda"):
        r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(False, False), backend="cpu")
