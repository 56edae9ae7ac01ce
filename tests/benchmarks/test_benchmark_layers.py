"""The layers' arithmetic against published and independently counted figures (under 1 s)."""

from __future__ import annotations

import math

import pytest
import torch

import r21d
from benchmarks.layers import LAYERS, LayerProblem
from r21d_ops import Conv2Plus1D


def test_layers_make_up_the_network() -> None:
    """Their sum, each as often as it occurs, is the network's less shortcuts and classifier."""
    with torch.device("meta"):
        model = r21d.create_model("r2plus1d_18")
    info = r21d.model_info(model, (3, 8, 112, 112))
    shortcuts = [row for row in info.layers if "downsample" in row.name or row.kind == "Linear"]
    expected = 2 * sum(row.macs for row in info.layers) - 2 * sum(row.macs for row in shortcuts)
    total = sum(
        layer.times * LayerProblem(layer, 1, 8).cost(torch.float32).flops
        for layer in LAYERS.values()
    )
    # conv3_1 to conv5_1 have their own M in the first convolution only, so the sum is exact.
    assert total == expected
    assert sum(layer.times for layer in LAYERS.values()) == 17


@pytest.mark.parametrize("frames", [1, 8, 16])
@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_those_of_the_module(name: str, frames: int) -> None:
    problem = LayerProblem(LAYERS[name], batch=2, frames=frames, shrink=2)
    c, m, o = problem.channels
    layer = problem.layer
    with torch.device("meta"):
        conv = Conv2Plus1D(c, o, m, layer.stride, layer.padding, kernel_size=layer.kernel)
        x = torch.empty(2, c, *problem.size)
        mid = conv[0](x)
        out = conv[3](mid)
    sizes = problem.problem("cpu", torch.float32)
    assert tuple(mid.shape) == (2, m, *sizes.mid_size)
    assert tuple(out.shape) == (2, o, *sizes.out_size)
    weights = sum(math.prod(layer.weight.shape) for layer in (conv[0], conv[3]))
    cost = problem.cost(torch.float32)
    assert cost.weights == 4 * weights
    assert cost.eager_bytes - cost.fused_bytes == 6 * 4 * mid.numel()
    assert cost.input == 4 * x.numel() and cost.output == 4 * out.numel()
