"""``r21d train --dry-run``: what a run would do, and whether it could."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from r21d.training.config import TrainConfig
from r21d.training.protocol import dump_config
from r21d.training.run_config import RunConfig

if TYPE_CHECKING:
    from r21d.evaluation.distributed import Ranks
    from r21d.models import VideoModel
    from r21d.video import VideoDataset


def try_run(
    config: RunConfig,
    device: str,
    train_set: VideoDataset,
    val_set: VideoDataset,
    model: VideoModel,
    ranks: Ranks,
) -> None:
    """Print the settings and what follows from them; take one step and validate one batch.

    Nothing is written. Collective.
    """
    from r21d.evaluation import evaluate
    from r21d.training import train

    settings = replace(config.train, device=device)
    if ranks.rank == 0:
        print(f"\n{dump_config(config)}")
        print("\n".join(describe_steps(settings, len(train_set), ranks.world)), flush=True)
    # What comes once an epoch takes its time, and none of it is needed for a step.
    once = replace(settings, max_steps=1, bn_recalibration=0)
    train(model, train_set, None, once)
    videos = max(1, settings.eval_batch_size // (val_set.clips or 1)) * ranks.world
    part = val_set.subset(range(min(videos, len(val_set))), train=False, sampling=val_set.sampling)
    result = evaluate(model, part, batch_size=settings.eval_batch_size, workers=settings.workers)
    if ranks.rank == 0:
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        print(f"parameters: {total:,}, of which {total - learning:,} are frozen")
        print(
            f"tried: a step of {settings.global_batch(ranks.world)} clips, and a validation of "
            f"{result.clips} clips of {result.videos} videos; nothing was written"
        )


def describe_steps(config: TrainConfig, videos: int, world: int) -> list[str]:
    """Lines on batches, steps and learning rates of a run on so many ``videos``."""
    steps, clips = config.steps_per_epoch(videos, world), config.global_batch(world)
    total = config.total_steps(videos, world)
    lines = [
        f"step: {clips} clips, {config.batch_size} a pass x {config.accumulate} (--accumulate) x "
        f"{world} (processes)",
        f"epoch: {steps} steps, {steps * clips / videos:.3g} times the {videos} training videos",
        f"run: {total} steps, {total * clips} clips",
        f"learning rate: {_learning_rates(config, steps, world)}",
    ]
    if config.lr_scales:
        scales = ", ".join(f"{name} times {factor:g}" for name, factor in config.lr_scales.items())
        lines.append(f"of it: {scales}")
    return lines


def _learning_rates(config: TrainConfig, steps: int, world: int) -> str:
    """The schedule: each value and the epoch in which it begins."""
    from r21d.training.schedule import learning_rate

    after = replace(config, warmup_epochs=0.0)
    values = [learning_rate(after, epoch * steps, steps, world) for epoch in range(config.epochs)]
    if config.schedule == "step":
        shown = [e for e in range(config.epochs) if e == 0 or values[e] != values[e - 1]]
        text = ", ".join(f"{values[epoch]:.3g} from epoch {epoch + 1}" for epoch in shown)
    else:
        text = f"{values[0]:.3g} falling to {values[-1]:.3g} in epoch {config.epochs}"
    if config.warmup_epochs:
        first = learning_rate(config, 0, steps, world)
        text += f"; rising from {first:.3g} in the first {config.warmup_epochs:g} epochs"
    return text
