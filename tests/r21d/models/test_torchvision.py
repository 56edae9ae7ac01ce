"""Against torchvision's own networks: the same files, the same logits, the same gradients
(about 10 s)."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor, nn

import r21d_ops
from r21d.models import create_model

KEYS = {"r2plus1d_18": 224, "r3d_18": 122, "mc3_18": 122}
# Odd sizes; the last one has one frame and a single row of pixels.
SHAPES = ((2, 3, 4, 32, 32), (3, 3, 5, 37, 29), (7, 3, 1, 1, 23))
WATCHED_GRADIENTS = (
    "stem.0.weight",
    "stem.1.bias",
    "layer1.0.conv1.0.0.weight",
    "layer2.0.downsample.0.weight",
    "layer3.0.conv2.0.3.weight",
    "layer4.0.conv2.0.1.weight",
    "fc.weight",
)
WATCHED_STATISTICS = ("stem.1.running_var", "stem.4.running_var", "layer2.0.conv1.0.1.running_mean")


@pytest.fixture(params=["r21d", "fuse", "conv_makers"])
def build(request: pytest.FixtureRequest, torchvision_resnet: ModuleType) -> Any:
    """A stock network -> one of ours with the same weights, by each of the three ways in."""

    def of_ours(stock: nn.Module) -> nn.Module:
        sizes = {"num_classes": stock.get_submodule("fc").out_features, "blocks": blocks_of(stock)}
        ours = create_model("r2plus1d_18", midplanes="torchvision", **sizes)
        ours.load_state_dict(stock.state_dict())
        return ours

    def of_conv_makers(stock: nn.Module) -> nn.Module:
        ours = torchvision_resnet.VideoResNet(
            torchvision_resnet.BasicBlock,
            [r21d_ops.Conv2Plus1D] * 4,
            blocks_of(stock),
            torchvision_resnet.R2Plus1dStem,
            num_classes=stock.get_submodule("fc").out_features,
        )
        ours.load_state_dict(stock.state_dict())
        return ours

    return {"r21d": of_ours, "fuse": r21d_ops.fuse, "conv_makers": of_conv_makers}[request.param]


def blocks_of(stock: nn.Module) -> list[int]:
    return [len(list(stock.get_submodule(f"layer{group}").children())) for group in range(1, 5)]


def randomise_norms(model: nn.Module) -> None:
    """BatchNorm as after some training, so that a forgotten statistic or factor shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)


def keep_activations_from_zero(model: nn.Module) -> None:
    """Shift every BatchNorm by +8 or -8 deviations: each ReLU clearly lets pass or stops.

    A value that rounds to the other side of zero flips its ReLU, in stock PyTorch as in ours, and
    the gradients of a deep network then differ by far more than rounding.  Sums of the shortcut
    and a block stay positive, so that they cannot cancel.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            sign = torch.randint(0, 2, module.bias.shape) * 2.0 - 1.0
            summed = name.endswith("conv2.1") or "downsample" in name
            module.bias.data = 8.0 * (sign.abs() if summed else sign)
            nn.init.uniform_(module.weight, 0.5, 1.0)


def stock_twins(stock: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """``stock`` in both memory formats, and in float64.

    Both, because stock convolutions and batch statistics in channels_last_3d round two to ten
    times worse than contiguous ones (measured on CPU, torch 2.13), and that format is the
    operator's.
    """
    last = copy.deepcopy(stock).to(memory_format=torch.channels_last_3d)
    for module in last.modules():
        if isinstance(module, nn.Conv3d | nn.BatchNorm3d):
            # Some stock kernels hand on another format, which depends on the number of threads.
            module.register_forward_pre_hook(_to_channels_last)
    return [stock, last], copy.deepcopy(stock).double()


def _to_channels_last(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].contiguous(memory_format=torch.channels_last_3d),)


@pytest.mark.parametrize("midplanes", ["paper", "torchvision"])
@pytest.mark.parametrize("name", KEYS)
def test_layout(torchvision_resnet: ModuleType, name: str, midplanes: str) -> None:
    stock = getattr(torchvision_resnet, name)(num_classes=5)
    ours = create_model(name, num_classes=5, midplanes=midplanes)
    assert len(ours.state_dict()) == KEYS[name]
    assert list(ours.state_dict()) == list(stock.state_dict())
    if name == "r2plus1d_18" and midplanes == "paper":
        with pytest.raises(RuntimeError, match="size mismatch"):
            ours.load_state_dict(stock.state_dict())
        return
    ours.load_state_dict(stock.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), stock.state_dict().values(), strict=True)
    )
    stock.load_state_dict(ours.state_dict())


@pytest.fixture(scope="module")
def stock(torchvision_resnet: ModuleType) -> nn.Module:
    torch.manual_seed(11)
    network = torchvision_resnet.r2plus1d_18(num_classes=400).eval()
    randomise_norms(network)
    return network


@pytest.fixture(scope="module")
def evaluated(stock: nn.Module) -> list[tuple[Tensor, Tensor, list[Tensor]]]:
    """Clips of every shape, their exact logits and those of ``stock``, in both memory formats."""
    stocks, exact = stock_twins(stock)
    torch.manual_seed(13)
    clips = [torch.randn(shape) for shape in SHAPES]
    with torch.no_grad():
        return [(x, exact(x.double()), [net(x) for net in stocks]) for x in clips]


def test_logits(
    stock: nn.Module, evaluated: list[tuple[Tensor, Tensor, list[Tensor]]], build: Any
) -> None:
    ours = build(stock).eval()
    assert sum(row.fused for row in r21d_ops.fuse_report(ours)) >= 16  # all but a stock stem
    for x, expected, stock_logits in evaluated:
        shape = tuple(x.shape)
        with torch.no_grad():
            assert_accurate(ours(x), expected, stock_logits, f"logits of {shape}")
        # With gradients wanted, the outer BatchNorm stays out of the operator: another code path.
        assert_accurate(ours(x).detach(), expected, stock_logits, f"with gradients, {shape}")


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18"])
def test_logits_of_the_other_networks(torchvision_resnet: ModuleType, name: str) -> None:
    torch.manual_seed(5)
    stock = getattr(torchvision_resnet, name)(num_classes=400)
    randomise_norms(stock)
    ours = create_model(name)
    ours.load_state_dict(stock.state_dict())
    stocks, exact = stock_twins(stock.eval())
    x = torch.randn(2, 3, 5, 29, 37)
    with torch.no_grad():
        assert_accurate(ours.eval()(x), exact(x.double()), [net(x) for net in stocks], "logits")


class TrainingSteps(NamedTuple):
    """A stock network before training, batches, and what one step on each batch gives."""

    network: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    stock: list[dict[str, Tensor]]
    exact: dict[str, Tensor]


@pytest.fixture(scope="module")
def steps(torchvision_resnet: ModuleType) -> TrainingSteps:
    torch.manual_seed(7)
    # One block a group, of both kinds of shortcut: float64 is slow, and the gradients of all 18
    # layers are compared in test_networks.py.
    network = torchvision_resnet.VideoResNet(
        torchvision_resnet.BasicBlock,
        [torchvision_resnet.Conv2Plus1D] * 4,
        [1, 1, 1, 1],
        torchvision_resnet.R2Plus1dStem,
        num_classes=11,
    )
    keep_activations_from_zero(network)
    batches = [(torch.randn(3, 3, 5, 41, 37), torch.randint(0, 11, (3,))) for _ in range(3)]
    stocks, exact = stock_twins(network)
    return TrainingSteps(
        network,
        batches,
        [_train_steps(net, batches) for net in stocks],
        _train_steps(exact, batches),
    )


def test_training(steps: TrainingSteps, build: Any) -> None:
    result = _train_steps(build(steps.network), steps.batches)
    assert set(result) == {"logits", *WATCHED_GRADIENTS, *WATCHED_STATISTICS}
    for what, value in result.items():
        assert_accurate(value, steps.exact[what], [stock[what] for stock in steps.stock], what)


def _train_steps(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    # All values of a step share the rounding of what lies above them, so the errors of one step
    # are few draws of chance; several batches steady their ratio.
    each = [_train_step(copy.deepcopy(net), x, labels) for x, labels in batches]
    return {what: torch.stack([step[what] for step in each]) for what in each[0]}


def _train_step(net: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    logits = net.train()(x.to(parameters["fc.weight"].dtype))
    nn.functional.cross_entropy(logits, labels).backward()
    result = {"logits": logits.detach()}
    for name in WATCHED_GRADIENTS:
        gradient = parameters[name].grad
        assert gradient is not None
        result[name] = gradient
    assert buffers["stem.1.num_batches_tracked"].item() == 1
    return result | {name: buffers[name] for name in WATCHED_STATISTICS}
