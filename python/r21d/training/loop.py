"""Training: SGD over a set of videos, able to stop at any moment and go on without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from r21d.evaluation.distributed import current_ranks
from r21d.evaluation.evaluate import ClipDataset
from r21d.models.base import VideoModel
from r21d.training import run_folder
from r21d.training.config import TrainConfig
from r21d.training.results import History
from r21d.training.run import Run
from r21d.training.signals import StopRequest
from r21d.training.state import States
from r21d.training.sync_bn import restore_batch_norm


def train(
    model: nn.Module,
    train_set: ClipDataset,
    val_set: ClipDataset | None,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
    on_start: Callable[[], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    description: Mapping[str, Any] | None = None,
    stop: StopRequest | None = None,
) -> History:
    """Train ``model`` in place with SGD; its classes become ``train_set``'s.

    On one machine, one set of versions and one number of processes, equal seeds give equal runs,
    and a run that was interrupted at any moment and resumed equals an uninterrupted one, on the
    CPU bit for bit: each step takes its clips and its random numbers from the seed and its own
    number. Each clip draws from a seed of its own, so any number of workers gives the same run, as
    long as ``train_set`` draws from nothing but torch's global generator. The caller's random
    state is left as it was.

    Where torch.distributed has a default group (`r21d.training.parallel.training_ranks`), all its
    processes call this with equal arguments, each with its own device; the first alone writes.

    Args:
        model: Maps float32 (N, 3, T, H, W) to logits (N, classes). With ``out`` a
            :class:`r21d.models.VideoModel`, of which checkpoints can be made.
        train_set: Items ``(clips (K, 3, T, H, W), label, video index)``. Clips are float32, or
            uint8, which are normalised on the device by ``train_set.spec``. A label is a class
            index, or float32 (classes,) of ones and zeros; the loss is then the cross-entropy
            against all ones alike, and a clip counts as right by any of them.
        val_set: The same with the clips to test on, or None.
        config: Settings.
        out: The run's folder (see `r21d.training.run_folder`): ``states``, from which ``resume``
            goes on, the logs, ``history.jsonl``, ``last.safetensors``, and of the best epoch (by
            video@1, then clip@1) ``best.safetensors`` and ``best.json``. Each file appears whole or
            not at all. None writes nothing.
        resume: Go on from the newest state in ``out``. A complete run then returns its history.
        overwrite: Replace a run that ``out`` already holds. It stays until all that can be checked
            before the first step has been.
        allow_changes: Resume with settings other than the run's, a lower ``lr`` say. Clips, network
            and data have to stay the same: ``seed``, ``epoch_clips``, the clips of a step and
            ``description``. Each change is logged, and noted in states and checkpoints
            (``changes``: the step, and of each setting the value before and after).
        on_start: Called in the first process once ``out`` is this run's, before the first step.
        on_epoch: Called in the first process with the epoch's row once its files are written.
        description: JSON values about data and network, by name. They are kept with the states and
            checkpoints, and a run is not resumed with others.
        stop: Asks the run to stop; by default SIGTERM, SIGINT and SIGHUP do, in the main thread.
            The step at hand ends, or the validation is left, the state is saved, and
            TrainingStopped raised.

    Returns:
        A row per epoch: ``epoch`` (from 1), ``step`` and ``clips`` (so far), ``lr`` (of its last
        step), ``train_loss`` and ``train_clip_top1`` (mean over its clips); where it was validated
        also ``val_loss``, ``clip_top1``, ``clip_top5``, ``video_top1``, ``video_top5``; with
        float16 ``skipped_steps``; ``seconds`` it took, validation counted.

    Raises:
        TrainingStopped: a signal asked for it.
        TrainingDiverged: a loss or gradient became infinite or NaN.
        TrainingInterrupted: a file could not be written.
        ResumeError: ``resume`` and the state is missing, damaged or of another run.
        FileExistsError: ``out`` holds a run and neither ``resume`` nor ``overwrite`` is given.
        BlockingIOError: another process trains in ``out``.
        ChildProcessError: a decoding process died.
        VideoError: no video can be decoded, or one cannot and the set is ``strict``.
        MemoryError: there is too little, on the CPU or the GPU.
        RankFailed: another process of the group failed.
        TypeError: ``out`` is given, and ``model`` is no VideoModel.
        ValueError: the training set is empty, or of uint8 clips without a ``spec``, or ``resume``
            comes without ``out``, or settings do not fit the network or the clips' size, or
            torch.compile fails.
    """
    if len(train_set) == 0:
        raise ValueError("train_set is empty: there is nothing to train on")
    if resume and out is None:
        raise ValueError("resume needs out, the folder of the run to go on with")
    if out is not None and not isinstance(model, VideoModel):
        raise TypeError(
            f"with out the model must be a VideoModel, got {type(model).__name__}, of which no "
            "checkpoint can be written; train without out, and save it yourself"
        )
    device = torch.device(config.device)
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(current_ranks())
        stop = stop or stack.enter_context(StopRequest())
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.callback(restore_batch_norm, model)
        with ranks.together():
            run = Run(model, train_set, val_set, config, ranks, stop, description)
        with ranks.together():
            if out is not None and ranks.rank == 0:
                stack.enter_context(run_folder.opened(Path(out), resume, overwrite))
                run.states = States(Path(out), config.keep)
        if resume:
            run.restore(allow_changes)
        run.learner.begin()
        with ranks.together():
            # Only now: a run is replaced by one that can begin, not by an error.
            if out is not None and ranks.rank == 0 and not resume:
                run_folder.empty(Path(out))
            if on_start is not None and ranks.rank == 0:
                on_start()
        return run.go(on_epoch)
