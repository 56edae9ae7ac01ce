"""Settings and learning-rate schedules. Well under a second."""

from __future__ import annotations

from typing import Any

import pytest

from r21d.training import TrainConfig, learning_rate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 0.0}, "momentum is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"schedule": "linear"}, "schedule is 'linear', expected one of step, cosine"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"warmup_epochs": 46.0}, "warmup_epochs is 46.0, expected between 0 and epochs"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"lr_gamma": 1.5}, "lr_gamma is 1.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_defaults_follow_the_paper() -> None:
    config = TrainConfig()
    by_epoch = [learning_rate(config, epoch * 100, 100) for epoch in (0, 9, 10, 20, 44)]
    assert by_epoch == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-6])
    assert (config.epochs, config.batch_size) == (45, 32)


def test_cosine_falls_from_peak_to_zero() -> None:
    config = TrainConfig(epochs=4, lr=0.4, schedule="cosine")
    rates = [learning_rate(config, step, 10) for step in range(41)]
    assert rates[0] == pytest.approx(0.4)
    assert rates[20] == pytest.approx(0.2)
    assert rates[40] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)


def test_warmup_rises_linearly_and_ends_on_the_schedule() -> None:
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=2.0, lr_step=100)
    rates = [learning_rate(config, step, 5) for step in range(12)]
    assert rates == pytest.approx([0.1 * (i + 1) for i in range(10)] + [1.0, 1.0])
