"""A validation during training: of a network that still trains, and left when a signal asks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from r21d.evaluation.distributed import Ranks
from r21d.evaluation.evaluate import ClipDataset, EvalResult, evaluate
from r21d.training.config import TrainConfig
from r21d.training.parallel import same_buffers
from r21d.training.signals import StopRequest
from r21d.training.step import TrainingDiverged
from r21d.training.sync_bn import local_statistics


class ValidationLeft(Exception):
    """A signal asked to stop.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"asked to stop by signal {signal}")
        self.signal = signal


def validate(
    model: nn.Module,
    val_set: ClipDataset,
    config: TrainConfig,
    ranks: Ranks,
    stop: StopRequest,
    seed: int,
) -> EvalResult:
    """Evaluate ``model`` as it is in the first process; collective.

    ``seed`` decides what a set that draws its clips at random draws.

    Raises:
        ValidationLeft: a process was asked to stop.
        TrainingDiverged: the network's scores are not finite.
    """
    torch.manual_seed(seed)
    same_buffers(model, ranks)
    try:
        with local_statistics(model):
            return evaluate(
                _Stoppable(model, stop),
                val_set,
                batch_size=config.eval_batch_size,
                workers=config.workers,
            )
    except Exception as error:
        # All processes come here, each with an error of its own; the signal counts most.
        asked = ranks.gather(error.signal if isinstance(error, ValidationLeft) else 0)
        if any(asked):
            raise ValidationLeft(max(asked)) from error
        if isinstance(error, FloatingPointError):
            raise TrainingDiverged(f"{error}") from error
        raise


def figures(result: EvalResult) -> dict[str, float]:
    """What an epoch's row says of its validation."""
    return {
        "val_loss": result.loss,
        "clip_top1": result.clip_top1,
        "clip_top5": result.clip_top5,
        "video_top1": result.video_top1,
        "video_top5": result.video_top5,
    }


class _Stoppable(nn.Module):
    """``model`` for as long as nobody asks to stop."""

    def __init__(self, model: nn.Module, stop: StopRequest) -> None:
        super().__init__()
        self.model = model
        self.stop = stop
        # What `evaluate` asks of a model.
        self.classes = getattr(model, "classes", None)
        self.config = getattr(model, "config", {})

    def forward(self, clips: Tensor) -> Tensor:
        if self.stop.requested is not None:
            raise ValidationLeft(self.stop.requested)
        logits: Tensor = self.model(clips)
        return logits
