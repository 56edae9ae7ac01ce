"""A residual block trained for some steps, in Triton's interpreter and by stock PyTorch (8 s)."""

from __future__ import annotations

import copy

import pytest
import torch
from accuracy import Draw, assert_accurate_over_draws
from torch import Tensor, nn

from r21d_ops import Conv2Plus1D
from r21d_ops.triton import INTERPRETED

pytest.importorskip("triton", reason="Triton is not installed")
if not INTERPRETED:
    pytest.skip("tests/gpu trains on the GPU", allow_module_level=True)

_STEPS = 10


class _Block(nn.Module):
    """conv2_x's residual block, narrow, and a classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(Conv2Plus1D(width, width), nn.BatchNorm3d(width), nn.ReLU())
        self.conv2 = nn.Sequential(Conv2Plus1D(width, width), nn.BatchNorm3d(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, width, T, H, W) -> (N, classes)."""
        y = torch.relu(x + self.conv2(self.conv1(x)))
        return self.head(y.mean((2, 3, 4)))


def _stock(block: _Block) -> _Block:
    """A copy with plain layers in place of the drop-ins."""
    twin = copy.deepcopy(block)
    for sequence in (twin.conv1, twin.conv2):
        sequence[0] = nn.Sequential(*sequence[0].children())
    return twin


def _losses(block: _Block, x: Tensor, labels: Tensor) -> Tensor:
    """The losses of ``_STEPS`` steps of gradient descent with momentum."""
    optimizer = torch.optim.SGD(block.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(_STEPS):
        loss = nn.functional.cross_entropy(block(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_losses_stay_with_those_of_stock_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two convolutions keeps u for backward, the other makes it again."""
    monkeypatch.setenv("R21D_BACKEND", "triton")

    def draw() -> Draw:
        block = _Block(width=5, classes=3)
        x, labels = torch.randn(3, 5, 2, 5, 5), torch.arange(3)
        last = x.contiguous(memory_format=torch.channels_last_3d)
        twin = _stock(block)
        exact = _losses(copy.deepcopy(twin).double(), x.double(), labels)
        stock = [_losses(copy.deepcopy(twin), values, labels) for values in (x, last)]
        block.conv2[0].recompute = True
        losses = _losses(block, x, labels)
        assert losses[-1] < 0.9 * losses[0]
        return losses, exact, stock

    assert_accurate_over_draws(draw, "losses")
