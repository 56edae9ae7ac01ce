"""Networks written as functions that ask for their tensors by name, for oracles of other layouts.

A published network is a function ``network(take, x)`` -> logits in which ``take(name, shape)``
gives the tensor that the publisher's code calls ``name``.  Run with :func:`record` it makes a
checkpoint of that layout, with every name and shape that the code asks for and no other; run with
:func:`replay` it computes what that checkpoint computes, in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Take(Protocol):
    """Gives a network its tensors."""

    def __call__(self, name: str, shape: Sequence[int], role: str = "weight") -> Tensor:
        """The tensor ``name``; ``role`` says what it is: a weight (output channels first), a
        kernel (output channels last), a scale, shift, mean, variance or counter."""


Network = Callable[[Take, Tensor], Tensor]


def random_tensor(shape: Sequence[int], role: str) -> Tensor:
    """Values as after training: activations keep their size, and no statistic is trivial.

    An eps of 1e-3 in place of 1e-5 moves every activation by about 5e-4, far above rounding.
    """
    if role == "counter":
        return torch.tensor(1000)
    if role == "scale":
        return torch.empty(*shape).uniform_(0.5, 1.5)
    if role == "variance":
        return torch.empty(*shape).uniform_(0.5, 2.0)
    if role in ("shift", "mean"):
        return 0.2 * torch.randn(*shape)
    inputs = torch.Size(shape).numel() // shape[-1 if role == "kernel" else 0]
    return torch.randn(*shape) * (2.0 / inputs) ** 0.5


def placeholder(shape: Sequence[int], role: str) -> Tensor:
    """A tensor of any size that takes no memory."""
    return torch.tensor(1000) if role == "counter" else torch.zeros(1).expand(*shape)


def record(
    network: Network,
    clip: Sequence[int],
    make: Callable[[Sequence[int], str], Tensor] = random_tensor,
) -> dict[str, Tensor]:
    """A checkpoint of ``network`` for clips (C, T, H, W)."""
    held: dict[str, Tensor] = {}

    def take(name: str, shape: Sequence[int], role: str = "weight") -> Tensor:
        assert name not in held, f"{name} is asked for twice"
        held[name] = make(shape, role)
        return torch.empty(tuple(shape), device="meta")

    network(take, torch.empty(1, *clip, device="meta"))
    return held


def replay(
    network: Network, held: Mapping[str, Tensor], x: Tensor, channels_last: bool = False
) -> Tensor:
    """Logits of ``x``, in its dtype, with the tensors ``held``."""
    memory = torch.channels_last_3d if channels_last else torch.contiguous_format

    def take(name: str, shape: Sequence[int], role: str = "weight") -> Tensor:
        tensor = held[name]
        assert tuple(tensor.shape) == tuple(shape), name
        tensor = tensor.to(x.dtype)
        return tensor.contiguous(memory_format=memory) if tensor.dim() == 5 else tensor

    with torch.no_grad():
        return network(take, x.contiguous(memory_format=memory))


def middle_channels(in_channels: int, out_channels: int, pixels: int = 9) -> int:
    """M of a (2+1)D convolution of three frames (paper, section 3.5)."""
    return 3 * in_channels * out_channels * pixels // (in_channels * pixels + 3 * out_channels)
