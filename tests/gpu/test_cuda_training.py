"""Training on a CUDA device, over every backend and dtype (seconds on one GPU).

Values are held to twice the error of stock PyTorch in the same dtype, against float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from accuracy import assert_accurate, assert_accurate_over_draws
from gpu.conftest import Trainer
from gpu.problems import CASES, SMALL, GpuCase
from torch import Tensor, nn

import r21d_ops

#: Gradients jump where a value of BatchNorm changes sign by rounding: every other channel is cut
#: off by ReLU with a wide margin, the rest passes.
_MARGIN = 10.0


def _module(
    case: GpuCase, dtype: torch.dtype = torch.float32, margin: float = _MARGIN
) -> r21d_ops.Conv2Plus1D:
    """Convolutions in ``dtype``, BatchNorm in float32."""
    c, m, o = case.channels
    conv = r21d_ops.Conv2Plus1D(c, o, m, case.stride, case.padding, kernel_size=case.kernel)
    with torch.no_grad():
        conv[1].bias += margin - 2 * margin * (torch.arange(m) % 2)
    conv.cuda()
    conv[0].to(dtype)
    conv[3].to(dtype)
    return conv


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


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("name", _STEP_RESULTS)
def test_training_step(case: GpuCase, trainer: Trainer, recompute: bool, name: str) -> None:
    # Only what goes back through ReLU jumps at zero; elsewhere the margin's large values would
    # cost accuracy.
    margin = 0.0 if name in _WITHOUT_MARGIN else _MARGIN

    def once() -> tuple[Tensor, list[Tensor], Tensor]:
        conv = _module(case, trainer.dtype, margin)
        shape = (case.batch, case.channels[0], *case.size)
        x = torch.randn(*shape, device="cuda").to(trainer.dtype)
        upstream = torch.randn(*case.out_shape, device="cuda").to(trainer.dtype)
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


def test_autocast(trainer: Trainer) -> None:
    if trainer.dtype != torch.bfloat16:
        pytest.skip("autocast chooses the dtype: once is enough")
    conv = _module(SMALL)
    x = torch.randn(SMALL.batch, SMALL.channels[0], *SMALL.size, device="cuda")
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
def test_empty_batch(trainer: Trainer, training: bool) -> None:
    conv = _module(SMALL, trainer.dtype).train(training)
    before = copy.deepcopy(dict(conv.named_buffers()))
    x = torch.zeros(0, SMALL.channels[0], *SMALL.size, device="cuda", dtype=trainer.dtype)
    x.requires_grad_()
    y = conv(x)
    assert tuple(y.shape) == (0, *SMALL.out_shape[1:])
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(conv[1], name), before[f"1.{name}"])


def test_cuda_graph_of_a_training_step(trainer: Trainer) -> None:
    conv = _module(SMALL, trainer.dtype)
    shape = (SMALL.batch, SMALL.channels[0], *SMALL.size)
    first, second = (torch.randn(*shape, device="cuda").to(trainer.dtype) for _ in range(2))
    upstream = torch.randn(*SMALL.out_shape, device="cuda").to(trainer.dtype)
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


def _block(trainer: Trainer) -> tuple[r21d_ops.FusedBasicBlock, list[Tensor]]:
    """A block in the trainer's dtype, and two inputs and the gradient of its output."""
    block = r21d_ops.FusedBasicBlock(16, 16)
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.bias += _MARGIN - 2 * _MARGIN * (torch.arange(module.num_features) % 2)
    block.cuda()
    for module in block.modules():
        if isinstance(module, nn.Conv3d):
            module.to(trainer.dtype)
    given = [torch.randn(2, 16, 4, 9, 11, device="cuda").to(trainer.dtype) for _ in range(3)]
    return block, given


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
def test_block(trainer: Trainer, recompute: bool) -> None:
    """A residual block beside its layers run one by one."""
    block, (x, _, upstream) = _block(trainer)
    block.conv1[0].recompute = block.conv2[0].recompute = recompute
    layers = [*block.conv1[0], block.conv1[1], block.conv1[2], *block.conv2[0], block.conv2[1]]

    class Stock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*copy.deepcopy(layers))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layers(x) + x)

    stock = Stock()
    exact = _step(copy.deepcopy(stock).double(), x.double(), upstream.double())
    theirs, ours = _step(stock, x, upstream), _step(block, x, upstream)
    assert_accurate(ours["output"], exact["output"], theirs["output"])
    assert_accurate(ours["x"], exact["x"], theirs["x"])
    names = zip(dict(stock.named_parameters()), dict(block.named_parameters()), strict=True)
    for name, own in names:
        if exact[name].numel() > 200:
            assert_accurate(ours[own], exact[name], theirs[name], own)


def test_cuda_graph_of_a_blocks_step(trainer: Trainer) -> None:
    block, (first, second, upstream) = _block(trainer)
    static = first.clone()

    def step() -> dict[str, Tensor]:
        return _step(block, static, upstream)

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
    for name, value in captured.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, expected[name]), name
