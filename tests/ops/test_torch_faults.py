"""Faults of stock PyTorch that the operator must not pass on (about 6 s)."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from ops.chosen_backend import Backend

import r21d_ops


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 1), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_weight_gradient_where_a_tap_sees_padding_alone(
    backend: Backend, poisoned: None, size: tuple[int, int], stride: int
) -> None:
    """oneDNN leaves such taps of the gradient uninitialised; the right value is zero."""
    block = r21d_ops.Conv2Plus1D(16, 20, 20, stride=(1, stride, stride)).to(torch.bfloat16)
    x = torch.randn(4, 16, 3, *size, dtype=torch.bfloat16)
    block(x).float().square().sum().backward()
    gradient = block[0].weight.grad
    assert gradient is not None and gradient.isfinite().all()
    if size[1] == 1:
        assert (gradient[..., 0] == 0).all() and (gradient[..., 2] == 0).all()
        assert (gradient[..., 1] != 0).any()


NARROW_AND_STRIDED = """
import torch, r21d_ops
torch.set_num_threads(2)
block = r21d_ops.Conv2Plus1D(4, 6, 2, 2, 0, kernel_size=1)
for _ in range(100):
    block(torch.randn(3, 4, 5, 19, 23)).sum().backward()
    block(torch.randn(3, 4, 5, 10, 12)).sum().backward()
"""


def test_weight_gradient_of_strided_convolutions_of_one_pixel() -> None:
    """oneDNN writes past a buffer in it, which ends the process sooner or later."""
    result = subprocess.run(
        [sys.executable, "-c", NARROW_AND_STRIDED], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-500:]
