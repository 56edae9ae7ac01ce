"""Modules that tests share: a drop-in and its stock twin, and models that contain both kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from r21d_ops import Conv2Plus1D

Results = dict[str, Tensor]


def stock_conv(
    c: int, m: int, o: int, stride: int = 1, padding: int = 1, kernel: int = 3
) -> nn.Sequential:
    """The four layers as torchvision has them."""
    spatial = ((1, kernel, kernel), (1, stride, stride), (0, padding, padding))
    temporal = ((kernel, 1, 1), (stride, 1, 1), (padding, 0, 0))
    return nn.Sequential(
        nn.Conv3d(c, m, *spatial, bias=False),
        nn.BatchNorm3d(m),
        nn.ReLU(inplace=True),
        nn.Conv3d(m, o, *temporal, bias=False),
    )


def stock_stem(c: int = 3, m: int = 11, o: int = 8) -> nn.Sequential:
    """Six layers, as the stem of R(2+1)D."""
    return nn.Sequential(*stock_conv(c, m, o), nn.BatchNorm3d(o), nn.ReLU(inplace=True))


class TinyNet(nn.Module):
    """A stem and two convolutions as somebody's model has them; (N, 3, T, H, W) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = stock_stem()
        self.block = nn.ModuleDict({"conv": nn.Sequential(stock_conv(8, 13, 8), nn.ReLU())})
        self.down = stock_conv(8, 9, 6, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down(x + self.block["conv"](x))
        return self.head(x.mean((2, 3, 4)))


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Norms away from the identity, so that a norm left out or applied twice shows."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            for tensor in (child.running_mean, child.bias):
                if tensor is not None:
                    tensor.data.normal_(0, 0.3, generator=generator)
            for tensor in (child.running_var, child.weight):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
    return module


def conv(c: int = 5, o: int = 7, m: int | None = 13, **options: Any) -> Conv2Plus1D:
    """A drop-in whose norm is not the identity."""
    module = randomize(Conv2Plus1D(c, o, m, **options))
    assert isinstance(module, Conv2Plus1D)
    return module


def run_children(module: nn.Sequential, x: Tensor) -> Tensor:
    """What stock PyTorch makes of the same layers, one by one."""
    for child in module:
        x = child(x)
    return x


def stock_ways(model: nn.Module) -> list[nn.Module]:
    """Copies of a stock model whose layers get their input in NCDHW, and in NDHWC.

    Stock PyTorch rounds differently in each, and its convolutions may change the format on the
    way: with one thread its BatchNorm in NDHWC, the format of the operator's output, has several
    times the error that it has in NCDHW.
    """

    def in_layout(layout: torch.memory_format) -> nn.Module:
        def convert(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(t.contiguous(memory_format=layout) if t.dim() == 5 else t for t in inputs)

        way = copy.deepcopy(model)
        for layer in way.modules():
            layer.register_forward_pre_hook(convert)
        return way

    return [in_layout(layout) for layout in (torch.contiguous_format, torch.channels_last_3d)]


def collect(
    module: nn.Module, x: Tensor, grad: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> Results:
    """One step of ``module``, or of ``run`` which calls it: output, gradients and buffers."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = (module if run is None else run)(x)
    y.backward(grad)
    assert x.grad is not None
    results = {"y": y.detach(), "x.grad": x.grad}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        results[f"{name.removeprefix('module.')}.grad"] = parameter.grad.clone()
    for name, buffer in module.named_buffers():
        results[name.removeprefix("module.")] = buffer.clone()
    return results


def exact_step(module: nn.Sequential, x: Tensor, grad: Tensor) -> Results:
    """:func:`collect` of the children of ``module`` one by one, in float64."""
    layers = copy.deepcopy(nn.Sequential(*module)).double()
    return collect(layers, x.double(), grad.double())
