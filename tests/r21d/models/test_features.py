"""Features, another head, frozen stages (about 3 s)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from r21d.models import VideoResNet, create_model

SMALL: dict[str, Any] = {"widths": (4, 6, 6, 8), "stem_channels": 4}
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture
def model() -> VideoResNet:
    torch.manual_seed(0)
    return create_model("r2plus1d_18", 5, **SMALL).eval()


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(2, 3, 8, 32, 32)


def test_pooled_features_are_what_the_head_sees(model: VideoResNet, clips: torch.Tensor) -> None:
    with torch.no_grad():
        features = model.features(clips)
        assert features.shape == (2, 8)
        torch.testing.assert_close(model.fc(features), model(clips))


@pytest.mark.parametrize("stage", STAGES)
def test_maps_of_every_stage(model: VideoResNet, clips: torch.Tensor, stage: str) -> None:
    expected = clips
    with torch.no_grad():
        for name in STAGES[: STAGES.index(stage) + 1]:
            expected = model.get_submodule(name)(expected)
        assert torch.equal(model.features(clips, stage, pool=False), expected)
        pooled = model.features(clips, stage)
    torch.testing.assert_close(pooled, expected.flatten(2).mean(2))


def test_several_stages_in_one_pass(model: VideoResNet, clips: torch.Tensor) -> None:
    runs: list[str] = []
    for name in STAGES:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.append(name))
    with torch.no_grad():
        found = model.features(clips, ["layer3", "layer1"])
    assert runs == ["stem", "layer1", "layer2", "layer3"]
    assert list(found) == ["layer3", "layer1"]
    assert [tuple(tensor.shape) for tensor in found.values()] == [(2, 6), (2, 4)]


@pytest.mark.parametrize("stages", ["fc", "layer5", [], ["layer1", "avgpool"]])
def test_unknown_stages(model: VideoResNet, clips: torch.Tensor, stages: Any) -> None:
    with pytest.raises(ValueError, match="must name stages of the network: stem, layer1, layer2"):
        model.features(clips, stages)


def test_features_check_their_input(model: VideoResNet) -> None:
    with pytest.raises(ValueError, match="x must be a floating-point tensor"):
        model.features(torch.zeros(1, 4, 2, 8, 8))


@pytest.mark.parametrize("training", [True, False])
def test_replace_head(model: VideoResNet, clips: torch.Tensor, training: bool) -> None:
    model.double().train(training)
    model.classes = list("abcde")
    body = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith("fc.")}
    model.replace_head(3)
    assert model(clips.double()).shape == (2, 3)
    assert model.fc.weight.dtype == torch.float64 and model.fc.training is training
    assert 0 < model.fc.weight.std() < 0.02 and not model.fc.bias.any()
    assert model.config["num_classes"] == 3 and model.classes is None
    if not training:
        assert all(torch.equal(model.state_dict()[name], body[name]) for name in body)
    create_model(**model.config).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        model.replace_head(0)


def test_frozen_groups_neither_learn_nor_count(model: VideoResNet, clips: torch.Tensor) -> None:
    model.freeze(3)
    model.train()
    frozen, free = STAGES[:3], (*STAGES[3:], "fc")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(clips), torch.tensor([0, 1])).backward()
    optimizer.step()
    after = model.state_dict()
    for name, tensor in before.items():
        if name.startswith(frozen):
            assert torch.equal(after[name], tensor), name
    for stage in free:
        names = [name for name, _ in model.named_parameters() if name.startswith(stage)]
        assert any(not torch.equal(after[name], before[name]) for name in names), stage
    assert not torch.equal(after["layer3.0.conv1.1.running_mean"], torch.zeros(6))
    assert model.training and not model.layer2.training and model.layer3.training


def test_freeze_and_thaw(model: VideoResNet) -> None:
    model.train()
    model.freeze(5)
    assert not model.layer4[0].conv1[1].training
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    model.freeze(0)
    assert model.stem[1].training and all(p.requires_grad for p in model.parameters())
    model.eval()
    model.freeze(2)
    assert not any(module.training for module in model.modules())


def test_what_was_frozen_in_another_way_stays_so(model: VideoResNet) -> None:
    model.layer3.requires_grad_(False)
    model.freeze(2)
    model.freeze(0)
    assert not any(p.requires_grad for p in model.layer3.parameters())
    assert all(p.requires_grad for p in model.stem.parameters())


@pytest.mark.parametrize("groups", [-1, 6, 1.5, True])
def test_freeze_bad_numbers(model: VideoResNet, groups: Any) -> None:
    with pytest.raises(ValueError, match="groups must be"):
        model.freeze(groups)
