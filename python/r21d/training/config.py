"""The settings of a training run, each with its source."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

SCHEDULES = ("step", "cosine")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of :func:`r21d.training.train`.

    The defaults are the paper's for Kinetics where it states them (section 4.1: SGD, 32 clips a
    batch, learning rate 0.01 divided by 10 every 10 epochs, 45 epochs) and VMZ's scripts, the
    authors' own code, where it does not (Nesterov momentum 0.9, weight decay 1e-4). An epoch is
    one pass over the training videos, one random clip each. ``warmup_epochs``, ``"cosine"`` and
    bfloat16 autocast are choices of this library.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    epochs: int = 45
    """Passes over the training videos."""
    batch_size: int = 32
    """Clips a step."""
    lr: float = 0.01
    """Peak learning rate."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    """``"step"``: times ``lr_gamma`` every ``lr_step`` epochs; ``"cosine"``: to zero at the end."""
    lr_step: int = 10
    lr_gamma: float = 0.1
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from zero to the schedule's value."""
    dtype: str = "float32"
    """``"bfloat16"`` runs the network under autocast; parameters stay float32."""
    channels_last: bool = True
    """Keep activations and convolution weights in ``torch.channels_last_3d``."""
    device: str = "cpu"
    workers: int = 0
    """Decoding processes; 0 decodes in the training process."""
    eval_batch_size: int = 32
    """Clips a forward pass during validation."""
    seed: int = 0
    """Decides shuffling, temporal jitter, crops, flips and dropout."""

    def __post_init__(self) -> None:
        whole = ("epochs", "batch_size", "lr_step", "eval_batch_size")
        for name in whole:
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "workers", self.workers >= 0, "0 or more")
        _require(self, "seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")
        _require(self, "lr", 0 < self.lr < math.inf, "a finite number above 0")
        _require(self, "lr_gamma", 0 < self.lr_gamma <= 1, "above 0 and at most 1")
        # Nesterov's update is undefined at momentum 0.
        _require(self, "momentum", 0 < self.momentum < 1, "above 0 and below 1")
        _require(
            self, "weight_decay", 0 <= self.weight_decay < math.inf, "a finite number, 0 or more"
        )
        _require(
            self, "warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, "between 0 and epochs"
        )
        _require(self, "schedule", self.schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES))
        _require(self, "dtype", self.dtype in DTYPES, "one of " + ", ".join(DTYPES))

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dictionary of JSON values."""
        return dataclasses.asdict(self)


def _require(config: TrainConfig, name: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"{name} is {getattr(config, name)!r}, expected {expected}")


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of optimiser step ``step`` (counted from 0 over the whole run)."""
    epoch = step / steps_per_epoch
    if config.schedule == "step":
        scale = config.lr_gamma ** (step // steps_per_epoch // config.lr_step)
    else:
        scale = 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    if epoch < config.warmup_epochs:
        # (step + 1): the first step already moves the weights.
        scale *= min(1.0, (step + 1) / (steps_per_epoch * config.warmup_epochs))
    return config.lr * scale
