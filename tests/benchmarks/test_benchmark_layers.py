"""The layers' arithmetic against published and independently counted figures (under 1 s)."""

from __future__ import annotations

import math

import pytest
import torch

import r21d
from benchmarks.layers import LAYERS, LayerProblem
from r21d_ops import Conv2Plus1D

# R(2+1)D-18, batch 32, 16x112x112 in bfloat16: GFLOP, and MB of input, intermediate and output.
TABLE = {
    "stem": (49, 39, 145, 206),
    "conv2_x": (355, 206, 462, 206),
    "conv3_1a": (142, 206, 185, 51),
    "conv3_x": (178, 51, 116, 51),
    "conv4_1a": (71, 51, 46, 13),
    "conv4_x": (89, 13, 29, 13),
    "conv5_1a": (35, 13, 12, 3),
    "conv5_x": (44, 3, 7, 3),
}


@pytest.mark.parametrize("name", TABLE)
def test_cost_is_that_of_the_design(name: str) -> None:
    problem = LayerProblem(LAYERS[name], batch=32, frames=16)
    traffic = problem.traffic(2)
    megabytes = [round(n / 1e6) for n in (traffic.input, traffic.mid, traffic.output)]
    assert (round(problem.flops / 1e9), *megabytes) == TABLE[name]
    assert traffic.fused < traffic.eager


def test_layers_make_up_the_network() -> None:
    """Their sum, each as often as it occurs, is the network's less shortcuts and classifier."""
    with torch.device("meta"):
        model = r21d.create_model("r2plus1d_18")
    info = r21d.model_info(model, (3, 8, 112, 112))
    shortcuts = [row for row in info.layers if "downsample" in row.name or row.kind == "Linear"]
    expected = 2 * sum(row.macs for row in info.layers) - 2 * sum(row.macs for row in shortcuts)
    total = sum(layer.times * LayerProblem(layer, 1, 8).flops for layer in LAYERS.values())
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
    assert tuple(mid.shape) == (2, m, *problem.mid_size)
    assert tuple(out.shape) == (2, o, *problem.out_size)
    weights = sum(math.prod(layer.weight.shape) for layer in (conv[0], conv[3]))
    traffic = problem.traffic(4)
    assert traffic.weights == 4 * weights
    assert traffic.eager - traffic.fused == 6 * 4 * mid.numel()
    assert traffic.input == 4 * x.numel() and traffic.output == 4 * out.numel()
