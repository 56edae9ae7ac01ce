"""Weights into a network: all of them or none (about 2 s)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from r21d.models import VideoResNet, create_model
from r21d.video.transforms import InputSpec
from r21d.weights import CheckpointError, load_weights, save_checkpoint

safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs the extra 'train'")

SMALL: dict[str, Any] = {"widths": (4, 6, 6, 8), "stem_channels": 4, "blocks": (1, 1, 1, 1)}
LABELS = ["a", "b", "c"]
State = dict[str, torch.Tensor]


def small(seed: int, **options: Any) -> VideoResNet:
    torch.manual_seed(seed)
    return create_model("r2plus1d_18", **{"num_classes": 3, **SMALL, **options})


def same(model: nn.Module, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def copied(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(params=["a.pth", "a.pt", "a.safetensors"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[State], Path]:
    """Writes a plain state dict and returns the file."""

    def to_file(state: State) -> Path:
        path = tmp_path / str(request.param)
        if path.suffix == ".safetensors":
            safetensors_torch.save_file(state, path)
        else:
            torch.save(state, path)
        return path

    return to_file


def test_plain_state_dicts(write: Callable[[State], Path]) -> None:
    source, model = small(0), small(1)
    model.classes = LABELS
    load_weights(model, write(source.state_dict()))
    assert same(model, source.state_dict())
    assert model.classes == LABELS and model.input_spec is None


def test_checkpoint_sets_classes_and_input(tmp_path: Path) -> None:
    source, model, spec = small(0), small(1, dropout=0.5), InputSpec(clip_len=8)
    save_checkpoint(tmp_path / "a", source, classes=LABELS, input=spec.to_dict())
    load_weights(model, tmp_path / "a")
    assert same(model, source.state_dict())
    assert model.classes == LABELS and model.input_spec == spec


def test_create_model_takes_a_plain_state_dict(write: Callable[[State], Path]) -> None:
    source = small(0, midplanes="torchvision")
    path = write(source.state_dict())
    model = create_model("r2plus1d_18", 3, path, "torchvision", **SMALL)
    assert same(model, source.state_dict())


def test_differences_are_named_and_the_model_is_untouched(
    write: Callable[[State], Path],
) -> None:
    state = copied(small(0))
    state["fc.bias"] = torch.zeros(4)
    state["head.weight"] = torch.zeros(2)
    for name in [name for name in state if name.startswith("layer4")]:
        del state[name]
    model = small(1)
    before = copied(model)
    with pytest.raises(ValueError) as caught:
        load_weights(model, write(state))
    message = str(caught.value)
    missing = sum(name.startswith("layer4") for name in before)
    first = "layer4.0.conv1.0.0.weight, layer4.0.conv1.0.1.weight, layer4.0.conv1.0.1.bias"
    assert f"missing from the file: {first} and {missing - 3} more" in message
    assert "unknown to the model: head.weight" in message
    assert "of another shape: fc.bias (4 in the file, 3 in the model)" in message
    assert same(model, before)


def test_transposed_weights_do_not_pass_as_equal_sizes(write: Callable[[State], Path]) -> None:
    state = copied(small(0))
    state["fc.weight"] = state["fc.weight"].t().contiguous()
    with pytest.raises(ValueError, match=r"fc.weight \(8x3 in the file, 3x8 in the model\)"):
        load_weights(small(1), write(state))


def test_checkpoint_of_another_network_names_the_arguments(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", small(0), classes=LABELS, input=InputSpec().to_dict())
    with pytest.raises(ValueError) as caught:
        load_weights(create_model("r2plus1d_18", **SMALL), tmp_path / "a")
    assert "num_classes is 3 in the file and 400 in the model" in str(caught.value)
    assert f"create_model('r2plus1d_18', weights='{tmp_path / 'a'}')" in str(caught.value)


def test_files_of_old_pytorch_count_no_batches(write: Callable[[State], Path]) -> None:
    layer, state = nn.Sequential(nn.BatchNorm3d(3)), nn.Sequential(nn.BatchNorm3d(3)).state_dict()
    state["0.running_mean"] = torch.ones(3)
    del state["0.num_batches_tracked"]
    load_weights(layer, write(dict(state)))
    assert torch.equal(layer[0].running_mean, torch.ones(3)) and not layer[0].num_batches_tracked


def test_eps_shows_in_no_shape_and_is_checked_all_the_same(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", small(0, eps=1e-3), classes=LABELS, input=InputSpec().to_dict())
    model = small(1)
    before = copied(model)
    with pytest.raises(ValueError, match=r"eps is 0.001 in the file and 1e-05 in the model"):
        load_weights(model, tmp_path / "a")
    assert same(model, before) and model.classes is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list instead of tensors by name"),
        ({"state_dict": {"fc.weight": "a"}}, "fc.weight"),
        ({3: torch.zeros(2)}, "entry 3 is a Tensor"),
        ({"fc.bias": torch.zeros(3).to_sparse()}, "expected a dense tensor of real numbers"),
        ({"fc.bias": torch.zeros(3, dtype=torch.complex64)}, "expected a dense tensor"),
        ({"fc.bias": torch.zeros(3, device="meta")}, "fc.bias is a meta tensor"),
    ],
)
def test_files_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_weights(small(0), tmp_path / "a.pth")


@pytest.mark.parametrize("wrap", [nn.DataParallel])
def test_wrappers_are_looked_through(
    wrap: Callable[[nn.Module], nn.Module], write: Callable[[State], Path]
) -> None:
    given, model = small(0), small(1)
    load_weights(wrap(model), write(copied(given)))
    assert same(model, copied(given))


def test_eps_is_that_of_the_layers(tmp_path: Path) -> None:
    """VMZ's and ig65m's own recipe sets it after building the network."""
    model = small(0)
    save_checkpoint(tmp_path / "a", model, classes=LABELS, input={})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    before = copied(model)
    with pytest.raises(ValueError, match=r"eps is 1e-05 in the file and 0.001 in the model"):
        load_weights(model, tmp_path / "a")
    assert same(model, before)
    with pytest.raises(ValueError, match=r"eps is 0.001 in the model and 1e-05 in its config"):
        save_checkpoint(tmp_path / "b", model, classes=LABELS, input={})
    assert not (tmp_path / "b").exists()


def test_near_misses_name_their_layout(write: Callable[[State], Path]) -> None:
    state = copied(small(0))
    del state["layer1.0.conv1.0.0.weight"]
    with pytest.raises(ValueError, match=r"the layout of torchvision.*layer1.0.conv1.0.0.w"):
        load_weights(small(1), write(state))
