"""``Conv2Plus1D`` in the life of a module: copies, state dicts, hooks, casts (about 2 s)."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from ops.chosen_backend import Backend
from ops.modules_under_test import conv, run_children, stock_conv
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import r21d_ops
from r21d_ops import Conv2Plus1D, functional

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def x() -> Tensor:
    """(2, 5, 4, 9, 8)."""
    return torch.randn(2, 5, 4, 9, 8)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every call that goes through the operator."""
    calls: list[int] = []
    run = functional.run

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return run(*args, **kwargs)

    monkeypatch.setattr(functional, "run", counted)
    return calls


def _agrees(module: nn.Sequential, x: Tensor) -> None:
    """``module(x)`` is as accurate as its children one by one, statistics of the norm included."""
    exact = copy.deepcopy(module).double()
    plain, plain_views = copy.deepcopy(module), copy.deepcopy(module)
    outputs = (
        module(x),
        run_children(exact, x.double()),
        [
            run_children(plain, x),
            run_children(plain_views, x.contiguous(memory_format=torch.channels_last_3d)),
        ],
    )
    assert_accurate(*outputs)
    for name, buffer in module.named_buffers():
        expected = dict(plain.named_buffers())[name]
        if not buffer.is_floating_point():
            assert torch.equal(buffer, expected), name
            continue
        assert_accurate(buffer, dict(exact.named_buffers())[name], [
            expected, dict(plain_views.named_buffers())[name],
        ], name)  # fmt: skip


@pytest.mark.interpreted
@pytest.mark.parametrize("training", [True, False])
def test_is_the_four_layers(
    training: bool, backend: Backend, x: Tensor, fused_calls: list[int]
) -> None:
    module = conv(stride=2).train(training)
    _agrees(module, x)
    assert len(fused_calls) == 1


def test_is_a_sequential_with_the_keys_of_torchvision() -> None:
    module = conv()
    assert isinstance(module, nn.Sequential)
    assert list(module.state_dict()) == list(stock_conv(5, 13, 7).state_dict())
    assert [type(child) for child in module] == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU, nn.Conv3d]
    assert Conv2Plus1D.get_downsample_stride(2) == (2, 2, 2)


def test_paper_midplanes() -> None:
    """M of section 3.5: 64 -> 64 gives 144, 3 -> 45 in the stem is torchvision's own number."""
    assert Conv2Plus1D(64, 64)[0].out_channels == 144
    assert Conv2Plus1D(64, 128)[0].out_channels == 230
    assert Conv2Plus1D(512, 512)[0].out_channels == 1152


def test_state_dict_round_trip(backend: Backend, x: Tensor) -> None:
    module, twin, stock = conv().eval(), conv(), stock_conv(5, 13, 7).eval()
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert twin.load_state_dict(state, strict=True).missing_keys == []
    stock.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.equal(twin.eval()(x), module(x))
        exact = copy.deepcopy(stock).double()(x.double())
        assert_accurate(module(x), exact, [stock(x), stock(x.to(memory_format=_LAST))])


_LAST = torch.channels_last_3d


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(duplicate: Callable[[nn.Module], nn.Module], backend: Backend, x: Tensor) -> None:
    module = conv().eval()
    module.recompute = True
    with torch.no_grad():
        before = module(x)
        other = duplicate(module)
        assert torch.equal(other(x), before)
        assert other.recompute
        other[0].weight.mul_(2)
        assert not torch.equal(other(x), before)
        assert torch.equal(module(x), before)


@pytest.mark.parametrize("parameter", ["0.weight", "1.weight", "1.bias", "1.running_mean",
                                       "1.running_var", "3.weight"])  # fmt: skip
@pytest.mark.parametrize("how", ["data", "load_state_dict", "copy_", "assign", "swap storage"])
def test_no_stale_weights(parameter: str, how: str, backend: Backend, x: Tensor) -> None:
    """Every way to write a weight between two calls in eval shows in the next one."""
    module, fresh = conv().eval(), conv().eval()
    with torch.no_grad():
        before = module(x)
        state = {k: v.clone() for k, v in module.state_dict().items()}
        state[parameter] = state[parameter].abs() + 0.25
        tensor = module.state_dict(keep_vars=True)[parameter]
        if how == "data":
            tensor.data.copy_(state[parameter])
        elif how == "load_state_dict":
            module.load_state_dict(state)
        elif how == "copy_":
            tensor.copy_(state[parameter])
        elif how == "assign":
            module.load_state_dict(state, assign=True)
        else:
            tensor.data = state[parameter]
        fresh.load_state_dict(state)
        after = module(x)
        assert not torch.equal(after, before)
        assert torch.equal(after, fresh(x))


def test_optimizer_step_shows(backend: Backend, x: Tensor) -> None:
    module = conv()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.eval()
    with torch.no_grad():
        before = module(x)
    module(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(module(x), before)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "backward pre"])
def test_hooks_on_children_fire(
    index: int, kind: str, backend: Backend, x: Tensor, fused_calls: list[int]
) -> None:
    module = conv().train()
    plain = copy.deepcopy(module)
    expected = run_children(plain, x)
    fired: list[str] = []

    def hook(*_: Any) -> None:
        fired.append(kind)

    register = {
        "forward": module[index].register_forward_hook,
        "pre": module[index].register_forward_pre_hook,
        "backward": module[index].register_full_backward_hook,
        "backward pre": module[index].register_full_backward_pre_hook,
    }[kind]
    # A full backward hook forbids in-place changes of what it watches.
    module[2].inplace = plain[2].inplace = False
    handle = register(hook)
    y = module(x)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert fired == [kind]
    assert not fused_calls
    (row,) = r21d_ops.fuse_report(module)
    assert not row.fused and "hook" in row.reason
    handle.remove()
    module(x)
    assert len(fused_calls) == 1
    assert r21d_ops.fuse_report(module)[0].fused


def test_hooks_on_the_module_itself_leave_it_fused(
    backend: Backend, x: Tensor, fused_calls: list[int]
) -> None:
    module, seen = conv().eval(), []
    module.register_forward_hook(lambda m, args, y: seen.append(y.shape))
    module(x)
    assert seen == [(2, 7, 4, 9, 8)] and len(fused_calls) == 1


class _LowRank(nn.Module):
    """A convolution with an added low-rank path, as adapters are."""

    def __init__(self, base: nn.Conv3d) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv3d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv3d(2, base.out_channels, base.kernel_size, base.stride, base.padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def _parametrize(m: nn.Sequential) -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(m[0], "weight", Double())


def _patch_forward(m: nn.Sequential) -> None:
    plain = m[3].forward
    m[3].forward = lambda x: plain(x) + 1  # type: ignore[method-assign]


def _bias(m: nn.Sequential) -> None:
    m[0].bias = nn.Parameter(torch.randn(m[0].out_channels))


def _subclass(m: nn.Sequential) -> None:
    class Scaled(nn.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    m[3].__class__ = Scaled


#: What may happen to the four layers, and a word of the reason that the report must give.
_CHANGES: dict[str, tuple[Callable[[nn.Sequential], Any], str]] = {
    "parametrization": (_parametrize, "in place of Conv3d"),
    "weight norm": (lambda m: parametrizations.weight_norm(m[3]), "in place of Conv3d"),
    "low-rank adapter": (lambda m: m.__setitem__(0, _LowRank(m[0])), "_LowRank in place"),
    "patched forward": (_patch_forward, "forward of its own"),
    "bias": (_bias, "spatial convolution has a bias"),
    "subclass": (_subclass, "Scaled in place of Conv3d"),
    "other activation": (lambda m: m.__setitem__(2, nn.SiLU()), "SiLU in place of ReLU"),
    "other norm": (lambda m: m.__setitem__(1, nn.GroupNorm(1, 13)), "GroupNorm in place"),
    "dilation": (lambda m: setattr(m[0], "dilation", (1, 2, 2)), "dilation"),
    "fifth layer": (lambda m: m.append(nn.Sigmoid()), "5 layers"),
    "circular padding": (
        lambda m: m.__setitem__(0, nn.Conv3d(5, 13, (1, 3, 3), padding=(0, 1, 1), bias=False,
                                             padding_mode="circular")),
        "padding mode",
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("what", _CHANGES)
def test_changed_children_run_one_by_one(
    what: str, training: bool, backend: Backend, x: Tensor, fused_calls: list[int]
) -> None:
    change, reason = _CHANGES[what]
    module = conv().train(training)
    change(module)
    twin = copy.deepcopy(module)
    if what == "patched forward":
        # deepcopy keeps the patch bound to the original layer, whose weights are the same.
        assert "forward" in twin[3].__dict__
    assert torch.equal(module(x), run_children(twin, x))
    assert not fused_calls
    rows = r21d_ops.fuse_report(module)
    assert all(not row.fused for row in rows)
    if rows:
        assert reason in rows[0].reason, rows[0].reason


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m[1], "momentum", None),
        lambda m: m.__setitem__(1, nn.BatchNorm3d(13, track_running_stats=False)),
        lambda m: m.__setitem__(1, nn.BatchNorm3d(13, affine=False)),
        lambda m: m.__setitem__(1, nn.BatchNorm3d(13, eps=0.1, momentum=0.7)),
        lambda m: setattr(m[2], "inplace", False),
    ],
    ids=["momentum None", "no running statistics", "not affine", "eps", "relu not in place"],
)
def test_kinds_of_norm_stay_fused(
    change: Callable[[nn.Sequential], Any], training: bool, backend: Backend, x: Tensor,
    fused_calls: list[int],
) -> None:  # fmt: skip
    module = conv().train(training)
    change(module)
    for _ in range(2):
        _agrees(module, torch.randn_like(x))
    assert len(fused_calls) == 2


@pytest.mark.interpreted
@pytest.mark.parametrize("norm_training", [True, False])
def test_norm_frozen_by_itself(
    norm_training: bool, backend: Backend, x: Tensor, fused_calls: list[int]
) -> None:
    """``module.train(); norm.eval()`` is how people freeze statistics; and the reverse."""
    module = conv().train(not norm_training)
    module[1].train(norm_training)
    _agrees(module, x)
    assert len(fused_calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_module_cast_whole(
    dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch, x: Tensor
) -> None:
    """``model.bfloat16()`` casts the norm too: parameters and statistics keep that dtype."""
    monkeypatch.delenv("R21D_BACKEND", raising=False)
    module = conv().to(dtype).train(training)
    x = x.to(dtype)
    exact = run_children(copy.deepcopy(module).double(), x.double())
    ways = [x, x.to(memory_format=_LAST)]
    plain = [run_children(copy.deepcopy(module), way) for way in ways]
    y = module(x)
    assert y.dtype == dtype
    if dtype == torch.float64:
        assert (y - exact).abs().max() < torch.finfo(torch.float32).eps
    else:
        assert_accurate(y, exact, plain)
    assert module[1].running_mean.dtype == dtype
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in module.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training: bool, backend: Backend, x: Tensor) -> None:
    module = conv().train(training)
    twin = copy.deepcopy(module)
    exact = run_children(copy.deepcopy(module).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        stock = run_children(twin, x)
    assert y.dtype == stock.dtype == torch.bfloat16
    assert_accurate(y, exact, stock)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    assert module[1].running_mean.dtype == torch.float32


def test_functional_call(backend: Backend, x: Tensor) -> None:
    module, other = conv().eval(), conv().eval()
    other[0].weight.data.normal_()
    with torch.no_grad():
        assert torch.equal(functional_call(module, other.state_dict(), (x,)), other(x))


@pytest.mark.interpreted
def test_gradients_through_checkpointing(backend: Backend, x: Tensor) -> None:
    module = conv().eval()
    twin = copy.deepcopy(module)
    x.requires_grad_()
    (plain,) = torch.autograd.grad(module(x).square().sum(), x)
    (again,) = torch.autograd.grad(checkpoint(twin, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(plain, again)


def test_inference_mode(backend: Backend, x: Tensor) -> None:
    module = conv().eval()
    with torch.no_grad():
        expected = module(x)
    with torch.inference_mode():
        assert torch.equal(module(x), expected)


def test_wrong_input_names_x(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"x has 4 channels.*expects 5"):
        conv()(torch.randn(1, 4, 3, 8, 8))
    with pytest.raises(ValueError, match="x must have 5 dimensions"):
        conv()(torch.randn(5, 3, 8, 8))


@pytest.mark.parametrize("kernel", [1, 2, 5, (3, 5, 5)], ids=str)
def test_kernel_sizes(kernel: Any, backend: Backend, x: Tensor) -> None:
    _agrees(conv(kernel_size=kernel, padding=2, stride=(2, 1, 3)).eval(), x)


@pytest.mark.parametrize("training", [True, False])
def test_shapes_on_the_meta_device(training: bool) -> None:
    with torch.device("meta"):
        block = Conv2Plus1D(3, 5, stride=2).train(training)
        assert block(torch.empty(2, 3, 4, 9, 7)).shape == (2, 5, 2, 5, 4)
