"""What is run: stock layers and their fused twin with the same weights, inputs, and their cost."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import r21d
from benchmarks.layers import LAYERS, LayerProblem
from r21d.models.resnet import BasicBlock
from r21d_ops import Conv2Plus1D
from r21d_ops.backends.eager import spatial_conv, temporal_conv
from r21d_ops.dispatch.cost import ProblemCost
from r21d_ops.modules import FusedSequential

#: Passes over the arithmetic of one forward pass that a training step makes: forward, gradient of
#: the input, gradient of the weights.
_TRAINING_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """Floating-point operations and the least bytes of one kernel that runs after the others."""

    flops: int
    traffic: int


@dataclass(frozen=True)
class Workload:
    """One thing to time.

    Attributes:
        stock: plain ``torch.nn`` layers, contiguous (NCDHW) weights.
        fused: the same weights through r21d_ops, NDHWC weights.
        inputs: contiguous tensors of one shape, fresh random values.
        training: a step (forward and backward to the weights) rather than inference.
        input_gradient: a step's backward goes on to the input, as inside a network.
        kinks: values near zero reach a ReLU, where gradients jump by the last bit.
        costs: summed over, the floor of section 13 of the design: one entry per fused kernel.
        eager_traffic: bytes that four separate kernels move; None where it was not derived.
    """

    stock: nn.Module
    fused: nn.Module
    inputs: Sequence[Tensor]
    training: bool
    costs: Sequence[Cost]
    eager_traffic: int | None
    input_gradient: bool = True
    kinks: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs."""
        return self.inputs[0].dtype

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.inputs[0].device.type


class StockBlock(nn.Module):
    """A residual block of plain layers, the shortcut added in place, as torchvision runs it."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.conv2, self.relu = block.conv1, block.conv2, block.relu
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, H, W) -> (N, O, T', H', W')."""
        out: Tensor = self.conv2(self.conv1(x))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ViewSequential(nn.Sequential):
    """The layers of a (2+1)D run as stock 2-D ones, on views of NDHWC tensors; autograd is torch's.

    The 1×d×d convolution and BatchNorm see N·T images, the t×1×1 convolution images of T×(H·W).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, H, W), NDHWC -> (N, O, T', H', W')."""
        for layer in self:
            if isinstance(layer, nn.Conv3d):
                on_views = spatial_conv if layer.kernel_size[0] == 1 else temporal_conv
                x = on_views(x, layer.weight, layer.stride, layer.padding)  # type: ignore[arg-type]
            elif isinstance(layer, nn.BatchNorm3d):
                x = _norm_on_views(layer, x)
            elif isinstance(layer, nn.ReLU):
                # In place, on a view, it would cost autograd copies.
                x = F.relu(x)
            else:
                raise TypeError(f"{type(layer).__name__} is no layer of a (2+1)D run")
        return x


def _norm_on_views(norm: nn.BatchNorm3d, x: Tensor) -> Tensor:
    clips, frames = x.shape[0], x.shape[2]
    images = F.batch_norm(
        x.transpose(1, 2).flatten(0, 1),
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        0.0 if norm.momentum is None else norm.momentum,
        norm.eps,
    )
    return images.unflatten(0, (clips, frames)).transpose(1, 2)


def stock_twin(module: nn.Module, run: type[nn.Sequential] = nn.Sequential) -> nn.Module:
    """A copy of ``module`` in which no operator of r21d_ops is left: ``run`` holds its layers."""
    if isinstance(module, (Conv2Plus1D, FusedSequential)):
        return run(*copy.deepcopy(list(module.children())))
    twin = copy.deepcopy(module)
    if isinstance(twin, BasicBlock):
        twin = StockBlock(twin)
    for parent in list(twin.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, (Conv2Plus1D, FusedSequential)):
                parent._modules[name] = run(*child.children())
            elif isinstance(child, BasicBlock):
                parent._modules[name] = StockBlock(child)
    return twin


def pad_mid_channels(module: nn.Module, multiple: int) -> nn.Module:
    """A copy whose (2+1)D convolutions have M rounded up to ``multiple`` with zero weights."""
    twin = copy.deepcopy(module)
    for conv in twin.modules():
        if isinstance(conv, (Conv2Plus1D, FusedSequential)):
            _pad(conv, multiple)
    return twin


def _pad(conv: nn.Sequential, multiple: int) -> None:
    spatial, norm, _, temporal = list(conv.children())[:4]
    assert isinstance(spatial, nn.Conv3d) and isinstance(temporal, nn.Conv3d)
    assert isinstance(norm, nn.BatchNorm3d)
    extra = -spatial.out_channels % multiple
    for weight in (spatial.weight, norm.weight, norm.bias):
        rows = weight.new_zeros(extra, *weight.shape[1:])
        weight.data = torch.cat([weight.data, rows])
    columns = temporal.weight.new_zeros(temporal.out_channels, extra, *temporal.kernel_size)
    temporal.weight.data = torch.cat([temporal.weight.data, columns], 1)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean = torch.cat([norm.running_mean, norm.running_mean.new_zeros(extra)])
    norm.running_var = torch.cat([norm.running_var, norm.running_var.new_ones(extra)])
    spatial.out_channels += extra
    temporal.in_channels += extra
    norm.num_features += extra


def to_layout(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """``module`` itself, its convolutions' weights in ``layout``."""
    # torch's overloads of Module.to do not list the memory format.
    return module.to(memory_format=layout)  # type: ignore[call-overload]


@torch.no_grad()
def _randomize_norms(module: nn.Module, margin: bool) -> None:
    # As built, BatchNorm is the identity in eval: a peer that forgets it would pass the check.
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            if margin:
                # Every other channel is cut off by ReLU, the rest pass. A value near zero would
                # have one gradient or another by the last bit, in float64 another than here.
                norm.bias.add_(10 - 20 * (torch.arange(norm.num_features) % 2))
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)


def _twins(
    module: nn.Module, device: str, dtype: torch.dtype, training: bool, margin: bool = False
) -> tuple[nn.Module, nn.Module]:
    _randomize_norms(module, margin)
    module = module.to(device, dtype).train(training)
    if training:
        # Parameters and statistics of BatchNorm stay float32 in mixed-precision training.
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm3d):
                norm.float()
    fused = to_layout(copy.deepcopy(module), torch.channels_last_3d)
    return stock_twin(module), fused


def _inputs(
    shape: Sequence[int], device: str, dtype: torch.dtype, rotate: bool = True
) -> list[Tensor]:
    """One input; with ``rotate`` as many as no cache of a GPU holds."""
    count = 1
    if rotate and device == "cuda":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        one = torch.Size(shape).numel() * torch.finfo(dtype).bits // 8
        count = min(8, max(1, -(-4 * cache // one)))
    return [torch.randn(*shape, device=device).to(dtype) for _ in range(count)]


def layer_workload(
    problem: LayerProblem, device: str, dtype: torch.dtype, training: bool
) -> Workload:
    """One named layer as a (2+1)D module on its own."""
    c, m, o = problem.channels
    layer = problem.layer
    module = Conv2Plus1D(c, o, m, layer.stride, layer.padding, kernel_size=layer.kernel)
    stock, fused = _twins(module, device, dtype, training, margin=training)
    full = problem.cost(dtype)
    cost = _step_cost(full) if training else Cost(full.flops, full.fused_bytes)
    return Workload(
        stock,
        fused,
        _inputs((problem.batch, c, *problem.size), device, dtype),
        training,
        [cost],
        None if training else full.eager_bytes,
    )


def _step_cost(cost: ProblemCost) -> Cost:
    # x is read in both passes and its gradient written; y is written and its gradient read.
    least = 3 * cost.input + 2 * cost.output + _TRAINING_PASSES * cost.weights
    return Cost(_TRAINING_PASSES * cost.flops, least)


def block_workload(problem: LayerProblem, device: str, dtype: torch.dtype) -> Workload:
    """A whole residual block of conv2_x: two (2+1)D convolutions, BatchNorm, shortcut, ReLU."""
    c, _, o = problem.channels
    network = r21d.create_model(
        "r2plus1d_18", num_classes=8, widths=(o, 8, 8, 8), stem_channels=c, blocks=(1, 1, 1, 1)
    )
    stock, fused = _twins(network.layer1[0], device, dtype, False)
    full = problem.cost(dtype)
    costs = [
        Cost(full.flops, full.fused_bytes),
        Cost(full.flops, full.fused_bytes + full.input),
    ]
    shape = (problem.batch, c, *problem.size)
    return Workload(stock, fused, _inputs(shape, device, dtype), False, costs, None)


def network_workload(
    batch: int, frames: int, shrink: int, device: str, dtype: torch.dtype, training: bool
) -> Workload:
    """R(2+1)D-18 with 400 classes on clips of 3×frames×112×112."""
    widths = tuple(max(8, w // shrink) for w in (64, 128, 256, 512))
    model = r21d.create_model("r2plus1d_18", widths=widths, stem_channels=widths[0])
    side = 112 // shrink
    passes = _TRAINING_PASSES if training else 1
    info = r21d.model_info(model, (3, frames, side, side))
    flops = round(2e9 * passes * batch * info.gmacs)
    costs = []
    for layer in LAYERS.values():
        full = LayerProblem(layer, batch, frames, shrink).cost(dtype)
        cost = _step_cost(full) if training else Cost(full.flops, full.fused_bytes)
        costs += [cost] * layer.times
    # Shortcuts and the classifier: arithmetic alone, their traffic is small.
    costs.append(Cost(max(0, flops - sum(cost.flops for cost in costs)), 0))
    stock, fused = _twins(model, device, dtype, training)
    # What its layers hand on drives the input out of every cache.
    inputs = _inputs((batch, 3, frames, side, side), device, dtype, rotate=False)
    return Workload(stock, fused, inputs, training, costs, None, input_gradient=False, kinks=True)
