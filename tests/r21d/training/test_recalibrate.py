"""BatchNorm's statistics measured anew, in one process (a second); two are in test_parallel.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from training.rank_parallel import clips, network

from r21d.evaluation.distributed import Ranks
from r21d.training.recalibrate import recalibrate

ALONE = Ranks()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_average_over_clips_of_the_batches_statistics(momentum: float | None) -> None:
    model = nn.Sequential(nn.BatchNorm3d(3, momentum=momentum))
    model[0].running_mean.fill_(torch.nan)  # what was there counts for nothing
    batches = [clips(2, 1), clips(5, 2), clips(0), clips(1, 3)]
    recalibrate(model, batches, ALONE)
    axes = (0, 2, 3, 4)
    weighted = [(len(b), b.double().mean(axes), b.double().var(axes)) for b in batches if len(b)]
    mean = sum(n * m for n, m, _ in weighted) / 8
    variance = sum(n * v for n, _, v in weighted) / 8
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(model[0].running_var.double(), variance, rtol=1e-6, atol=0)
    assert model[0].momentum == momentum and model[0].num_batches_tracked == 0


def test_evaluation_is_then_what_training_saw() -> None:
    model = network().train()
    x = clips(16)
    seen = model(x)
    recalibrate(model, [x], ALONE)
    # Running variances are the unbiased ones, of at least 16 values here.
    torch.testing.assert_close(model.eval()(x), seen, rtol=0.1, atol=0.1 * seen.abs().max().item())
    fresh = network().eval()(x)
    assert (fresh - seen).abs().max() > 0.2 * seen.abs().max()


def test_nothing_else_changes() -> None:
    model = network()
    model.fc = nn.Sequential(nn.Dropout(0.9), model.fc)
    model.freeze(2)
    model.train()
    model.layer4.eval()
    model.layer3[0].conv1[1].momentum = 0.25
    modes = [module.training for module in model.modules()]
    before, drawn = state(model), torch.get_rng_state()
    recalibrate(model, [clips(3)], ALONE)
    found = changed(model, before)
    assert all(name.endswith(("running_mean", "running_var")) for name in found)
    # Those of frozen stages stay; in layer4 somebody else's eval() is undone by train() as ever.
    assert {name.split(".")[0] for name in found} == {"layer2", "layer3", "layer4"}
    assert [module.training for module in model.modules()] == modes
    assert model.layer3[0].conv1[1].momentum == 0.25
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_clips_or_running_statistics_nothing_happens() -> None:
    model = network()
    before = state(model)
    recalibrate(model, [], ALONE)
    recalibrate(model, iter([clips(0)]), ALONE)
    assert not changed(model, before)
    bare = nn.Sequential(nn.BatchNorm3d(3, track_running_stats=False))
    recalibrate(bare, [clips(2)], ALONE)
    assert bare[0].running_mean is None


def test_an_error_leaves_what_was_there() -> None:
    model = network().train()
    before = state(model)
    with pytest.raises(ValueError, match="x must be a floating-point tensor"):
        recalibrate(model, [clips(2), clips(2)[0]], ALONE)
    assert not changed(model, before) and model.training
