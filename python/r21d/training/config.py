"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

SCHEDULES = ("step", "cosine")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of :func:`r21d.training.train`.

    The defaults are the paper's for Kinetics where it states them (section 4.1: SGD, 32 clips a
    batch, learning rate 0.01 divided by 10 every 10 epochs, 45 epochs) and VMZ's scripts, the
    authors' own code, where it does not (Nesterov momentum 0.9, weight decay 1e-4). All else is
    off by default and a choice of this library. A step is one update of the weights; the global
    batch is what it sees: ``batch_size * accumulate`` clips of each process.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    epochs: int = 45
    """How many epochs the run has."""
    epoch_clips: int | None = None
    """Clips an epoch, rounded up to whole steps; None: as many as there are training videos."""
    batch_size: int = 32
    """Clips a forward pass of each process."""
    accumulate: int = 1
    """Forward and backward passes a step, whose gradients are averaged."""
    lr: float = 0.01
    """Peak learning rate, that of ``lr_batch`` clips a step."""
    lr_batch: int | None = None
    """Linear scaling: with G clips a step the peak is ``lr * G / lr_batch``. None: ``lr``."""
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    """Of all parameters alike, BatchNorm's and biases included."""
    schedule: str = "step"
    """``"step"``: times ``lr_gamma`` every ``lr_step`` epochs; ``"cosine"``: to zero at the end."""
    lr_step: int = 10
    lr_gamma: float = 0.1
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly to the schedule's value."""
    warmup_start: float = 0.0
    """The share of that value from which it rises."""
    label_smoothing: float = 0.0
    """Share of the truth that is spread evenly over all classes."""
    clip_gradients: float | None = None
    """Largest norm of all gradients together; longer ones are scaled down to it."""
    dtype: str = "float32"
    """``"bfloat16"`` and ``"float16"`` run the network under autocast; parameters stay float32.

    With float16 the loss is scaled (``torch.amp.GradScaler``), and an update whose gradients
    overflow is left out.
    """
    compile: bool = False
    """Run the network through ``torch.compile``."""
    channels_last: bool = True
    """Keep activations and convolution weights in ``torch.channels_last_3d``."""
    sync_bn: bool = False
    """BatchNorm over the clips of all processes (of one forward pass) together."""
    bn_recalibration: int = 0
    """Training clips, rounded up to whole batches, from which BatchNorm's running statistics are
    taken anew after each epoch."""
    freeze: int = 0
    """How many of the network's first stages (``VideoModel.stages``) do not learn."""
    lr_scales: dict[str, float] = dataclasses.field(default_factory=dict)
    """Factors of the learning rate by prefix of parameters' names, ``{"fc": 10.0}``; the longest
    that fits counts."""
    max_steps: int | None = None
    """The run ends after this many steps, resumed parts counted, wherever the schedule is."""
    validate_epochs: int = 1
    """Validate after every so many epochs, and after the last one."""
    checkpoint_steps: int = 500
    """Save the state every so many steps, beside every epoch's end; 0: only there."""
    keep: int = 3
    """How many states are kept, the newest."""
    log_steps: int = 10
    """Steps between two lines of the log, which has the first step and each epoch's last, too."""
    device: str = "cpu"
    workers: int = 0
    """Decoding processes of each process; 0 decodes in the training process. At most 256, or four
    a CPU where those are more."""
    eval_batch_size: int = 32
    """Clips a forward pass during validation."""
    seed: int = 0
    """Decides the order of the videos, temporal jitter, crops, flips and dropout."""

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(self, name, whole, "a whole number")
            require(self, name, value >= least, f"at least {least}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            require(self, name, number and math.isfinite(value), "a finite number")
        for name in _SWITCHES:
            require(self, name, isinstance(getattr(self, name), bool), "true or false")
        require(self, "seed", self.seed < 2**32, "between 0 and 2**32 - 1")
        # A slip of the keyboard would fill the memory of the whole machine.
        most = max(256, 4 * (os.cpu_count() or 1))
        require(self, "workers", self.workers <= most, f"at most {most}")
        require(self, "lr", self.lr > 0, "a finite number above 0")
        require(self, "lr_gamma", 0 < self.lr_gamma <= 1, "above 0 and at most 1")
        # Nesterov's update is undefined at momentum 0.
        if self.nesterov:
            expected = "above 0 and below 1; 0 needs nesterov=False (--no-nesterov)"
            require(self, "momentum", 0 < self.momentum < 1, expected)
        require(self, "momentum", 0 <= self.momentum < 1, "0 or more, below 1")
        require(self, "weight_decay", self.weight_decay >= 0, "a finite number, 0 or more")
        require(
            self, "warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, "between 0 and epochs"
        )
        require(self, "warmup_start", 0 <= self.warmup_start <= 1, "between 0 and 1")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "0 or more, below 1")
        if self.clip_gradients is not None:
            require(self, "clip_gradients", self.clip_gradients > 0, "above 0")
        require(self, "schedule", self.schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES))
        require(self, "dtype", self.dtype in DTYPES, "one of " + ", ".join(DTYPES))
        require(self, "lr_scales", _are_factors(self.lr_scales), "names with finite factors > 0")

    def global_batch(self, world: int = 1) -> int:
        """Clips a step, of ``world`` processes together."""
        return self.batch_size * self.accumulate * world

    def steps_per_epoch(self, videos: int, world: int = 1) -> int:
        """Steps an epoch over a training set of so many ``videos``."""
        clips = videos if self.epoch_clips is None else self.epoch_clips
        return max(1, math.ceil(clips / self.global_batch(world)))

    def total_steps(self, videos: int, world: int = 1) -> int:
        """Steps of the whole run, ``max_steps`` heeded."""
        steps = self.epochs * self.steps_per_epoch(videos, world)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def peak_lr(self, world: int = 1) -> float:
        """The learning rate that the schedule is a share of, by linear scaling."""
        if self.lr_batch is None:
            return self.lr
        return self.lr * self.global_batch(world) / self.lr_batch

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dictionary of JSON values."""
        return dataclasses.asdict(self)


# Whole numbers, with the least that each may be.
_WHOLE = {
    "epochs": 1,
    "epoch_clips": 1,
    "batch_size": 1,
    "accumulate": 1,
    "lr_batch": 1,
    "lr_step": 1,
    "bn_recalibration": 0,
    "freeze": 0,
    "max_steps": 1,
    "validate_epochs": 1,
    "checkpoint_steps": 0,
    "keep": 1,
    "log_steps": 1,
    "workers": 0,
    "eval_batch_size": 1,
    "seed": 0,
}
_NUMBERS = (
    "lr",
    "momentum",
    "weight_decay",
    "lr_gamma",
    "warmup_epochs",
    "warmup_start",
    "label_smoothing",
    "clip_gradients",
)
_SWITCHES = ("nesterov", "compile", "channels_last", "sync_bn")
_OPTIONAL = ("epoch_clips", "lr_batch", "clip_gradients", "max_steps")


def _are_factors(scales: object) -> bool:
    return isinstance(scales, dict) and all(
        isinstance(name, str)
        and name
        and isinstance(factor, int | float)
        and not isinstance(factor, bool)
        and 0 < factor < math.inf
        for name, factor in scales.items()
    )


def require(config: object, name: str, valid: bool, expected: str) -> None:
    """Refuse an invalid value of setting ``name``.

    Raises:
        ValueError: it is not ``valid``; the message says what is ``expected``.
    """
    if not valid:
        raise ValueError(f"{name} is {getattr(config, name)!r}, expected {expected}")
