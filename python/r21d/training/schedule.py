"""The learning rate over a run."""

from __future__ import annotations

import math

from r21d.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int, world: int = 1) -> float:
    """Learning rate of optimiser step ``step`` (counted from 0 over the whole run).

    ``world``: the number of processes, which linear scaling (``config.lr_batch``) heeds.
    """
    epoch = step / steps_per_epoch
    if config.schedule == "step":
        scale = config.lr_gamma ** (step // steps_per_epoch // config.lr_step)
    else:
        scale = 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    if epoch < config.warmup_epochs:
        # (step + 1): the first step already moves the weights.
        risen = min(1.0, (step + 1) / (steps_per_epoch * config.warmup_epochs))
        scale *= config.warmup_start + (1 - config.warmup_start) * risen
    return config.peak_lr(world) * scale
