"""Settings. Well under a second."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r21d.training import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"epochs": 2.5}, "epochs is 2.5, expected a whole number"),
        ({"epoch_clips": 0}, "epoch_clips is 0, expected at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": None}, "batch_size is None, expected a whole number"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"accumulate": True}, "accumulate is True, expected a whole number"),
        ({"lr": 0.0}, r"lr is 0\.0"),
        ({"lr": float("nan")}, "lr is nan, expected a finite number"),
        ({"lr_batch": 0}, "lr_batch is 0"),
        ({"momentum": 0.0}, r"momentum is 0\.0"),
        ({"momentum": 1.0, "nesterov": False}, r"momentum is 1\.0"),
        ({"nesterov": "no"}, "nesterov is 'no', expected true or false"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0"),
        ({"schedule": "linear"}, "schedule is 'linear', expected one of step, cosine"),
        ({"dtype": "float64"}, "dtype is 'float64', expected one of float32, bfloat16, float16"),
        ({"warmup_epochs": 46.0}, r"warmup_epochs is 46\.0, expected between 0 and epochs"),
        ({"warmup_start": 1.5}, r"warmup_start is 1\.5"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0"),
        ({"clip_gradients": 0.0}, r"clip_gradients is 0\.0, expected above 0"),
        ({"lr_scales": {"fc": 0.0}}, r"lr_scales is \{'fc': 0\.0\}"),
        ({"lr_scales": [("fc", 1.0)]}, "lr_scales is"),
        ({"freeze": -1}, "freeze is -1"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"validate_epochs": 0}, "validate_epochs is 0"),
        ({"checkpoint_steps": -1}, "checkpoint_steps is -1"),
        ({"keep": 0}, "keep is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": 100_000}, r"workers is 100000, expected at most \d{3}"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, r"seed is 4294967296, expected between 0 and 2\*\*32 - 1"),
        ({"lr_gamma": 1.5}, r"lr_gamma is 1\.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_none_is_allowed_where_it_means_something() -> None:
    config = TrainConfig(epoch_clips=None, lr_batch=None, clip_gradients=None, max_steps=None)
    assert TrainConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig(momentum=0.0, nesterov=False).momentum == 0


def test_steps_follow_from_clips() -> None:
    config = TrainConfig(epochs=3, batch_size=4, accumulate=2)
    assert config.global_batch() == 8 and config.global_batch(world=3) == 24
    # One pass over the videos, rounded up to whole steps.
    assert [config.steps_per_epoch(videos) for videos in (1, 8, 9, 24)] == [1, 1, 2, 3]
    assert config.steps_per_epoch(100, world=3) == 5
    assert config.total_steps(24) == 9
    counted = TrainConfig(epochs=45, epoch_clips=1_000_000, max_steps=100_000)
    assert counted.steps_per_epoch(240_000) == 31_250
    assert counted.total_steps(240_000) == 100_000


def test_linear_scaling_follows_the_global_batch() -> None:
    assert TrainConfig(lr=0.01, batch_size=8).peak_lr(world=4) == 0.01
    scaled = TrainConfig(lr=0.01, lr_batch=32, batch_size=8, accumulate=2)
    assert scaled.peak_lr(world=8) == pytest.approx(0.04)
