"""SGD's parameter groups: which parameters learn, and at which rate.  Under a second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from r21d import create_model
from r21d.models.base import VideoModel
from r21d.training.optimizer import build_optimizer, set_learning_rate


def _config(**settings: Any) -> Any:
    """What the optimiser reads of a run's settings."""
    defaults = {
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 1e-4,
        "freeze": 0,
        "lr_scales": {},
    }
    return SimpleNamespace(**{**defaults, **settings})


def _model() -> VideoModel:
    return create_model("r2plus1d_18", num_classes=3, widths=(4, 4, 4, 4), stem_channels=4)


def _rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Learning rate by parameter name, of those the optimiser has."""
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    return {name: rates[id(p)] for name, p in model.named_parameters() if id(p) in rates}


def test_without_scales_every_parameter_is_in_one_group_with_the_settings() -> None:
    model = _model()
    optimizer = build_optimizer(model, _config(momentum=0.8, nesterov=False, weight_decay=0.02))
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.8, False, 0.02)
    assert (group["lr"], group["lr_scale"]) == (0.01, 1.0)


def test_the_longest_prefix_decides_and_ends_where_a_name_ends() -> None:
    model = _model()
    scales = {"layer1": 0.5, "layer1.1": 0.25, "fc": 10.0, "fc.bias": 20.0}
    rates = _rates(model, build_optimizer(model, _config(lr_scales=scales)))
    assert len(rates) == len(list(model.parameters()))
    for name, rate in rates.items():
        if name == "fc.bias":
            factor = 20.0
        elif name.startswith("fc."):
            factor = 10.0
        elif name.startswith("layer1.1."):
            factor = 0.25
        elif name.startswith("layer1."):
            factor = 0.5
        else:
            factor = 1.0
        assert rate == 0.01 * factor, name

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.fc2 = nn.Linear(2, 2)

    heads = TwoHeads()
    rates = _rates(heads, build_optimizer(heads, _config(lr_scales={"fc": 3.0})))
    assert rates["fc.weight"] == 0.01 * 3.0
    assert rates["fc2.weight"] == 0.01


def test_a_prefix_wholly_covered_by_longer_ones_leaves_no_empty_group() -> None:
    model = _model()
    scales = {"fc": 2.0, "fc.weight": 3.0, "fc.bias": 4.0}
    optimizer = build_optimizer(model, _config(lr_scales=scales))
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 3.0, 4.0]
    assert all(group["params"] for group in optimizer.param_groups)


def test_a_new_learning_rate_keeps_the_factors() -> None:
    model = _model()
    optimizer = build_optimizer(model, _config(lr_scales={"fc": 10.0}))
    set_learning_rate(optimizer, 0.003)
    rates = _rates(model, optimizer)
    assert rates["fc.weight"] == 0.003 * 10
    assert rates["stem.0.weight"] == 0.003


def test_frozen_stages_stay_out_and_stay_in_eval() -> None:
    model = _model()
    rates = _rates(model, build_optimizer(model, _config(freeze=2, lr_scales={"stem": 0.1})))
    frozen = model.stages[:2]
    assert rates
    assert not [name for name in rates if name.partition(".")[0] in frozen]
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert list(rates) == learning
    assert not model.train().get_submodule(frozen[0]).training


def test_without_freeze_what_the_caller_froze_stays_frozen() -> None:
    model = _model()
    model.freeze(1)
    model.fc.bias.requires_grad_(False)
    rates = _rates(model, build_optimizer(model, _config()))
    assert "fc.weight" in rates
    assert "fc.bias" not in rates
    assert not [name for name in rates if name.startswith("stem.")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scales": {"fcc": 2.0}}, "'fcc' leads no parameter of the network; did you mean fc"),
        ({"lr_scales": {"layer1.": 2.0}}, "did you mean layer1"),
        ({"lr_scales": {"head": 2.0}}, "it has stem, layer1, layer2, layer3, layer4, fc"),
        ({"lr_scales": {"": 2.0}}, "'' leads no parameter"),
        ({"freeze": 6}, "freeze is 6, expected at most 5"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer(_model(), _config(**settings))


def test_freezing_a_network_without_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="freeze is 1, but Linear has no stages"):
        build_optimizer(nn.Linear(2, 2), _config(freeze=1))


def test_a_network_without_a_parameter_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="every parameter of the network is frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), _config())
