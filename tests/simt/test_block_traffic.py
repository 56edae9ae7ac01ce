"""How often a residual block's training step goes over its activations (about 2 s).

The simulator counts the bytes of global memory that each launch touches.
"""

from __future__ import annotations

import pytest
import torch
from simt import backend as simulated
from simt import training
from torch import Tensor, nn

from r21d_ops import Conv2Plus1D, FusedBasicBlock
from r21d_ops.backends import _BACKENDS

_CHANNELS, _MID = 16, 48
#: What the host program calls activations and their gradients; the rest are weights and sums.
_ACTIVATIONS = {"x", "u", "y", "out", "residual", "grad", "g", "grad_x"}


def _convolution(in_planes: int, planes: int, _: int, stride: int = 1) -> Conv2Plus1D:
    return Conv2Plus1D(in_planes, planes, _MID, stride)


def _passes(of_x: int) -> float:
    """Tensors of x's size that went over the memory bus since the last call."""
    found = [read + written for _, name, read, written in training.traffic if name in _ACTIVATIONS]
    training.traffic.clear()
    return sum(found) / of_x


@pytest.mark.parametrize("recompute", [False, True])
def test_a_block_goes_over_its_activations_as_derived(
    recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/kernels.md, "A residual block": 4 of u and 7 of the others forward, 14 and 18 back."""
    monkeypatch.setenv("R21D_BACKEND", "cuda")
    monkeypatch.setitem(_BACKENDS, "cuda", simulated)
    block = FusedBasicBlock(_CHANNELS, _CHANNELS, _convolution)
    for module in block.modules():
        if isinstance(module, nn.Conv3d):
            module.bfloat16()
    block.conv1[0].recompute = block.conv2[0].recompute = recompute
    layout = torch.channels_last_3d
    x = torch.randn(1, _CHANNELS, 4, 6, 7, dtype=torch.bfloat16).contiguous(memory_format=layout)
    of_x, of_u = x.numel() * 2, _MID / _CHANNELS
    x.requires_grad_()
    with training.simulated(traffic=True):
        y: Tensor = block(x)
        assert _passes(of_x) == 4 * of_u + 7
        y.backward(torch.randn_like(y))
        # Made again, each u is written once more, from x or y1 read once more.
        again = 2 * of_u + 2 if recompute else 0
        assert _passes(of_x) == 14 * of_u + 18 + again
