"""Residual blocks that train as one function (about 40 s): values, what is kept, what falls back.

ReLU's gradients jump where a value is zero but for rounding, so that in 16 bits BatchNorm's shifts
keep values away from there: every other channel passes, the others are cut off.
"""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accuracy import Draw, assert_accurate, assert_accurate_over_draws
from torch import Tensor, nn

import r21d
import r21d_ops
from r21d_ops import FusedBasicBlock, basic_block
from r21d_ops.backends import eager

_SIZE = (4, 9, 7)
_MARGIN = 6.0

#: The backends that train blocks as one function; ``cuda`` is the simulated one.
_WAYS = [
    ("eager", torch.float64),
    ("eager", torch.float32),
    ("cuda", torch.bfloat16),
    ("cuda", torch.float16),
]

#: Values that are compared at once: of few the error is luck, and of several draws.
_ENOUGH, _MOST_POOLED = 150, 6

#: Stride, channels in and out.
_SHAPES = {"identity": (1, 24, 24), "projected": (2, 12, 20), "odd": (1, 9, 9)}


def _block(shape: str, dtype: torch.dtype, margin: float | None = None) -> FusedBasicBlock:
    """Convolutions in ``dtype``, BatchNorms in float32 (float64 in float64)."""
    if margin is None:
        margin = _MARGIN if dtype.itemsize == 2 else 0.0
    stride, in_planes, planes = _SHAPES[shape]
    shortcut = None
    if stride != 1:
        conv = nn.Conv3d(in_planes, planes, 1, stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm3d(planes))
    block = FusedBasicBlock(in_planes, planes, stride=stride, downsample=shortcut)
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, nn.BatchNorm3d):
                channels = torch.arange(module.num_features)
                module.weight.uniform_(0.5, 1.5)
                module.bias.copy_(margin - 2 * margin * (channels % 2))
    return _cast(block, dtype)


def _cast(block: FusedBasicBlock, dtype: torch.dtype) -> FusedBasicBlock:
    for module in block.modules():
        if isinstance(module, nn.Conv3d) or dtype == torch.float64:
            module.to(dtype)
    return block


def _stock(block: FusedBasicBlock) -> nn.Module:
    """The same layers, each run by itself."""

    class Stock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = copy.deepcopy(block)

        def forward(self, x: Tensor) -> Tensor:
            block = self.block
            shortcut = x if block.downsample is None else block.downsample(x)
            for layer in (*block.conv1[0], *list(block.conv1)[1:], *block.conv2[0]):
                x = layer(x)
            return torch.relu(block.conv2[1](x) + shortcut)

    return Stock()


def _step(module: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Output, gradients of input and parameters, running statistics."""
    x = x.detach().requires_grad_()
    y = module(x)
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(y, [x, *parameters.values()], upstream.to(y.dtype))
    found = {"y": y.detach(), "x": grads[0]}
    found |= dict(zip((k.removeprefix("block.") for k in parameters), grads[1:], strict=True))
    return found | {k.removeprefix("block."): b for k, b in module.named_buffers()}


def _stock_steps(block: FusedBasicBlock, x: Tensor, upstream: Tensor) -> list[dict[str, Tensor]]:
    """Of stock layers, in both memory formats: torch's BatchNorms sum differently in them."""
    layouts = (torch.contiguous_format, torch.channels_last_3d)
    formats = [[t.contiguous(memory_format=layout) for t in (x, upstream)] for layout in layouts]
    return [_step(_stock(block), *given) for given in formats]


def _inputs(block: FusedBasicBlock, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    in_planes = block.conv1[0][0].in_channels
    # In NDHWC, for the shortcut's own BatchNorm: torch's sums 16-bit gradients of another layout
    # than its input's less accurately.
    layout = torch.channels_last_3d
    x = torch.randn(2, in_planes, *_SIZE).to(dtype).contiguous(memory_format=layout)
    with torch.no_grad():
        shape = copy.deepcopy(block).eval()(x).shape
    return x, torch.randn(shape).to(dtype)


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends of the blocks that ran as one function, in their order."""
    seen: list[str] = []
    wanted = basic_block.residual_block

    def spied(*arguments: Any) -> Tensor:
        seen.append(arguments[-1])
        return wanted(*arguments)

    monkeypatch.setattr(basic_block, "residual_block", spied)
    return seen


@pytest.fixture(autouse=True)
def _eager_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition trains blocks as one function, too."""
    monkeypatch.setattr(eager, "BLOCKS", True)


@pytest.mark.parametrize(("served_by", "dtype"), _WAYS, ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("shape", _SHAPES)
def test_a_step_is_that_of_stock_layers(
    shape: str, recompute: bool, served_by: str, dtype: torch.dtype, functions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _force(served_by, monkeypatch)
    made: list[list[dict[str, Tensor]]] = []

    def results(number: int) -> list[dict[str, Tensor]]:
        while len(made) <= number:
            block = _block(shape, dtype)
            x, upstream = _inputs(block, dtype)
            exact = _cast(copy.deepcopy(block), torch.float64)
            stock = _stock_steps(block, x, upstream)
            wide = _step(_stock(exact), x.double(), upstream.double())
            block.conv1[0].recompute = block.conv2[0].recompute = recompute
            functions.clear()
            made.append([_step(block, x, upstream), wide, *stock])
            assert functions == [served_by]
        return made[number]

    def draws(name: str, numbers: Iterator[int]) -> Draw:
        pool = [results(next(numbers))]
        while sum(one[0][name].numel() for one in pool) < _ENOUGH and len(pool) < _MOST_POOLED:
            pool.append(results(next(numbers)))
        ours, exact, *stock = (
            torch.cat([one[place][name].flatten() for one in pool]) for place in range(4)
        )
        return ours, exact, stock

    for name, value in results(0)[0].items():
        if name.endswith("num_batches_tracked"):
            assert value == 1
            continue
        if name.startswith("downsample.1"):
            continue  # torch's own layer
        if dtype == torch.float64:
            ours, exact = results(0)[:2]
            torch.testing.assert_close(ours[name], exact[name], rtol=1e-9, atol=1e-9)
            continue
        numbers = itertools.count()
        assert_accurate_over_draws(lambda name=name, n=numbers: draws(name, n), name)


def _mixed(block: FusedBasicBlock) -> None:
    """Of the four BatchNorms one is frozen, one averages, one has no parameters, one no buffers."""
    block.conv1[0][1].eval()
    block.conv1[1].momentum = None
    planes = block.conv2[1].num_features
    block.conv2[0][1] = nn.BatchNorm3d(block.conv2[0][1].num_features, affine=False)
    block.conv2[1] = nn.BatchNorm3d(planes, track_running_stats=False)


def _partly_frozen(block: FusedBasicBlock) -> None:
    """Only the last BatchNorm and the last temporal convolution learn."""
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name.startswith(("conv2.0.3", "conv2.1")))


def _frozen(block: FusedBasicBlock) -> None:
    """With the statistics of other clips."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        block(_inputs(block, block.conv1[0][0].weight.dtype)[0])
    block.eval()


_CHANGES: dict[str, Callable[[FusedBasicBlock], None]] = {
    "mixed norms": _mixed, "partly frozen": _partly_frozen, "eval": _frozen
}  # fmt: skip


@pytest.mark.parametrize(("served_by", "dtype"), _WAYS[1:], ids=str)
@pytest.mark.parametrize("change", _CHANGES)
def test_norms_as_torch_has_them(
    change: str, served_by: str, dtype: torch.dtype, functions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _force(served_by, monkeypatch)
    block = _block("identity", dtype)
    _CHANGES[change](block)
    x, upstream = _inputs(block, dtype)
    exact = _stock(_cast(copy.deepcopy(block), torch.float64))
    stock = _stock_steps(block, x, upstream)
    wide = _step(exact, x.double(), upstream.double())
    functions.clear()
    ours = _step(block, x, upstream)
    assert functions == [served_by]
    assert ours.keys() == wide.keys()
    for name, value in ours.items():
        if change == "mixed norms" and dtype != torch.float32 and name != "y":
            continue  # without a shift, ReLU's gradients jump where 16 bits round to zero
        if value.is_floating_point() and value.numel() >= 60:
            assert_accurate(value, wide[name], [one[name] for one in stock], name)
            continue
        # Of few values; statistics and gradients of a channel, to a few units of the dtype.
        units = 64 * torch.finfo(dtype).eps
        scale = wide[name].double().abs().max().item()
        torch.testing.assert_close(
            value.double(), wide[name].double(), rtol=units, atol=units * scale, msg=name
        )


def _kept(module: nn.Module, x: Tensor) -> int:
    """Bytes kept for backward, each storage once, parameters aside."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    y.float().sum().backward()
    return sum(storages.values())


@pytest.mark.parametrize("name", ["eager", "cuda"])
def test_what_a_block_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 0.65 of what stock layers keep, and 0.35 with recompute: of conv2_x's channels x, u1,
    y1, u2, y2 and the output, 8.5 tensors of x's size, beside stock's 14; and 4."""
    _force(name, monkeypatch)
    block = FusedBasicBlock(64, 64).bfloat16()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.float()
    x = torch.randn(1, 64, 2, 6, 6, dtype=torch.bfloat16, requires_grad=True)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    stock = _kept(_stock(block), x)
    of_x = x.numel() * 2
    vectors = 8 * 4 * (2 * 64 + 2 * 144)  # a few a channel of each BatchNorm
    assert 14 * of_x <= stock <= 14 * of_x + vectors
    kept = _kept(block, x)
    assert 8.5 * of_x <= kept <= 8.5 * of_x + vectors and kept - vectors <= 0.62 * stock
    block.conv1[0].recompute = block.conv2[0].recompute = True
    recomputed = _kept(block, x)
    assert 4 * of_x <= recomputed <= 4 * of_x + vectors and recomputed - vectors <= 0.3 * stock


def _hooked(block: FusedBasicBlock) -> None:
    block.conv2[1].register_forward_hook(lambda *_: None)


def _another_activation(block: FusedBasicBlock) -> None:
    block.conv1[2] = nn.LeakyReLU()


def _another_layer(block: FusedBasicBlock) -> None:
    block.conv1.append(nn.Identity())


def _another_norm(block: FusedBasicBlock) -> None:
    block.conv2[1] = nn.InstanceNorm3d(24)


_STEPS_ASIDE = {"hook": _hooked, "activation": _another_activation, "layer": _another_layer,
                "norm": _another_norm}  # fmt: skip


@pytest.mark.parametrize("why", _STEPS_ASIDE)
def test_what_carries_something_of_its_own_is_run_by_itself(
    why: str, functions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R21D_BACKEND", "eager")
    block = _block("identity", torch.float32)
    x, upstream = _inputs(block, torch.float32)
    _STEPS_ASIDE[why](block)
    found = _step(block, x, upstream)
    assert functions == []
    by_hand = block.conv2(block.conv1(x)) + x
    torch.testing.assert_close(found["y"], torch.relu(by_hand).detach(), rtol=1e-4, atol=1e-4)
    without = _block("identity", torch.float32)
    with torch.no_grad():
        without.eval()(x)
    assert functions == []  # an epilogue of inference
    without.train()(x)
    assert functions == ["eager"]


def test_another_dtype_of_the_shortcut_falls_back(
    functions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast a float32 input is added to 16-bit values in float32, as stock layers do."""
    monkeypatch.setenv("R21D_BACKEND", "eager")
    block = _block("identity", torch.float32)
    x = torch.randn(2, 24, *_SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
        assert functions == [] and y.dtype == torch.float32
        assert block(x.bfloat16()).dtype == torch.bfloat16
    assert functions == ["eager"]


def test_a_single_value_a_channel_is_refused_as_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R21D_BACKEND", "eager")
    block = FusedBasicBlock(4, 4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(torch.randn(1, 4, 1, 1, 1))


def test_gradients_cannot_be_differentiated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R21D_BACKEND", "eager")
    block = _block("identity", torch.float32)
    x = torch.randn(1, 24, *_SIZE, requires_grad=True)
    (grad,) = torch.autograd.grad(block(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        grad.square().sum().backward()


def test_state_dict_keys_are_torchvisions(torchvision_resnet: Any) -> None:
    """A drop-in ``block``: the same keys, and the same function after loading."""
    stock = torchvision_resnet.BasicBlock(
        8, 8, torchvision_resnet.Conv2Plus1D, downsample=None
    ).eval()
    ours = FusedBasicBlock(8, 8).eval()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(1, 8, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), stock(x), rtol=1e-4, atol=1e-4)
    network = torchvision_resnet.VideoResNet(
        FusedBasicBlock, [r21d_ops.Conv2Plus1D] * 4, [1, 1, 1, 1], torchvision_resnet.R2Plus1dStem
    )
    assert network(torch.randn(1, 3, 8, 32, 32)).shape == (1, 400)


def test_fused_networks_train_their_blocks_as_one(
    torchvision_resnet: Any, functions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's through ``fuse``, and r21d's own: a function for each of eight blocks."""
    monkeypatch.setenv("R21D_BACKEND", "eager")
    clip = torch.randn(2, 3, 4, 16, 16)
    stock = torchvision_resnet.VideoResNet(
        torchvision_resnet.BasicBlock, [torchvision_resnet.Conv2Plus1D] * 4, [2, 2, 2, 2],
        torchvision_resnet.R2Plus1dStem,
    )  # fmt: skip
    exact = copy.deepcopy(stock).double()
    fused = r21d_ops.fuse(stock)
    stock_y, exact_y = stock(clip), exact(clip.double())
    assert functions == []
    y = fused(clip)
    assert functions == ["eager"] * 8
    assert_accurate(y, exact_y, stock_y)
    for module in fused.modules():
        if isinstance(module, r21d_ops.Conv2Plus1D):
            module.recompute = True
    torch.testing.assert_close(fused.train()(clip), y, rtol=1e-4, atol=1e-4)
    functions.clear()
    network = r21d.create_model("r2plus1d_18", num_classes=5, widths=(8, 8, 16, 16)).train()
    network(clip)
    assert functions == ["eager"] * 8


@pytest.mark.parametrize(
    ("served_by", "dtype", "recompute"),
    [
        ("eager", torch.float32, False),
        ("cuda", torch.bfloat16, False),
        ("cuda", torch.float16, False),
        ("cuda", torch.float16, True),
    ],
    ids=str,
)
def test_ten_steps_of_training(
    served_by: str, dtype: torch.dtype, recompute: bool, functions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Losses of ten steps of SGD beside stock PyTorch's in the same dtype: their distance from
    float64's grows no faster than twice that of stock's."""
    _force(served_by, monkeypatch)
    x = torch.randn(2, 24, *_SIZE).to(dtype)
    target = torch.randn(2, 24, *_SIZE).to(dtype)
    block = _block("identity", dtype, margin=0.0)
    block.conv1[0].recompute = block.conv2[0].recompute = recompute
    exact = _stock(_cast(copy.deepcopy(block), torch.float64))

    def losses(module: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        found = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = (module(x).double() - target.double()).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found)

    wide = losses(exact, x.double(), target.double())
    stock = losses(_stock(block), x, target)
    ours = losses(block, x, target)
    assert functions == [served_by] * 10
    print(wide, stock - wide, ours - wide)
    assert wide[-1] < 0.9 * wide[0]
    growth = (stock - wide).abs().cummax(0).values.clamp_min(torch.finfo(dtype).eps * wide[0])
    assert ((ours - wide).abs() <= 2 * growth + torch.finfo(dtype).eps * wide[0]).all()


@pytest.mark.parametrize("name", ["eager", "cuda"])
def test_compiled_in_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step: forward, backward and running statistics, to the bit those of the block."""
    _force(name, monkeypatch)
    torch._dynamo.reset()
    dtype = torch.bfloat16 if name == "cuda" else torch.float32
    block = _block("projected", dtype)
    x, upstream = _inputs(block, dtype)
    plain = _step(copy.deepcopy(block), x, upstream)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")

    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return compiled(x)

    found = _step(Compiled(), x, upstream)
    assert found.keys() == plain.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-6, atol=1e-6, msg=key)


def _force(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend in force; ``cuda`` is the simulated one."""
    from simt import backend as simulated

    from r21d_ops.backends import _BACKENDS

    monkeypatch.setenv("R21D_BACKEND", name)
    monkeypatch.setitem(_BACKENDS, "cuda", simulated)


@pytest.mark.parametrize("name", ["eager", "cuda"])
def test_gradients_accumulate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two backward passes add up, each with the statistics of its own batch."""
    _force(name, monkeypatch)
    block = _block("identity", torch.bfloat16)
    batches = [_inputs(block, torch.bfloat16) for _ in range(2)]
    apart = []
    for x, upstream in batches:
        one = copy.deepcopy(block)
        one(x).backward(upstream)
        apart.append([p.grad for p in one.parameters()])
    for x, upstream in batches:
        block(x).backward(upstream)
    for parameter, first, second in zip(block.parameters(), *apart, strict=True):
        assert first is not None and second is not None
        assert torch.equal(_grad(parameter), first + second)


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("name", ["eager", "cuda"])
def test_a_scaled_loss_that_overflows_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 with GradScaler: gradients beyond its range become infinite or NaN, the step is left
    out and the scale halved; with a scale that fits they are the unscaled ones."""
    _force(name, monkeypatch)
    block = _block("identity", torch.float32)
    x = torch.randn(2, 24, *_SIZE).contiguous(memory_format=torch.channels_last_3d)
    before = copy.deepcopy(block.state_dict())
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    for overflows in (True, False):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = block(x.half()).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update(None if overflows else 2.0**10)
        changed = any(
            not torch.equal(value, before[key])
            for key, value in block.state_dict().items()
            if key.endswith("weight")
        )
        assert changed != overflows
        if overflows:
            assert scaler.get_scale() == 2.0**29
            scaler.update(2.0**8)


class _OwnShortcut(nn.Module):
    """Two convolutions of which the second adds its own input: no block of one function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = r21d_ops.Conv2Plus1D(8, 8), r21d_ops.Conv2Plus1D(8, 8)
        self.na, self.nb = nn.BatchNorm3d(8), nn.BatchNorm3d(8)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.na(self.a(x)))
        return torch.relu(self.nb(self.b(z)) + z)


class _BlockAfterAnother(_OwnShortcut):
    """A convolution, and behind it a block."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.nc = r21d_ops.Conv2Plus1D(8, 8), nn.BatchNorm3d(8)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.nc(self.c(x)))
        y = torch.relu(self.na(self.a(z)))
        return torch.relu(self.nb(self.b(y)) + z)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [_OwnShortcut, _BlockAfterAnother])
def test_shortcuts_of_any_value(
    kind: type[nn.Module], training: bool, functions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R21D_BACKEND", "eager")
    module = kind().train(training)
    fused = r21d_ops.fuse(module)
    x = torch.randn(2, 8, *_SIZE)
    expected = module(x)
    assert functions == []
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
    assert functions == (["eager"] if kind is _BlockAfterAnother else [])
    with torch.no_grad():
        torch.testing.assert_close(fused(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cpu", "eager"])
def test_fused_blocks_recompute(
    name: str, torchvision_resnet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they run as one function or not, and in one graph."""
    monkeypatch.setenv("R21D_BACKEND", name)
    stock = torchvision_resnet.BasicBlock(8, 8, torchvision_resnet.Conv2Plus1D)
    fused = r21d_ops.fuse(stock)
    x = torch.randn(1, 8, 4, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    kept = _kept(fused, x)
    for module in fused.modules():
        if isinstance(module, r21d_ops.Conv2Plus1D):
            module.recompute = True
    of_u = x.numel() // 8 * fused.conv1[0][0].out_channels * 4
    assert abs(kept - _kept(fused, x) - 2 * of_u) < 0.02 * kept
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fused(x), rtol=1e-5, atol=1e-5)


def test_frozen_networks_infer_with_gradients_on(
    functions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing wants a gradient: the operators of inference serve."""
    monkeypatch.setenv("R21D_BACKEND", "eager")
    block = _block("identity", torch.float32).eval().requires_grad_(False)
    x = torch.randn(2, 24, *_SIZE)
    y = block(x)
    assert functions == [] and not y.requires_grad
    block(x.requires_grad_())
    assert functions == ["eager"]


def test_tangents_of_weights_are_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R21D_BACKEND", "eager")
    block = _block("identity", torch.float64).eval()
    x = torch.randn(1, 24, *_SIZE, dtype=torch.float64)
    weight = block.conv1[0][0].weight.detach()
    name = "conv1.0.0.weight"

    def of_weight(w: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(block, {name: w}, (x,))
        return found

    stock = _stock(block).eval()

    def of_stock(w: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(stock, {f"block.{name}": w}, (x,))
        return found

    direction = torch.randn_like(weight)
    _, tangent = torch.func.jvp(of_weight, (weight,), (direction,))
    _, expected = torch.func.jvp(of_stock, (weight,), (direction,))
    torch.testing.assert_close(tangent, expected)


_WORKER = """
import sys, datetime, torch, torch.distributed as dist
from torch import nn
from ops.test_block import _block, _step
from r21d_ops.backends import eager
eager.BLOCKS = True
rank, rendezvous, result = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
torch.manual_seed(3)
block = nn.SyncBatchNorm.convert_sync_batchnorm(_block("identity", torch.float32))
x, upstream = torch.randn(2, 4, 24, 4, 9, 7)
share = slice(0, 3) if rank == 0 else slice(3, 4)
torch.save(_step(block, x[share], upstream[share]), result)
dist.destroy_process_group()
"""


def test_sync_batch_norm_over_unequal_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with three clips and one: outputs, statistics and gradients of four clips."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch is built without gloo")
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "R21D_BACKEND": "eager",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(rank), str(tmp_path / "rendezvous"),
             str(tmp_path / f"{rank}.pt")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    torch.manual_seed(3)
    monkeypatch.setenv("R21D_BACKEND", "eager")
    block = _block("identity", torch.float32)
    x, upstream = torch.randn(2, 4, 24, *_SIZE)
    exact = _step(_stock(_cast(copy.deepcopy(block), torch.float64)), x.double(), upstream.double())
    stock = _stock_steps(block, x, upstream)
    for name, wide in exact.items():
        theirs = [one[name] for one in stock]
        if name in ("y", "x"):
            ours = torch.cat([one[name] for one in found])
        elif name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(found[0][name], found[1][name]), name
            ours = found[0][name]
        else:
            ours = found[0][name] + found[1][name]  # DistributedDataParallel reduces them
        if wide.is_floating_point() and wide.numel() >= 60:
            assert_accurate(ours, wide, theirs, name)
        else:
            torch.testing.assert_close(ours.double(), wide.double(), rtol=1e-4, atol=1e-4)
