"""What autograd keeps for backward, counted in bytes (about 1 s)."""

from __future__ import annotations

import pytest
import torch
from ops.chosen_backend import Backend
from ops.modules_under_test import conv, run_children
from torch import Tensor, nn

import r21d_ops

_FLOAT = 4


def _kept_bytes(module: nn.Module, x: Tensor, stock: bool = False) -> int:
    """Bytes of the storages that the graph of one training step holds, weights excepted."""
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    weights |= {b.untyped_storage().data_ptr() for b in module.buffers()}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # a storage that is freed could give its address to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run_children(module, x) if stock else module(x)  # type: ignore[arg-type]
    y.sum().backward()
    return sum(storages.values())


@pytest.fixture
def x() -> Tensor:
    """(2, 5, 4, 10, 9), NDHWC: 14,400 bytes, beside which per-channel vectors are small."""
    clip = torch.randn(2, 5, 4, 10, 9).contiguous(memory_format=torch.channels_last_3d)
    return clip.requires_grad_()


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Bytes of x, of u (13 channels, same pixels) and of a dozen per-channel vectors."""
    pixels = x.numel() // x.shape[1]
    return x.numel() * _FLOAT, pixels * 13 * _FLOAT, 12 * 13 * _FLOAT


@pytest.mark.interpreted
@pytest.mark.parametrize("training", [True, False])
def test_x_and_u_are_kept(training: bool, backend: Backend, x: Tensor) -> None:
    of_x, of_u, of_vectors = _sizes(x)
    module = conv().train(training)
    kept = _kept_bytes(module, x)
    if backend.name == "triton":
        of_u = of_u // 13 * 16  # its rows start at 16-byte addresses
    assert of_x + of_u <= kept <= of_x + of_u + of_vectors


@pytest.mark.interpreted
@pytest.mark.parametrize("training", [True, False])
def test_recompute_keeps_x_alone(training: bool, backend: Backend, x: Tensor) -> None:
    of_x, _, of_vectors = _sizes(x)
    module = conv().train(training)
    module.recompute = True
    assert of_x <= _kept_bytes(module, x) <= of_x + of_vectors


def test_stock_layers_keep_v_as_well(x: Tensor) -> None:
    """The measure itself: layer by layer, x, u and v are kept (ReLU in place)."""
    of_x, of_u, _ = _sizes(x)
    assert _kept_bytes(conv(), x, stock=True) >= of_x + 2 * of_u


@pytest.mark.interpreted
def test_nothing_is_kept_without_gradients(backend: Backend, x: Tensor) -> None:
    module = conv()
    with torch.no_grad():
        y = module(x)
    assert y.grad_fn is None
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    assert module(x.detach()).grad_fn is None


def test_conv2_x_keeps_less_than_stock(backend: Backend) -> None:
    """The channels of conv2_x: x and u (0.59 of x, u and v), and with ``recompute`` x alone."""
    module = r21d_ops.Conv2Plus1D(64, 64, 144)
    clip = torch.randn(1, 64, 2, 6, 6).contiguous(memory_format=torch.channels_last_3d)
    clip.requires_grad_()
    stock = _kept_bytes(module, clip, stock=True)
    assert _kept_bytes(module, clip) <= 0.6 * stock
    module.recompute = True
    assert _kept_bytes(module, clip) <= 0.2 * stock
