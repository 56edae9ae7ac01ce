"""``fuse`` and ``fuse_report`` on models that somebody already has (about 2 s)."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch
from accuracy import Draw, assert_accurate_over_draws
from ops.chosen_backend import Backend
from ops.modules_under_test import (
    Results,
    TinyNet,
    randomize,
    run_children,
    stock_conv,
    stock_stem,
    stock_ways,
)
from torch import Tensor, nn

import r21d_ops
from r21d_ops import Conv2Plus1D, fuse, fuse_report
from r21d_ops.modules import FusedSequential, conv_norm_act

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def model() -> TinyNet:
    """A stock model whose norms are not the identity, in eval."""
    net = randomize(TinyNet()).eval()
    assert isinstance(net, TinyNet)
    return net


@pytest.fixture
def x() -> Tensor:
    """(2, 3, 5, 10, 9)."""
    return torch.randn(2, 3, 5, 10, 9)


def _same(fused: nn.Module, stock: nn.Module, x: Tensor) -> None:
    """The same outputs, for inputs of the shape of ``x``."""
    exact, ways = copy.deepcopy(stock).double(), stock_ways(stock)

    def draw() -> Draw:
        given = torch.randn_like(x)
        return fused(given), exact(given.double()), [way(given) for way in ways]

    assert_accurate_over_draws(draw)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_same_outputs(
    training: bool, inplace: bool, gradients: bool, backend: Backend, model: TinyNet, x: Tensor
) -> None:
    model.train(training)
    stock = copy.deepcopy(model)
    fused = fuse(model, inplace=inplace)
    assert (fused is model) == inplace
    with torch.set_grad_enabled(gradients):
        _same(fused, stock, x)


def test_finds_every_sequence_and_keeps_the_keys(model: TinyNet) -> None:
    keys = list(model.state_dict())
    fused = fuse(model)
    assert isinstance(fused, TinyNet)
    assert isinstance(fused.stem, FusedSequential)
    assert isinstance(fused.block["conv"][0], Conv2Plus1D)
    assert isinstance(fused.down, Conv2Plus1D)
    assert list(fused.state_dict()) == keys
    fused.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(fused.state_dict(), strict=True)


def test_copy_leaves_the_model_alone(model: TinyNet, x: Tensor) -> None:
    types = [type(m) for m in model.modules()]
    fused = fuse(model)
    assert [type(m) for m in model.modules()] == types
    for p, q in zip(model.parameters(), fused.parameters(), strict=True):
        assert p is not q and torch.equal(p, q)


def test_inplace_keeps_parameters_so_that_an_optimizer_goes_on(
    backend: Backend, model: TinyNet, x: Tensor
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    fused = fuse(model.train(), inplace=True)
    for name, parameter in fused.named_parameters():
        assert parameter is parameters[name]
    for name, buffer in fused.named_buffers():
        assert buffer is buffers[name]
    before = fused.down[0].weight.detach().clone()
    fused(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(fused.down[0].weight, before)


def test_twice_is_once(model: TinyNet, x: Tensor) -> None:
    once = fuse(model)
    names = [(name, type(m)) for name, m in once.named_modules()]
    twice = fuse(once, inplace=True)
    assert twice is once
    assert [(name, type(m)) for name, m in twice.named_modules()] == names
    with torch.no_grad():
        assert torch.equal(fuse(once)(x), once(x))


def test_report_before_and_after(model: TinyNet) -> None:
    names = ["stem", "block.conv.0", "down"]
    before = fuse_report(model)
    assert [row.name for row in before] == names
    assert all(not row.fused and "fuse(model)" in row.reason for row in before)
    assert all(row.kind == "Sequential" for row in before)
    after = fuse_report(fuse(model))
    assert [row.name for row in after] == names
    assert [row.kind for row in after] == ["FusedSequential", "Conv2Plus1D", "Conv2Plus1D"]
    assert all(row.fused and row.reason == "" for row in after)


@pytest.mark.parametrize("make", [lambda: stock_conv(3, 8, 4), stock_stem])
@pytest.mark.parametrize("inplace", [False, True])
def test_root_is_a_candidate(make, inplace: bool, backend: Backend, x: Tensor) -> None:  # type: ignore[no-untyped-def]
    root = randomize(make()).eval()
    stock = copy.deepcopy(root)
    fused = fuse(root, inplace=inplace)
    assert isinstance(fused, (Conv2Plus1D, FusedSequential))
    assert fuse_report(fused)[0].fused
    assert list(fused.state_dict()) == list(stock.state_dict())
    if inplace:
        assert next(fused.parameters()) is next(root.parameters())
    _same(fused, stock, x)


def test_shared_module_stays_shared(backend: Backend) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = randomize(stock_conv(3, 7, 3))
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Twice().eval()
    fused = fuse(model)
    assert isinstance(fused.first, Conv2Plus1D) and fused.first is fused.second
    _same(fused, model, torch.randn(1, 3, 4, 8, 8))


class _Own(nn.Sequential):
    """A sequence that is more than its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class _Named(nn.Sequential):
    """torchvision's way: a subclass that keeps the forward of its layers."""


def test_own_forward_is_left_alone_and_reported(backend: Backend, x: Tensor) -> None:
    model = nn.Sequential(randomize(_Own(*stock_conv(3, 7, 4)))).eval()
    fused = fuse(model)
    assert type(fused[0]) is _Own
    (row,) = fuse_report(fused)
    assert row.name == "0" and not row.fused and row.kind == "_Own"
    assert "is not known to be a layer, a sum or a ReLU: super().forward(x)" in row.reason
    with torch.no_grad():
        assert torch.equal(fused(x), model(x))


class _Measured(nn.Sequential):
    """A sequence that its model asks for more than a forward."""

    factor = 2

    def width(self) -> int:
        return self[0].out_channels


class _Frozen(nn.Sequential):
    """The usual way to keep BatchNorm's statistics while the rest trains."""

    def train(self, mode: bool = True) -> _Frozen:
        super().train(mode)
        self[1].eval()
        return self


class _Conv2Plus1D(nn.Sequential):
    """torchvision's has this one method, and ours has it too."""

    @staticmethod
    def get_downsample_stride(stride: int) -> tuple[int, int, int]:
        return stride, stride, stride


@pytest.mark.parametrize("kind", [_Measured, _Frozen])
def test_members_of_its_own_stay(kind: type[nn.Sequential], backend: Backend, x: Tensor) -> None:
    """Fused as a module of its own class, which still has what the class has."""
    model = nn.Sequential(randomize(kind(*stock_conv(3, 7, 4)))).eval()
    fused = fuse(model)
    assert isinstance(fused[0], kind) and not isinstance(fused[0], Conv2Plus1D)
    (row,) = fuse_report(fused)
    assert row == ("0", kind.__name__, True, "", "")
    assert fuse_report(model)[0].reason == "stock layers; fuse(model) would run them fused"
    _same(fused, model, x)
    assert torch.equal(fused[0][:2](x), run_children(fused[0][:2], x))
    if isinstance(fused[0], _Measured):
        assert fused[0].width() == 7 and fused[0].factor == 2
    else:
        assert fused.train()[0].training and not fused[0][1].training
        model.train()
        _same(fused, model, x)


def test_members_that_ours_has_too_do_not_keep_it_from_fusing(backend: Backend, x: Tensor) -> None:
    model = nn.Sequential(randomize(_Conv2Plus1D(*stock_conv(3, 7, 4)))).eval()
    fused = fuse(model)
    assert isinstance(fused[0], Conv2Plus1D)
    assert fused[0].get_downsample_stride(2) == (2, 2, 2)
    _same(fused, model, x)


@pytest.mark.parametrize("make", [lambda: stock_conv(3, 8, 4), stock_stem], ids=["four", "stem"])
@pytest.mark.parametrize(
    "part", [slice(2), slice(1, 4), slice(None), slice(None, None, 2)], ids=str
)
def test_slices_are_sequences_of_the_same_layers(  # type: ignore[no-untyped-def]
    part: slice, make, backend: Backend, x: Tensor
) -> None:
    stock = randomize(make()).eval()
    fused = fuse(stock, inplace=True)
    sliced, expected = fused[part], stock[part]
    # Two layers are no (2+1)D convolution, while a part of a longer sequence may hold one.
    assert type(sliced) is (nn.Sequential if len(stock) == 4 else FusedSequential)
    assert [id(layer) for layer in sliced] == [id(layer) for layer in expected]
    assert list(sliced.state_dict()) == list(expected.state_dict())
    with torch.no_grad():
        assert torch.equal(fused[:2](x), run_children(stock[:2], x))
    assert fused[0] is stock[0] and fused[-1] is stock[-1]
    with pytest.raises(IndexError):
        fused[len(stock)]


def test_slices_of_named_layers_keep_the_names() -> None:
    layers = OrderedDict(zip(("space", "norm", "act", "time"), stock_conv(3, 7, 4), strict=True))
    fused = fuse(nn.Sequential(layers))
    assert isinstance(fused, Conv2Plus1D)
    assert [name for name, _ in fused[1:].named_children()] == ["norm", "act", "time"]


def test_instance_forward_is_left_alone_and_reported(backend: Backend, x: Tensor) -> None:
    """``sequence.forward = ...`` on one object, as tracing and offloading tools do."""
    sequence = randomize(stock_conv(3, 7, 4)).eval()
    plain = sequence.forward
    sequence.forward = lambda x: plain(x) * 2  # type: ignore[method-assign]
    model = nn.Sequential(sequence)
    with torch.no_grad():
        expected = model(x)
        fused = fuse(model, inplace=True)
        assert torch.equal(fused(x), expected)
    assert all(not row.fused for row in fuse_report(fused))


def test_subclass_that_keeps_forward_is_fused(backend: Backend, x: Tensor) -> None:
    model = nn.Sequential(randomize(_Named(*stock_conv(3, 7, 4)))).eval()
    fused = fuse(model)
    assert isinstance(fused[0], Conv2Plus1D)
    _same(fused, model, x)


def test_names_of_children_stay(backend: Backend, x: Tensor) -> None:
    layers = OrderedDict(zip(("space", "norm", "act", "time"), stock_conv(3, 7, 4), strict=True))
    model = nn.Sequential(OrderedDict(conv=randomize(nn.Sequential(layers)))).eval()
    fused = fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert fused.conv.space.weight.shape == (7, 3, 1, 3, 3)
    _same(fused, model, x)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_run_inside_a_longer_sequence(before: int, after: int, backend: Backend, x: Tensor) -> None:
    layers = [*[nn.AvgPool3d(1)] * before, *stock_conv(3, 7, 4), *stock_conv(4, 5, 4)]
    layers += [nn.BatchNorm3d(4), nn.Sigmoid(), nn.ReLU()][:after]
    model = randomize(nn.Sequential(*layers)).eval()
    fused = fuse(model)
    assert isinstance(fused, FusedSequential)
    assert list(fused.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        _same(fused, model, x)
    _same(fused, model, x)


def test_stem_in_training(backend: Backend, x: Tensor) -> None:
    stem = randomize(stock_stem()).train()

    @functools.lru_cache
    def step(_: int) -> tuple[Results, Results, list[Results]]:
        given, exact = torch.randn_like(x), copy.deepcopy(stem).double()
        return _forward(fuse(stem), given), _forward(exact, given.double()), [
            _forward(way, given) for way in stock_ways(stem)
        ]  # fmt: skip

    def draw(name: str, numbers: Iterator[int]) -> Draw:
        ours, exact, ways = step(next(numbers))
        return ours[name], exact[name], [way[name] for way in ways]

    for name, value in step(0)[0].items():
        if value.is_floating_point():
            assert_accurate_over_draws(functools.partial(draw, name, itertools.count()), name)
        else:
            assert torch.equal(value, step(0)[1][name]), name


def _forward(module: nn.Module, x: Tensor) -> Results:
    return {"y": module(x), **dict(module.named_buffers())}


@pytest.mark.parametrize("index", [4, 5])
def test_hook_on_the_last_two_layers_of_a_stem_fires(
    index: int, backend: Backend, x: Tensor
) -> None:
    """The norm and ReLU that would be an epilogue are run as layers when something watches."""
    stem = randomize(stock_stem()).eval()
    fused, fired = fuse(stem), []
    fused[index].register_forward_hook(lambda *_: fired.append(1))
    with torch.no_grad():
        _same(fused, stem, x)
        fired.clear()
        fused(x)
    assert fired == [1]


def test_hooks_on_the_swapped_sequence_survive(backend: Backend, model: TinyNet, x: Tensor) -> None:
    fired = []
    model.down.register_forward_hook(lambda *_: fired.append("down"))
    model.stem.register_forward_pre_hook(lambda *_: fired.append("stem"))
    fuse(model, inplace=True)
    model(x)
    assert fired == ["stem", "down"]


def test_training_flags_stay(model: TinyNet) -> None:
    model.train()
    model.down.eval()
    model.block["conv"][0][1].eval()
    fused = fuse(model)
    flags = {name: m.training for name, m in model.named_modules()}
    assert {name: m.training for name, m in fused.named_modules()} == flags


def test_candidate_with_a_bias_is_reported(x: Tensor) -> None:
    layers = stock_conv(3, 7, 4)
    layers[3] = nn.Conv3d(7, 4, (3, 1, 1), padding=(1, 0, 0))
    model = nn.Sequential(randomize(layers)).eval()
    fused = fuse(model)
    assert type(fused[0]) is nn.Sequential
    (row,) = fuse_report(fused)
    assert row.name == "0" and not row.fused and "temporal convolution has a bias" in row.reason


def test_model_without_candidates() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU())
    assert fuse_report(fuse(model)) == []


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got dict"):
        fuse({})  # type: ignore[arg-type]


def test_fused_model_is_copied_and_pickled(backend: Backend, model: TinyNet, x: Tensor) -> None:
    fused = fuse(model)
    with torch.no_grad():
        expected = fused(x)
        for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert torch.equal(twin(x), expected)
            assert all(row.fused for row in fuse_report(twin))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_conv_norm_act(
    residual: bool, relu: bool, training: bool, gradients: bool, backend: Backend
) -> None:
    """The tail of a residual block, with and without the epilogue."""
    conv = randomize(r21d_ops.Conv2Plus1D(5, 7, 13)).train(training)
    norm = randomize(nn.BatchNorm3d(7)).train(training)
    layers = nn.Sequential(*conv, norm)
    exact, ways = copy.deepcopy(layers).double(), stock_ways(layers)

    def tail(y: Tensor, added: Tensor | None) -> Tensor:
        y = y if added is None else y + added.to(y.dtype)
        return y.relu() if relu else y

    def draw() -> Draw:
        x = torch.randn(2, 5, 4, 9, 8)
        added = torch.randn(2, 7, 4, 9, 8) if residual else None
        stock = [tail(way(x), added) for way in ways]
        return conv_norm_act(conv, norm, x, added, relu), tail(exact(x.double()), added), stock

    with torch.set_grad_enabled(gradients):
        assert_accurate_over_draws(draw)
