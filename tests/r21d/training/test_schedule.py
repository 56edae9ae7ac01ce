"""Learning rates over a run. Well under a second."""

from __future__ import annotations

import pytest

from r21d.training import TrainConfig, learning_rate


def test_defaults_follow_the_paper() -> None:
    config = TrainConfig()
    by_epoch = [learning_rate(config, epoch * 100, 100) for epoch in (0, 9, 10, 20, 44)]
    assert by_epoch == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-6])
    assert (config.epochs, config.batch_size) == (45, 32)


def test_a_step_falls_between_two_steps_of_training() -> None:
    config = TrainConfig(lr=1.0, lr_step=2, lr_gamma=0.5)
    assert [learning_rate(config, step, 3) for step in (5, 6, 11, 12)] == [1.0, 0.5, 0.5, 0.25]


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


def test_warmup_starts_at_a_share_of_the_schedule() -> None:
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=1.0, warmup_start=0.5, lr_step=100)
    assert [learning_rate(config, step, 4) for step in range(5)] == pytest.approx(
        [0.625, 0.75, 0.875, 1.0, 1.0]
    )


def test_linear_scaling_reaches_the_schedule() -> None:
    config = TrainConfig(lr=0.01, lr_batch=32, batch_size=32)
    assert learning_rate(config, 1000, 100, world=8) == pytest.approx(0.008)
