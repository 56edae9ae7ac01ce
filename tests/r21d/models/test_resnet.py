"""The network as a module: its input, its blocks, hooks, compile and export (about 20 s,
most of it compiling)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from r21d.models import VideoResNet, create_model, list_models

SMALL: dict[str, Any] = {"widths": (4, 6, 6, 8), "stem_channels": 4, "blocks": (1, 2, 1, 1)}


def small(name: str = "r2plus1d_18", **options: Any) -> VideoResNet:
    torch.manual_seed(1)
    model = create_model(name, 5, **{**SMALL, **options})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 9), (3, 17, 5), (8, 16, 16)])
@pytest.mark.parametrize("name", [name for name in list_models() if name != "i3d"])
def test_any_size_runs(name: str, size: tuple[int, int, int]) -> None:
    model = small(name, clip_len=size[0]).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


def test_empty_batch() -> None:
    assert small().eval()(torch.empty(0, 3, 4, 16, 16)).shape == (0, 5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4, 16, 16), r"of shape \(N, 3, T, H, W\), got torch.float32 of shape"),
        (torch.zeros(1, 4, 8, 16, 16), r"got torch.float32 of shape \(1, 4, 8, 16, 16\)"),
        (torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8), "floating-point.*got torch.uint8"),
        (torch.zeros(1, 3, 0, 16, 16), "at least one frame and one pixel"),
        (torch.zeros(1, 3, 4, 16, 0), "at least one frame and one pixel"),
    ],
)
def test_bad_input(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(x)


@pytest.mark.parametrize("name", ["r2plus1d_18", "fr2d_18"])
@pytest.mark.parametrize(("group", "index"), [("layer1", 0), ("layer2", 0), ("layer2", 1)])
def test_block_is_the_composition_of_its_layers(name: str, group: str, index: int) -> None:
    block = small(name).double().eval().get_submodule(group)[index]
    x = torch.randn(2, 6 if index else 4, 3, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        shortcut = x if block.downsample is None else block.downsample(x)
        expected = torch.relu(block.conv2(block.conv1(x)) + shortcut)
        torch.testing.assert_close(block(x), expected)
    temporal_stride = 2 if group == "layer2" and not index and name == "r2plus1d_18" else 1
    assert expected.shape[2] == (2 if temporal_stride == 2 else 3)


@pytest.mark.parametrize("path", ["conv1", "conv1.2", "conv2", "relu", "conv1.0", "conv2.1"])
def test_hooks_inside_a_block_fire_and_change_nothing(path: str) -> None:
    model = small().eval()
    x = torch.randn(1, 3, 4, 16, 16)
    with torch.no_grad():
        expected = model(x)
        seen: list[torch.Tensor] = []
        target = model.layer2[1].get_submodule(path)
        handle = target.register_forward_hook(lambda module, args, output: seen.append(output))
        torch.testing.assert_close(model(x), expected)
        assert [output.shape for output in seen] == [(1, 6, 2, 4, 4)]
        handle.remove()
        model(x)
    assert len(seen) == 1


def test_another_activation_in_a_block_is_used() -> None:
    model = small().eval()
    x = torch.randn(1, 3, 4, 16, 16)
    with torch.no_grad():
        before = model(x)
        model.layer1[0].conv1[2] = nn.Tanh()
        assert not torch.allclose(model(x), before)


def test_zero_init_residual_starts_blocks_as_their_shortcuts() -> None:
    model = create_model("r2plus1d_18", 5, zero_init_residual=True, **SMALL).eval()
    block = model.layer2[1]
    x = torch.rand(2, 6, 3, 7, 5)  # not negative, as after a ReLU
    with torch.no_grad():
        torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_dropout_acts_before_the_classifier_in_training_only() -> None:
    model = small(dropout=0.5).eval()
    x = torch.randn(16, 3, 2, 16, 16)
    with torch.no_grad():
        still = [model(x) for _ in range(2)]
        assert torch.equal(*still)
        model.dropout.train()
        assert not torch.equal(model(x), model(x))


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = create_model("r3d_18", 200)
    conv = model.layer3[1].conv1[0].weight
    assert conv.std().item() == pytest.approx((2 / (256 * 27)) ** 0.5, rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.fc.bias.abs().max() == 0
    norm = model.layer3[1].conv1[1]
    assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_copies_and_pickles_agree() -> None:
    model = small().eval()
    model.classes = list("abcde")
    x = torch.randn(1, 3, 3, 16, 15)
    with torch.no_grad():
        expected = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), expected)
            assert twin.classes == model.classes and twin.config == model.config


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["r2plus1d_18", "fr2d_18"])
def test_compiles_without_a_graph_break(name: str, training: bool) -> None:
    torch._dynamo.reset()
    model = small(name, blocks=(1, 1, 1, 1)).train(training)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 4, 16, 16)
    with torch.set_grad_enabled(training):
        expected, output = model(x), compiled(x)
    torch.testing.assert_close(output, expected)
    if training:
        for logits in (expected, output):
            nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
        torch.testing.assert_close(
            twin.stem[0].weight.grad, model.stem[0].weight.grad, rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("name", ["r2plus1d_18", "fr2d_18"])
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model = small(name, blocks=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        program = torch.export.export(
            model,
            (torch.randn(2, 3, 4, 16, 16),),
            dynamic_shapes=({0: torch.export.Dim("clips", min=2, max=64)},),
        )
        x = torch.randn(3, 3, 4, 16, 16)
        torch.testing.assert_close(program.module()(x), model(x))
