"""``fuse`` on the blocks of the public repositories, as each of them builds them (about 30 s).

Equal outputs in eval and in training, gradients and running statistics; what is in whose epilogue;
hooks, layers and attributes that change afterwards; frozen BatchNorms.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import itertools
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import Draw, assert_accurate_over_draws
from ops.chosen_backend import Backend
from ops.modules_under_test import Results, collect, randomize, stock_ways
from ops.public_blocks import (
    FlatBlock,
    MmBlock,
    MmConv,
    MmConvModule,
    PtvBlock,
    PtvBottleneck,
    PtvBranch,
    PtvConv,
    VmzBlock,
    factored,
    on_views,
)
from torch import Tensor, nn

from r21d_ops import Conv2Plus1D, fuse, fuse_report
from r21d_ops.frozen import looks_frozen, why_not_frozen
from r21d_ops.modules import conv_norm_act

pytestmark = pytest.mark.usefixtures("poisoned")

_TWO = "conv1.0.3: norm, ReLU; conv2.0.3: norm, shortcut, ReLU"
_MM = "conv1.conv.conv_t: norm, ReLU; conv2.conv.conv_t: norm, shortcut, ReLU"
_MM_DOWN = (
    "conv1.conv.conv_t: norm, ReLU; downsample.conv.conv_t: norm; "
    "conv2.conv.conv_t: norm, shortcut, ReLU"
)

#: A module of (N, 5, T, H, W), and the epilogue of its outermost row.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vmz": (lambda: VmzBlock(5, 5), _TWO),
    "vmz-down": (lambda: VmzBlock(5, 6, 2), _TWO),
    "mmaction2-conv": (lambda: MmConv(5, 6, stride=(2, 1, 1)), ""),
    "mmaction2": (lambda: MmBlock(5, 5), _MM),
    "mmaction2-down": (lambda: MmBlock(5, 6, 2), _MM_DOWN),
    "pytorchvideo-conv": (lambda: PtvConv(5, 6), ""),
    "pytorchvideo": (lambda: ptv_block(1), "conv_b.conv_t: norm, ReLU"),
    "pytorchvideo-down": (lambda: ptv_block(2), "conv_b.conv_t: norm, ReLU"),
    "pytorchvideo-basic": (
        lambda: PtvBlock(PtvBranch(5, 5), None, 5),
        "branch2.conv.conv_t: norm, shortcut, ReLU",
    ),
    "flat": (FlatBlock, "time: norm, shortcut, ReLU"),
}


def ptv_block(stride: int, xy_first: bool = True) -> PtvBlock:
    """pytorchvideo's bottleneck in its residual block, 5 channels in and out."""
    shortcut = nn.Conv3d(5, 5, 1, stride, bias=False) if stride != 1 else None
    return PtvBlock(PtvBottleneck(5, 4, 5, stride, xy_first), shortcut, 5)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    """A block in eval, and what is in the epilogues of its outermost row."""
    make, epilogue = FAMILIES[request.param]
    return randomize(make()).eval(), epilogue


@pytest.fixture
def x() -> Tensor:
    """(2, 5, 4, 9, 8)."""
    return torch.randn(2, 5, 4, 9, 8)


def same(fused: nn.Module, stock: nn.Module, x: Tensor) -> None:
    """The same outputs, for inputs of the shape of ``x``, in the grad mode in force."""
    exact, ways = copy.deepcopy(stock).double(), stock_ways(stock)

    def draw() -> Draw:
        given = torch.randn_like(x)
        return fused(given), exact(given.double()), [way(given) for way in ways]

    assert_accurate_over_draws(draw)


@pytest.mark.parametrize("gradients", [False, True])
def test_eval(gradients: bool, family: tuple[nn.Module, str], backend: Backend, x: Tensor) -> None:
    stock, _ = family
    with torch.set_grad_enabled(gradients):
        same(fuse(stock), stock, x)


def _settle(module: nn.Module, x: Tensor) -> nn.Module:
    """Away from the ReLUs' corner, where a rounding error turns a gradient on or off.

    By six deviations and no more: the gradient of a convolution between two norms is what is left
    of sums in which this shift cancels, and a larger one leaves their rounding, a few draws of
    chance.  Of the channels of the inner norms, which are 7 and 2, half pass and half do not; the
    outer norms let all pass.  Running statistics are a batch's, so that it holds for frozen ones.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        signs = torch.randperm(norm.num_features) % 2 * 2 - 1
        inner = norm.num_features in (2, 7)
        norm.bias.data = 6.0 * norm.weight.data * (signs if inner else signs.abs())
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module


@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
def test_training_step(
    frozen: bool, family: tuple[nn.Module, str], backend: Backend, x: Tensor
) -> None:
    """Outputs, gradients of everything, running statistics; also with BatchNorms left in eval."""
    # A shortcut that is small beside six deviations of the norm to which it is added.
    x = 0.25 * x
    stock = _settle(family[0], x)
    for norm in stock.modules():
        norm.training &= not (frozen and isinstance(norm, nn.BatchNorm3d))
    fused, exact = fuse(stock), copy.deepcopy(stock).double()
    ways = [*stock_ways(stock), on_views(stock)]
    state = stock.state_dict()
    shape = stock(x).shape

    def step() -> tuple[Results, Results, list[Results]]:
        given, grad = 0.25 * torch.randn_like(x), torch.randn(shape)
        for module in (fused, exact, *ways):
            module.load_state_dict(state)
        return (
            collect(fused, given, grad),
            collect(exact, given.double(), grad.double()),
            [collect(way, given, grad) for way in ways],
        )

    @functools.lru_cache
    def steps(_: int) -> list[tuple[Results, Results, list[Results]]]:
        # The errors of one step share the rounding of a few sums; several steady their ratio.
        return [step() for _ in range(3)]

    def draw(name: str, numbers: Iterator[int]) -> Draw:
        of = steps(next(numbers))
        stocks = [torch.stack([s[2][way][name] for s in of]) for way in range(len(ways))]
        return torch.stack([s[0][name] for s in of]), torch.stack([s[1][name] for s in of]), stocks

    for name, value in steps(0)[0][0].items():
        if value.is_floating_point():
            assert_accurate_over_draws(functools.partial(draw, name, itertools.count()), name)
        else:
            assert torch.equal(value, steps(0)[0][1][name]), name


def test_what_is_kept_and_reported(family: tuple[nn.Module, str]) -> None:
    stock, epilogue = family
    before = fuse_report(stock)
    fused = fuse(stock)
    assert isinstance(fused, type(stock)) and repr(fused).startswith(type(stock).__name__)
    assert list(fused.state_dict()) == list(stock.state_dict())
    rows = fuse_report(fused)
    assert [row.name for row in rows] == [row.name for row in before]
    assert all(row.fused and not row.reason for row in rows), rows
    assert all(not row.fused and "fuse(model) would" in row.reason for row in before), before
    assert rows[0].epilogue == epilogue and epilogue in before[0].reason


def test_copies_pickles_and_a_second_fuse(
    family: tuple[nn.Module, str], backend: Backend, x: Tensor
) -> None:
    fused = fuse(family[0])
    rows = fuse_report(fused)
    with torch.no_grad():
        expected = fused(x)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            twin = pickle.loads(pickle.dumps(fused, protocol))
            assert fuse_report(twin) == rows and torch.equal(twin(x), expected)
        for twin in (copy.deepcopy(fused), fuse(fused), fuse(fuse(copy.deepcopy(fused)))):
            assert fuse_report(twin) == rows and torch.equal(twin(x), expected)
    assert fuse(fused, inplace=True) is fused and fuse_report(fused) == rows


def test_inplace_keeps_the_objects(family: tuple[nn.Module, str], x: Tensor) -> None:
    model = nn.Sequential(family[0]).train()
    parameters, block = dict(model.named_parameters()), model[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert fuse(model, inplace=True) is model and model[0] is block
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(x).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert not torch.equal(parameter, before[name]), name


def test_every_hook_fires_and_counts(family: tuple[nn.Module, str], x: Tensor) -> None:
    """On each module in turn, one that changes the output: the same as without ``fuse``."""
    stock, _ = family
    fused = fuse(stock)
    for name, module in stock.named_modules():
        fired: list[str] = []

        def hook(module: nn.Module, args: object, y: Tensor, fired: list[str] = fired) -> Tensor:
            fired.append("")
            return 2 * y

        handles = [module.register_forward_hook(hook)]
        handles.append(fused.get_submodule(name).register_forward_hook(hook))
        with torch.no_grad():
            expected = stock(x)
            calls = len(fired)
            torch.testing.assert_close(fused(x), expected)
        assert len(fired) == 2 * calls, name
        for handle in handles:
            handle.remove()
    assert all(row.fused for row in fuse_report(fused))


def test_a_hook_is_the_reason_that_is_reported() -> None:
    fused = fuse(nn.Sequential(MmBlock(5, 5)))
    handle = fused[0].conv1.register_forward_hook(lambda *_: None)
    rows = {row.name: row for row in fuse_report(fused)}
    assert rows["0"][2:4] == (False, "MmConvModule carries a hook")
    assert rows["0.conv1.conv"].fused
    handle.remove()
    assert all(row.fused for row in fuse_report(fused))


def test_global_hook(x: Tensor) -> None:
    block = fuse(MmBlock(5, 5)).eval()
    seen = []
    with torch.no_grad():
        handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
        try:
            block(x)
        finally:
            handle.remove()
    assert seen.count(nn.BatchNorm3d) == 4 and seen.count(nn.ReLU) == 4


def test_temporal_first_is_left_alone_and_reported(x: Tensor) -> None:
    block = randomize(ptv_block(2, xy_first=False)).eval()
    types = [type(m) for m in block.modules()]
    fused = fuse(block)
    assert [type(m) for m in fused.modules()] == types
    (row,) = fuse_report(fused)
    assert row.name == "branch2.conv_b" and not row.fused
    assert row.reason == "its temporal convolution comes before the spatial one"


# --- Forwards that differ a little ------------------------------------------------------------


class _Scaled(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(0.5 * self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


class _Clipped(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = self.time(nn.functional.relu6(self.inner(self.space(x))))
        return torch.relu(self.outer(y) + x)


class _Dropped(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.inner(self.space(x)))
        y = self.time(nn.functional.dropout(y, 0.5, self.training))
        return torch.relu(self.outer(y) + x)


class _Tuple(FlatBlock):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class _Alpha(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(self.time(torch.relu(self.inner(self.space(x)))))
        return torch.relu(torch.add(y, x, alpha=2))


class _Guarded(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if bool(y.isfinite().all()) else x


class _Sized(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[2] > 1 else x


class _Wide(FlatBlock):
    """Something of the convolutions' is done in float32 whatever autocast says."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


class _Cut(FlatBlock):
    """The first layers are not trained, without a word to them."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.space(x)
        return torch.relu(self.outer(self.time(torch.relu(self.inner(y)))) + x)


class _Counting(FlatBlock):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class _Keeping(FlatBlock):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return super().forward(x)


class _BufferCounting(FlatBlock):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(x)


class _IntoInput(FlatBlock):
    """The shortcut, which is the caller's tensor, takes the sum."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.outer(self.time(torch.relu(self.inner(self.space(x)))))
        return torch.relu(x)


class _InPlaceFirst(FlatBlock):
    """A preactivated block: ReLU writes to the caller's tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.time(torch.relu(self.inner(self.space(self.first(x)))))
        return torch.relu(self.outer(y) + x)


class _InPlaceBehindIdentity(FlatBlock):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.time(torch.relu(self.inner(self.space(x))))
        return torch.relu(self.outer(y) + self.same(x).relu_())


class _SeenTwice(FlatBlock):
    """What the spatial convolution makes is used again."""

    def __init__(self) -> None:
        super().__init__(7)
        self.space = nn.Conv3d(5, 7, (1, 3, 3), padding=(0, 1, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.space(x)
        return torch.relu(self.outer(self.time(torch.relu(self.inner(u)))) + u)


class _AsksForATensor(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if isinstance(x, Tensor) else y


class _AsksForGradients(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else x


class _AsksForAutocast(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x if torch.is_autocast_enabled("cpu") else super().forward(x)


class _AsksForTraining(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2 if self.training else x


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.relu()


class _CustomFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Swish.apply(x)


class _WithCustomFunction(FlatBlock):
    """torch.fx's stand-ins must never reach compiled code."""

    def __init__(self) -> None:
        super().__init__()
        self.act = _CustomFunction()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


class _Checkpointed(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.utils.checkpoint.checkpoint(self.space, x, use_reentrant=True)
        return torch.relu(self.outer(self.time(torch.relu(self.inner(y)))) + x)


class _Drops(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(1).item() < 0.05:
            return x
        return torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


class _Rolls(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        if random.random() < 0:  # never, but it draws
            return x
        return torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


class _Stores(FlatBlock):
    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, object] = {"seen": None}

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)
        self.store["seen"] = y
        return y


class _Prints(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        print("forward")
        return torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


class _AsksForTheType(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            return x
        return torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


class _AsksForTheDtype(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        if next(self.parameters()).dtype != torch.float32:
            return x
        return torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


class _AsksForALayersSetting(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        if self.outer.eps > 1:
            return x
        return torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


class _AsksForAGate(FlatBlock):
    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        if self.gate:
            x = torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)
        return x


SWITCH = True


class _AsksForAGlobal(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)
        return y if SWITCH else x


class _Decorated(FlatBlock):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x)


_UNKNOWN = "is not known to be a layer, a sum or a ReLU: "

_DIFFERENT = {
    _Scaled: _UNKNOWN + "0.5 * self.outer",
    _Clipped: _UNKNOWN + "nn.functional.relu6(",
    _Dropped: _UNKNOWN + "nn.functional.dropout(",
    _Tuple: _UNKNOWN + "super().forward(x)",
    _Alpha: "its forward calls add(a tensor, a tensor, alpha=2)",
    _Guarded: _UNKNOWN + "super().forward(x)",
    _Sized: _UNKNOWN,
    _Wide: _UNKNOWN + "with torch.autocast",
    _Cut: _UNKNOWN + "with torch.no_grad",
    _Counting: _UNKNOWN + "self.calls += 1",
    _Keeping: _UNKNOWN + "self.seen.append",
    _BufferCounting: _UNKNOWN + "self.calls.add_",
    _IntoInput: "its forward changes in place what can be seen elsewhere",
    _InPlaceFirst: "its forward changes in place what can be seen elsewhere",
    _InPlaceBehindIdentity: "its forward changes in place what can be seen elsewhere",
    _SeenTwice: "its layers run as Conv3d, BatchNorm3d, relu, Conv3d, BatchNorm3d, add, relu",
    _AsksForATensor: _UNKNOWN + "super().forward(x)",
    _AsksForGradients: _UNKNOWN,
    _AsksForAutocast: _UNKNOWN,
    _AsksForTraining: _UNKNOWN,
    _WithCustomFunction: _UNKNOWN + "_Swish.apply(x)",
    _Checkpointed: "its forward",
    _Drops: _UNKNOWN + "torch.rand(1).item()",
    _Rolls: _UNKNOWN + "random.random()",
    _Stores: "its forward keeps something",
    _Prints: _UNKNOWN + "print('forward')",
    _AsksForTheType: _UNKNOWN + "type(x)",
    _AsksForTheDtype: _UNKNOWN + "next(self.parameters()).dtype",
    _AsksForALayersSetting: _UNKNOWN + "self.outer.eps",
    _AsksForAGate: "its forward reads gate, a Tensor",
    _AsksForAGlobal: _UNKNOWN + "SWITCH",
    _Decorated: "is not a plain method",
}


@pytest.mark.parametrize("kind", _DIFFERENT, ids=lambda kind: kind.__name__)
def test_other_forwards_are_left_alone_and_reported(kind: type[FlatBlock], x: Tensor) -> None:
    block = randomize(kind()).eval()
    before = copy.deepcopy({k: v for k, v in vars(block).items() if not k.startswith("_")})
    for rows in (fuse_report(block), fuse_report(fuse(block))):
        (row,) = rows
        assert not row.fused and _DIFFERENT[kind] in row.reason, row.reason
    fused = fuse(block)
    assert type(fused) is kind
    assert {k: v for k, v in vars(fused).items() if not k.startswith("_")} == before
    with torch.no_grad():
        torch.testing.assert_close(fused(x.clone()), block(x.clone()))


class _Unused(FlatBlock):
    """The last ReLU's result is not what is returned."""

    def forward(self, x: Tensor) -> Tensor:
        _, _, _, _, _ = x.shape
        y = self.outer(self.time(torch.relu(self.inner(self.space(x))))) + x
        torch.relu(y)
        return y


def test_what_is_returned_is_no_longer_part_of_an_epilogue(x: Tensor) -> None:
    block = randomize(_Unused()).eval()
    fused = fuse(block)
    assert fuse_report(fused)[0].epilogue == "time: norm, shortcut"
    with torch.no_grad():
        same(fused, block, x)


class _Bias(FlatBlock):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Conv3d(7, 5, (3, 1, 1), padding=(1, 0, 0))


class _Groups(FlatBlock):
    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Conv3d(5, 7, (1, 3, 3), padding=(0, 2, 2), dilation=(1, 2, 2), bias=False)


class _Replicated(FlatBlock):
    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Conv3d(
            5, 7, (1, 3, 3), padding=(0, 1, 1), padding_mode="replicate", bias=False
        )


class _Hardtanh(MmConv):
    def __init__(self) -> None:
        super().__init__(5, 5)
        self.relu = nn.ReLU6()  # type: ignore[assignment]


class _Subclassed(MmConv):
    def __init__(self) -> None:
        super().__init__(5, 5)
        self.conv_s.__class__ = type("Conv3d", (nn.Conv3d,), {})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_Bias, "the temporal convolution has a bias"),
        (_Groups, "groups, dilation or padding mode of the spatial convolution"),
        (_Replicated, "groups, dilation or padding mode of the spatial convolution"),
        (_Hardtanh, "ReLU6 in place of ReLU"),
        (_Subclassed, "its forward"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_layers_are_left_alone_and_reported(kind: type[nn.Module], reason: str) -> None:
    (row,) = fuse_report(fuse(kind()))
    assert not row.fused and reason in row.reason, row.reason


def test_a_block_that_cannot_be_followed_keeps_its_fused_convolutions(x: Tensor) -> None:
    block = randomize(MmBlock(5, 5, with_cp=True)).eval()
    fused = fuse(block)
    assert type(fused) is MmBlock
    rows = {row.name: row for row in fuse_report(fused)}
    assert not rows[""].fused and "flags of its input" in rows[""].reason
    assert all(row.fused for name, row in rows.items() if name)
    same(fused, block, x)


def test_bottlenecks_without_a_2plus1d_convolution_are_no_candidates() -> None:
    class Slow(PtvBottleneck):
        def __init__(self) -> None:
            super().__init__(5, 4, 5, 1)
            self.conv_b = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1), bias=False)

    assert fuse_report(PtvBlock(Slow(), None, 5)) == []


class _EvalReLU(FlatBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(self.time(torch.relu(self.inner(self.space(x)))))
        return y if self.training else torch.relu(y)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_what_differs_by_mode_is_fused_in_eval(training: bool, gradients: bool, x: Tensor) -> None:
    block = randomize(_EvalReLU()).train(training)
    fused = fuse(block)
    expected = (True, "in eval without gradients alone", "time: norm, ReLU")
    assert fuse_report(fused)[0][2:] == expected
    with torch.set_grad_enabled(gradients):
        same(fused, block, x)


class _Network(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.BatchNorm3d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x))


def _module() -> nn.Module:
    return MmConvModule(MmConv(5, 5), 5)


@pytest.mark.parametrize(
    ("layers", "is_followed"),
    [
        (lambda: [MmConv(5, 5), nn.BatchNorm3d(5), nn.ReLU()], True),
        (lambda: [_module(), nn.BatchNorm3d(5), nn.Flatten(), nn.Linear(9, 9)], False),
        (lambda: [VmzBlock(5, 5), nn.BatchNorm3d(5)], False),
        (lambda: [*(MmConv(5, 5) for _ in range(5)), nn.BatchNorm3d(5)], False),
        (lambda: [_Wrapped(_module())], False),
    ],
    ids=["a block", "with a head", "around a block", "many convolutions", "far from them"],
)
def test_whole_networks_are_not_followed(
    layers: Callable[[], list[nn.Module]], is_followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["r21d_ops.fuse"]
    followed: list[type] = []
    trace = module.trace

    def watched(module: nn.Module, *arguments: object) -> object:
        followed.append(type(module))
        return trace(module, *arguments)

    monkeypatch.setattr(module, "trace", watched)
    rows = fuse_report(fuse(_Network(*layers())))
    assert (_Network in followed) == is_followed
    assert all(row.fused for row in rows) and ("" in [r.name for r in rows]) == is_followed


def test_a_forward_put_on_the_object_is_left_alone(x: Tensor) -> None:
    module = MmConv(5, 5).eval()
    plain = module.forward
    module.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]
    expected = module(x)
    (row,) = fuse_report(fuse(module, inplace=True))
    assert not row.fused and row.reason == "MmConv has a forward of its own"
    assert torch.equal(module(x), expected)


class _Final(MmConv):
    """A class that forbids others to extend it."""

    def __init_subclass__(cls) -> None:
        raise TypeError("final")


def test_a_class_that_cannot_be_extended_is_left_alone() -> None:
    (row,) = fuse_report(fuse(_Final(5, 5)))
    assert not row.fused and row.reason == "_Final cannot be extended: final"


class _ByItself(nn.Module):
    fused_by_itself = True

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = Conv2Plus1D(5, 5, 7), nn.BatchNorm3d(5)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_act(self.conv, self.norm, x, residual=x, relu=True)


def test_what_is_fused_by_itself_is_left_alone() -> None:
    model = nn.Sequential(_ByItself())
    fused = fuse(model)
    assert type(fused[0]) is _ByItself
    assert [row.name for row in fuse_report(fused)] == ["0.conv"]


# --- What changes afterwards ------------------------------------------------------------------


def _no_activation(block: nn.Module) -> None:
    block.conv1.with_activation = False  # type: ignore[union-attr]


def _other_order(block: nn.Module) -> None:
    block.conv2.order = ("conv",)  # type: ignore[union-attr]


def _identity_norm(block: nn.Module) -> None:
    block.conv1.bn = nn.Identity()  # type: ignore[union-attr]


def _other_relu(block: nn.Module) -> None:
    block.relu = nn.Hardtanh()  # type: ignore[assignment]


def _inner_relu(block: nn.Module) -> None:
    block.conv1.conv.relu = nn.Tanh()  # type: ignore[union-attr]


def _norm_learns(block: nn.Module) -> None:
    block.conv2.bn.train()  # type: ignore[union-attr]


def _module_learns(block: nn.Module) -> None:
    block.conv2.train()  # type: ignore[union-attr]


def _own_forward(block: nn.Module) -> None:
    block.conv1.forward = lambda x: x  # type: ignore[union-attr,method-assign]


class _Doubling(MmConvModule):
    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        return 2 * super().forward(x, activate, norm)


def _other_class(block: nn.Module) -> None:
    layers = dict(block.conv2.named_children())  # type: ignore[union-attr]
    block.conv2 = _Doubling(layers["conv"], 5, activation=False).eval()
    block.conv2.bn = layers["bn"]


def _weights(block: nn.Module) -> None:
    block.conv1.conv.conv_s.weight.data.mul_(2)  # type: ignore[union-attr]
    block.conv1.bn.running_mean.add_(1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        _no_activation, _other_order, _identity_norm, _other_relu, _inner_relu, _norm_learns,
        _module_learns, _own_forward, _other_class, _weights,
    ],
)  # fmt: skip
def test_changes_after_fuse_count(change: Callable[[nn.Module], None], x: Tensor) -> None:
    stock = randomize(MmBlock(5, 5)).eval()
    fused = fuse(stock)
    for block in (stock, fused):
        change(block)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), stock(x))
        # Whatever is changed, another fuse makes the best of what is there now.
        torch.testing.assert_close(fuse(fused)(x), stock(x))


class _Configured(FlatBlock):
    """Reads its settings wherever Python lets it."""

    of_the_class = True

    def __init__(self) -> None:
        super().__init__()
        self._private = True
        self.register_module("down", None)
        self.act1 = self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.outer(self.time(self.act1(self.inner(self.space(x)))))
        if self.of_the_class and self._private:
            out = out + (x if self.down is None else self.down(x))
        return self.act2(out)


def _clear_private(block: nn.Module) -> None:
    block._private = False  # type: ignore[assignment]


def _shadow_the_class(block: nn.Module) -> None:
    block.of_the_class = False  # type: ignore[assignment]


def _set_what_was_none(block: nn.Module) -> None:
    block.down = nn.Hardtanh()


def _replace_one_of_two_names(block: nn.Module) -> None:
    block.act2 = nn.Tanh()


def _remove(block: nn.Module) -> None:
    del block.act2
    block.act2 = nn.Tanh()


@pytest.mark.parametrize(
    "change",
    [
        *(_clear_private, _shadow_the_class, _set_what_was_none),
        *(_replace_one_of_two_names, _remove),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_every_setting_that_was_read_counts(
    change: Callable[[nn.Module], None], training: bool, x: Tensor
) -> None:
    stock = randomize(_Configured()).train(training)
    fused = fuse(stock)
    assert fuse_report(fused)[0].fused
    for block in (stock, fused):
        change(block)
    assert not fuse_report(fused)[0].fused
    with torch.no_grad():
        same(fused, stock, x)


def test_a_setting_of_the_class_counts(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = randomize(_Configured()).eval()
    fused = fuse(stock)
    monkeypatch.setattr(_Configured, "of_the_class", False)
    assert fuse_report(fused)[0].reason == "_Configured.of_the_class has changed"
    with torch.no_grad():
        same(fused, stock, x)


def test_another_forward_of_the_class_counts(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = randomize(_Configured()).eval()
    fused = fuse(stock)
    monkeypatch.setattr(_Configured, "forward", lambda self, x: self.space(x))
    assert fuse_report(fused)[0].reason == "_Configured.forward is another now"
    with torch.no_grad():
        assert torch.equal(fused(x), stock(x))


def test_a_shortcut_that_is_removed(x: Tensor) -> None:
    stock = randomize(VmzBlock(5, 5)).eval()
    stock.downsample = nn.Sequential(nn.Conv3d(5, 5, 1, bias=False), nn.BatchNorm3d(5)).eval()
    fused = fuse(stock)
    for block in (stock, fused):
        block.downsample = None
    with torch.no_grad():
        same(fused, stock, x)


def test_modules_in_two_places(x: Tensor) -> None:
    """A module that two share, one inside itself, and a model without any convolution."""
    shared = nn.GELU()
    other = nn.Sequential(nn.Sequential(nn.Linear(3, 3), shared), nn.Sequential(shared))
    assert fuse_report(fuse(other)) == []
    first, second = VmzBlock(5, 5), VmzBlock(5, 5)
    second.relu = first.relu
    second.conv2 = first.conv2
    stock = randomize(nn.Sequential(first, second)).eval()
    fused = fuse(stock)
    assert fused[0].conv2 is fused[1].conv2
    with torch.no_grad():
        same(fused, stock, x)
    stock[0].extra = stock
    assert fuse_report(stock)


class _NormTwice(FlatBlock):
    """Fused, the order in which its statistics change would be another."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.space(x)
        return self.time(torch.relu(self.inner(u))) + self.time(torch.relu(self.inner(u + u)))


def test_layers_that_run_twice_are_left_alone(x: Tensor) -> None:
    stock = randomize(_NormTwice()).train()
    (row,) = fuse_report(fuse(stock))
    assert not row.fused and row.reason


class _PrivateMembers(nn.Sequential):
    def _width(self) -> int:
        return self[0].out_channels


class _Calls(nn.Sequential):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


@pytest.mark.parametrize("kind", [_PrivateMembers, _Calls])
def test_sequences_keep_members_that_begin_with_an_underscore(
    kind: type[nn.Sequential], x: Tensor
) -> None:
    spatial, temporal = factored(5, 7, 5, (3, 3, 3), (1, 1, 1))
    stock = randomize(kind(spatial, nn.BatchNorm3d(7), nn.ReLU(), temporal)).eval()
    fused = fuse(stock)
    assert isinstance(fused, kind)
    if kind is _PrivateMembers:
        assert fused._width() == 7
    with torch.no_grad():
        same(fused, stock, x)


def test_parameters_of_the_forward_are_still_told() -> None:
    names = list(inspect.signature(fuse(FlatBlock()).forward).parameters)
    assert names == ["x"]


def test_source_that_is_not_what_runs_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was edited after its import."""
    source = """
import torch
from ops.public_blocks import FlatBlock

class Edited(FlatBlock):
    def forward(self, x):
        return torch.relu(self.outer(self.time(torch.relu(self.inner(self.space(x))))) - x)
"""
    (tmp_path / "edited_block.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = importlib.import_module("edited_block").Edited
    (tmp_path / "edited_block.py").write_text(source.replace("- x", "+  x"))
    (row,) = fuse_report(fuse(kind()))
    assert not row.fused and row.reason.endswith("forward is not what runs")


def test_a_frozen_norm_that_is_made_to_train(x: Tensor) -> None:
    stock = MmBlock(5, 5)
    stock.conv1.conv.bn_s = NeverTraining(7)
    stock = randomize(stock).eval()
    fused = fuse(stock)
    assert all(row.fused for row in fuse_report(fused))
    for block in (stock, fused):
        block.conv1.conv.bn_s.training = True
    assert not fuse_report(fused)[0].fused
    with torch.no_grad():
        same(fused, stock, x)


def test_another_way_to_join_counts(x: Tensor) -> None:
    fused = fuse(PtvBlock(PtvBranch(5, 5), None, 5)).eval()
    fused.branch_fusion = torch.mul
    with torch.no_grad():
        torch.testing.assert_close(fused(x), torch.relu(x * fused.branch2(x)))
    row = fuse_report(fused)[0]
    assert not row.fused and row.reason == "PtvBlock.branch_fusion has changed"


def test_another_layer_in_a_sequence_counts(x: Tensor) -> None:
    stock = randomize(VmzBlock(5, 5)).eval()
    fused = fuse(stock)
    for block in (stock, fused):
        block.conv2.append(nn.Tanh())
    row = fuse_report(fused)[0]
    assert not row.fused and row.reason == "the layers of Sequential are others now"
    again = fuse(fused)
    assert fuse_report(again)[0].fused
    with torch.no_grad():
        same(fused, stock, x)
        same(again, stock, x)


def test_other_arguments_reach_the_class(x: Tensor) -> None:
    stock = randomize(MmBlock(5, 5)).eval()
    fused = fuse(stock)
    with torch.no_grad():
        for arguments in ({"activate": False}, {"norm": False}):
            expected = stock.conv1(x, **arguments)
            torch.testing.assert_close(fused.conv1(x, **arguments), expected)
        torch.testing.assert_close(fused(x=x), stock(x))


def test_a_shortcut_that_broadcasts(x: Tensor) -> None:
    stock = randomize(VmzBlock(5, 5)).eval()
    stock.downsample = nn.AdaptiveAvgPool3d(1)
    fused = fuse(stock)
    assert fuse_report(fused)[0].epilogue == _TWO
    with torch.no_grad():
        torch.testing.assert_close(fused(x), stock(x))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_shortcut_of_another_dtype(in_place: bool, x: Tensor) -> None:
    """Under autocast the input stays float32, and the sum is what PyTorch makes of the two."""
    stock = randomize(VmzBlock(5, 5) if in_place else MmBlock(5, 5)).eval()
    fused = fuse(stock)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = stock(x)
        assert expected.dtype == (torch.bfloat16 if in_place else torch.float32)
        assert fused(x).dtype == expected.dtype
        exact, ways = copy.deepcopy(stock).double(), stock_ways(stock)

        def draw() -> Draw:
            given = torch.randn_like(x)
            return fused(given), exact(given.double()), [way(given) for way in ways]

        assert_accurate_over_draws(draw)


class _IntoShortcut(VmzBlock):
    """The sum takes the shortcut's place, and its dtype."""

    def forward(self, x: Tensor) -> Tensor:
        residual = self.downsample(x)  # type: ignore[misc]
        residual += self.conv2(self.conv1(x))
        return self.relu(residual)


def test_a_sum_in_the_shortcuts_place(x: Tensor) -> None:
    stock = randomize(_IntoShortcut(5, 6)).eval()
    assert stock.downsample is not None
    stock.downsample[1] = TorchvisionFrozen(6)
    fused = fuse(stock)
    assert fuse_report(fused)[0].epilogue == "conv1.0.3: norm, ReLU; conv2.0.3: norm"
    with torch.no_grad():
        same(fused, stock, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fused(x).dtype == stock(x).dtype == torch.float32


class _Learning(VmzBlock):
    """Something else while it learns, which its plan is not made from."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        if self.training:
            y = y + y
        return self.relu(y + x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_block_that_differs_while_it_learns(training: bool, gradients: bool, x: Tensor) -> None:
    stock = randomize(_Learning(5, 5)).train(training)
    # The norms in eval: whose flag counts is the block's.
    for norm in stock.modules():
        norm.training &= not isinstance(norm, nn.BatchNorm3d)
    fused = fuse(stock)
    assert fuse_report(fused)[0].fused
    with torch.set_grad_enabled(gradients):
        same(fused, stock, x)


def test_data_parallel_replicas(x: Tensor) -> None:
    """Replicas share ``__dict__``'s values and hold parameters as plain attributes."""
    fused = fuse(randomize(MmBlock(5, 6, 2))).eval()
    originals = list(fused.modules())
    replicas = {id(m): m._replicate_for_data_parallel() for m in originals}
    for module in originals:
        replica = replicas[id(module)]
        for name, child in module._modules.items():
            if child is not None:
                replica._modules[name] = replicas[id(child)]
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.detach().clone())
    with torch.no_grad():
        assert torch.equal(replicas[id(fused)](x), fused(x))


class _Uncopyable:
    """A hook that holds what cannot be copied, such as an open file."""

    def __call__(self, *_: object) -> None: ...

    def __deepcopy__(self, memo: object) -> None:
        raise TypeError("not to be copied")


def test_hooks_that_cannot_be_copied(x: Tensor) -> None:
    model = MmBlock(5, 5).eval()
    model.register_forward_hook(_Uncopyable())
    assert all(row.fused for row in fuse_report(fuse(model, inplace=True)))


def test_nothing_of_the_user_changes(x: Tensor) -> None:
    """Not the random numbers to come, not the flags, no hook is run, nothing is counted."""
    model = randomize(MmBlock(5, 6, 2)).train()
    model.conv1.eval()
    model.conv2.conv.bn_s = TorchvisionFrozen(7)
    fired: list[int] = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: fired.append(1))
        module.register_forward_pre_hook(lambda *_: fired.append(1))
    flags = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    fuse(model, inplace=True)
    fuse_report(model)
    assert torch.equal(torch.get_rng_state(), random) and not fired
    assert [m.training for m in model.modules()] == flags and torch.is_grad_enabled()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True)
    )


# --- Frozen and synchronised norms ------------------------------------------------------------


class _FrozenBase(nn.Module):
    """What torchvision's, detectron2's and others' frozen BatchNorms hold."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(channels))

    def _affine(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return scale.reshape(1, -1, 1, 1, 1), shift.reshape(1, -1, 1, 1, 1)


class TorchvisionFrozen(_FrozenBase):
    """As ``torchvision.ops.FrozenBatchNorm2d``, for clips."""

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._affine()
        return x * scale + shift


class Detectron2Frozen(_FrozenBase):
    """As detectron2's, which asks whether a gradient is wanted."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            scale, shift = self._affine()
            return x * scale.to(x.dtype) + shift.to(x.dtype)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class NeverTraining(nn.BatchNorm3d):
    """A BatchNorm that refuses to train."""

    def train(self, mode: bool = True) -> NeverTraining:
        return super().train(False)


class ForgetsEps(_FrozenBase):
    def forward(self, x: Tensor) -> Tensor:
        self, eps = copy.copy(self), 1e-6
        self.eps = eps
        scale, shift = self._affine()
        return x * scale + shift


class OfABranch(_FrozenBase):
    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._affine()
        return x * scale + (0 * shift if x.requires_grad else shift)


class Writes(_FrozenBase):
    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._affine()
        x *= scale
        return x.add_(shift)


class Learns(_FrozenBase):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.mul_(0.9)
        scale, shift = self._affine()
        return x * scale + shift


class Sized(_FrozenBase):
    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._affine()
        return x * scale + shift if x.shape[2] < 100 else x


def _with_norms(kind: Callable[[int], nn.Module], flat: bool) -> nn.Module:
    """A block, flat or of sequences, with norms of one kind."""
    if flat:
        block: nn.Module = FlatBlock()
        block.inner, block.outer = kind(7), kind(5)
        return block
    block = VmzBlock(5, 5)
    for sequence in (block.conv1, block.conv2):
        sequence[0][1], sequence[1] = kind(7), kind(5)
    return block


@pytest.mark.parametrize("flat", [False, True], ids=["sequences", "attributes"])
@pytest.mark.parametrize("kind", [TorchvisionFrozen, Detectron2Frozen, NeverTraining])
def test_frozen_norms(kind: type[nn.Module], flat: bool, backend: Backend, x: Tensor) -> None:
    stock = randomize(_with_norms(kind, flat)).eval()
    fused = fuse(stock)
    rows = fuse_report(fused)
    assert all(row.fused for row in rows), rows
    assert rows[0].epilogue == ("time: norm, shortcut, ReLU" if flat else _TWO)
    with torch.no_grad():
        same(fused, stock, x)
    same(fused.train(), stock.train(), x)
    given = x.clone().requires_grad_()
    fused(given).sum().backward()
    assert given.grad is not None and given.grad.isfinite().all()


@pytest.mark.parametrize("kind", [ForgetsEps, OfABranch, Writes, Learns, Sized])
def test_frozen_norms_that_compute_something_else(kind: type[nn.Module], x: Tensor) -> None:
    stock = _with_norms(kind, flat=True).eval()
    fused = fuse(stock)
    assert type(fused) is FlatBlock, kind
    (row,) = fuse_report(fused)
    assert not row.fused and row.reason.startswith(kind.__name__), row.reason


class AbsoluteWeight(_FrozenBase):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs() * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1, 1) + shift.reshape(1, -1, 1, 1, 1)


class ClampsVariance(_FrozenBase):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var.clamp(min=0.1) + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1, 1) + shift.reshape(1, -1, 1, 1, 1)


class ClampsOutput(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-8, 8)


class ClampsLargeOutput(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-65504, 65504)


class HidesNaN(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).nan_to_num(0.0, float("inf"), float("-inf"))


class Rounds(TorchvisionFrozen):
    """In float32, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class OfADtype(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if x.dtype == torch.bfloat16 else y


class OfAutocast(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if torch.is_autocast_enabled("cpu") else y


class OfGradMode(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if torch.is_grad_enabled() else 2 * y


class Gated(TorchvisionFrozen):
    """By a buffer that is one for now."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("gate", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gate


class WithParameters(TorchvisionFrozen):
    """Its weight and bias learn, its statistics do not."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        for name in ("weight", "bias"):
            vector = self._buffers.pop(name)
            assert vector is not None
            setattr(self, name, nn.Parameter(vector))


class DetachesWeight(WithParameters):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.detach() * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1, 1) + shift.reshape(1, -1, 1, 1, 1)


class DetachesInput(WithParameters):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class WithoutGrad(WithParameters):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class HalvesGradients(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.5 * x + 0.5 * x.detach())


class _Affine(torch.autograd.Function):
    """x·a + b whose gradient is right with ``sign`` 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(a)
        ctx.sign = sign
        return x * a + b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return ctx.sign * grad * ctx.saved_tensors[0], None, None, None


class OwnFunction(_FrozenBase):
    sign = 1

    def forward(self, x: Tensor) -> Tensor:
        return _Affine.apply(x, *self._affine(), self.sign)


class OwnFunctionBackwards(OwnFunction):
    sign = -1


class Draws(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(())
        return super().forward(x)


class DrawsInPython(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        random.random()
        return super().forward(x)


class DrawsInNumpy(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        np.random.rand()
        return super().forward(x)


class Holds(TorchvisionFrozen):
    """A list, which its owner may fill later."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self._scales: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * sum(self._scales) if self._scales else y


class Counts(TorchvisionFrozen):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class CountsInItsClass(TorchvisionFrozen):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)


class TurnsOff(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        self.training = False
        return super().forward(x)


class Replaces(TorchvisionFrozen):
    """Its statistics, by equal ones."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.running_mean = self.running_mean.clone()
        return y


class Deletes(TorchvisionFrozen):
    deleted = 0

    def __del__(self) -> None:
        type(self).deleted += 1


class Calls(TorchvisionFrozen):
    def __call__(self, *args: Any) -> Any:
        return 2 * super().__call__(*args)


class Raises(TorchvisionFrozen):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError


class MakesTwo(TorchvisionFrozen):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


_OTHER = "does not compute BatchNorm with constant statistics"
_NOT_FROZEN = {
    ForgetsEps: _OTHER,
    OfABranch: _OTHER,
    Writes: "changes its input",
    Sized: _OTHER,
    AbsoluteWeight: _OTHER,
    ClampsVariance: _OTHER,
    ClampsOutput: _OTHER,
    ClampsLargeOutput: _OTHER,
    HidesNaN: _OTHER,
    Rounds: _OTHER,
    OfADtype: _OTHER,
    OfAutocast: _OTHER,
    OfGradMode: _OTHER,
    Gated: _OTHER,
    DetachesWeight: "does not make BatchNorm's gradient of weight",
    DetachesInput: "does not make BatchNorm's gradient of x",
    WithoutGrad: "does not keep the gradients that BatchNorm has",
    HalvesGradients: "does not make BatchNorm's gradient of x",
    OwnFunctionBackwards: "does not make BatchNorm's gradient of x",
    Draws: "draws random numbers",
    DrawsInPython: "draws random numbers",
    DrawsInNumpy: "draws random numbers",
    Holds: "holds _scales, a list that may change",
    Counts: "changes its own attributes",
    CountsInItsClass: "changes its class",
    TurnsOff: "changes its own flags",
    Replaces: "changes its statistics",
    Deletes: "has a __del__, which a twin would run",
    Calls: "is called in a way of its own",
    Raises: "cannot be run on a tensor to see what it computes: RuntimeError",
    MakesTwo: "does not make one tensor of the shape and dtype of its input",
}


@pytest.mark.parametrize("kind", _NOT_FROZEN)
def test_why_a_norm_is_not_frozen(kind: type[nn.Module]) -> None:
    norm = kind(3)
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    assert looks_frozen(norm)
    assert why_not_frozen(norm) == f"{kind.__name__} {_NOT_FROZEN[kind]}"
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(np.random.get_state())) == states[1:]
    assert getattr(kind, "deleted", 0) == 0


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("channels", [1, 3, 65])
@pytest.mark.parametrize("kind", [TorchvisionFrozen, Detectron2Frozen, WithParameters, OwnFunction])
def test_a_frozen_norm_is_recognised(kind: type[_FrozenBase], channels: int, eps: float) -> None:
    """Also in the user's inference mode, with hooks, and with learned vectors that are kept."""
    norm = kind(channels, eps) if kind is not WithParameters else kind(channels)
    norm.register_forward_hook(_Uncopyable())
    with torch.inference_mode():
        assert looks_frozen(norm) and why_not_frozen(norm) is None
    assert why_not_frozen(norm.requires_grad_(False).bfloat16()) is None


def test_a_forward_of_the_instance() -> None:
    norm = TorchvisionFrozen(3)
    norm.forward = lambda x: x  # type: ignore[method-assign]
    assert why_not_frozen(norm) == "TorchvisionFrozen has a forward of its own"


def test_lazy_norms_do_not_look_frozen() -> None:
    class Lazy(nn.LazyBatchNorm3d):
        """Its vectors have no shape yet."""

    assert not looks_frozen(Lazy())
    fuse_report(nn.Sequential(Lazy()))


def test_a_frozen_norm_in_ours(x: Tensor) -> None:
    """A drop-in whose norm was frozen runs fused after another ``fuse``."""
    block = Conv2Plus1D(5, 6, 7)
    block[1] = TorchvisionFrozen(7)
    assert not fuse_report(block)[0].fused
    fused = fuse(block)
    assert isinstance(fused, Conv2Plus1D) and fuse_report(fused)[0].fused
    same(fused, nn.Sequential(*block), x)


class LearnedStatistics(TorchvisionFrozen):
    """Its mean is a parameter, of which the operator makes no gradient."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        mean = self._buffers.pop("running_mean")
        assert mean is not None
        self.running_mean = nn.Parameter(mean)


def test_a_frozen_norm_whose_statistics_learn() -> None:
    (row,) = fuse_report(fuse(_with_norms(LearnedStatistics, flat=True)))
    assert not row.fused
    assert row.reason == "the statistics of LearnedStatistics want a gradient"


def test_a_frozen_norm_that_promotes_stays_a_layer(x: Tensor) -> None:
    """Its vectors are float32 in a bfloat16 block, and so is what it makes."""
    stock = _with_norms(TorchvisionFrozen, flat=True).eval().bfloat16()
    stock.outer.float()
    stock.inner = nn.BatchNorm3d(7).bfloat16().eval()
    fused = fuse(stock)
    assert fuse_report(fused)[0].fused
    with torch.no_grad():
        assert fused(x.bfloat16()).dtype == stock(x.bfloat16()).dtype == torch.float32


def test_synchronised_norms(x: Tensor, backend: Backend) -> None:
    stock = randomize(VmzBlock(5, 5)).eval()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fuse(stock))
    fused = fuse(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(stock)))
    for block in (converted, fused):
        rows = fuse_report(block)
        assert all(row.fused for row in rows) and rows[0].epilogue == _TWO, rows
        with torch.no_grad():
            same(block, stock, x)


# --- torchvision's own code, and compilers ----------------------------------------------------


def _narrow(resnet: ModuleType) -> nn.Module:
    """torchvision's BasicBlock and its Conv2Plus1D, 5 channels in and 6 out."""
    shortcut = nn.Sequential(nn.Conv3d(5, 6, 1, 2, bias=False), nn.BatchNorm3d(6))
    first = resnet.BasicBlock(5, 6, resnet.Conv2Plus1D, 2, shortcut)
    return randomize(nn.Sequential(first, resnet.BasicBlock(6, 6, resnet.Conv2Plus1D)))


@pytest.mark.parametrize("training", [False, True])
def test_torchvision_blocks(
    training: bool, torchvision_resnet: ModuleType, backend: Backend, x: Tensor
) -> None:
    stock = _narrow(torchvision_resnet).train(training)
    fused = fuse(stock)
    rows = fuse_report(fused)
    assert [row.name for row in rows if row.kind == "BasicBlock"] == ["0", "1"]
    assert all(row.fused for row in rows)
    assert all(row.epilogue == _TWO for row in rows if row.kind == "BasicBlock")
    with torch.set_grad_enabled(training):
        same(fused, stock, x)


def test_the_epilogues_replace_every_stock_layer_of_the_block(
    torchvision_resnet: ModuleType, x: Tensor
) -> None:
    """In eval without gradients nothing but the shortcut's two layers is left to torch.nn."""
    fused = fuse(_narrow(torchvision_resnet)).eval()
    seen: list[str] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if args and isinstance(args[0], Tensor) and args[0].dim() == 5:
                seen.append(function.__name__)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        fused(x)
    assert seen.count("batch_norm") == 1 and seen.count("conv3d") == 1
    assert not {"relu", "relu_", "add", "iadd", "__iadd__", "add_"} & set(seen)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["mmaction2-down", "torchvision"])
def test_compiled_and_exported(name: str, training: bool, torchvision_resnet: ModuleType) -> None:
    torch._dynamo.reset()
    make = FAMILIES[name][0] if name in FAMILIES else lambda: _narrow(torchvision_resnet)
    fused = fuse(randomize(make())).train(training)
    x = torch.randn(2, 5, 4, 9, 8)
    with torch.set_grad_enabled(training):
        expected = copy.deepcopy(fused)(x)
        compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        program = torch.export.export(copy.deepcopy(fused), (x,))
        torch.testing.assert_close(program.module()(x), expected)
