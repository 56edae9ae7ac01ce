"""The demo's second part: motion classes that only the order of frames tells apart."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import torch

import r21d_ops
from r21d.cli.tables import print_table
from r21d.cli.train import epoch_line
from r21d.evaluation import EvalResult, evaluate
from r21d.evaluation.progress import progress_bar
from r21d.models import VideoModel, create_model
from r21d.training import StopRequest, TrainConfig, train
from r21d.video import InputSpec, VideoFolder
from r21d.video.motion import PAIRS, write_motion_dataset

# Every third frame of 25 a second: a rate that divides the files' own, so that sampling has no
# rhythm of its own, and steps large enough to see at this size.
SPEC = InputSpec(clip_len=8, frame_rate=25 / 3, resize=(40, 40), crop=(36, 36))
CHANCE = 1 / (2 * len(PAIRS))
FRAME_BAG_BOUND = 1 / 2
REQUIRED = 0.75
CONFIDENCE = 0.999
NETWORKS = {"R(2+1)D": "r2plus1d_18", "f-R2D": "fr2d_18"}
_TEST_CLIPS = 5


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much the demo trains."""

    train_videos: int = 60
    """Per class."""
    val_videos: int = 20
    epochs: int = 18
    width: int = 16
    """Channels of conv2_x; conv3_x to conv5_x have 2, 4 and 8 times as many."""


QUICK = Scale(train_videos=2, val_videos=1, epochs=1, width=8)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network and what it scored on the held-out photographs."""

    label: str
    model: VideoModel
    history: list[dict[str, Any]]
    result: EvalResult
    checkpoint: Path


def write_videos(root: Path, scale: Scale, seed: int) -> dict[str, list[str]]:
    """Write the training and held-out files; returns the photographs of each."""
    total = len(PAIRS) * (scale.train_videos + scale.val_videos)
    with progress_bar("writing videos", total) as advance:
        return write_motion_dataset(
            root,
            clips_per_class_train=scale.train_videos,
            clips_per_class_val=scale.val_videos,
            seed=seed,
            progress=lambda done, total: advance(1),
        )


def train_and_test(label: str, videos: Path, out: Path, scale: Scale, seed: int) -> Run:
    """Train one network from scratch and test it; its files go to ``out``."""
    train_set = VideoFolder(videos / "train", SPEC, train=True, flip=False, seed=seed, cache=True)
    # One clip each epoch is enough for the curve.
    val_set = VideoFolder(videos / "val", SPEC, train=False, clips=1, cache=True)
    torch.manual_seed(seed)
    model = create_model(
        NETWORKS[label],
        num_classes=len(train_set.classes),
        blocks=(1, 1, 1, 1),
        widths=tuple(scale.width * factor for factor in (1, 2, 4, 8)),
        stem_channels=scale.width,
    )
    print(f"\n{label}: {sum(p.numel() for p in model.parameters()):,} parameters, {_fused(model)}")
    config = TrainConfig(
        epochs=scale.epochs,
        batch_size=16,
        lr=0.02,
        schedule="cosine",
        warmup_epochs=min(2.0, scale.epochs / 2),
        seed=seed,
    )
    history = train(
        model,
        train_set,
        val_set,
        config,
        out=out,
        overwrite=True,
        on_epoch=lambda row: print(epoch_line(row, scale.epochs), flush=True),
        # Nobody asks by it: Ctrl-C ends the demo at once, which no --resume goes on with.
        stop=StopRequest(),
    )
    test_set = VideoFolder(videos / "val", SPEC, train=False, clips=_TEST_CLIPS, cache=True)
    return Run(label, model, history, evaluate(model, test_set), out / "last.safetensors")


def show(runs: list[Run], judged: bool) -> None:
    """Print the accuracies beside what guessing and a bag of frames can reach.

    ``judged`` adds what :func:`failures` expects of them.
    """
    videos = runs[0].result.videos
    rows = [(r.label, f"{r.result.clip_top1:.1%}", f"{r.result.video_top1:.1%}") for r in runs]
    rows.append(("chance", f"{CHANCE:.1%}", f"{CHANCE:.1%}"))
    rows.append(("any bag of frames, at best", f"{FRAME_BAG_BOUND:.1%}", f"{FRAME_BAG_BOUND:.1%}"))
    print(f"\n{videos} videos of held-out photographs, {_TEST_CLIPS} clips each\n")
    print_table(("", "clip@1", "video@1"), rows, right=(1, 2))
    if judged:
        print(
            f"\nexpected: R(2+1)D at least {required(videos):.1%}; f-R2D at most "
            f"{sampling_bound(videos):.1%}, one half plus\n"
            f"the sampling error of {videos} videos (one-sided binomial bound, {CONFIDENCE:.1%})"
        )
    else:
        print("\nnot judged: --quick trains too little for these figures to mean anything")


def failures(runs: list[Run]) -> list[str]:
    """What contradicts the claim that only R(2+1)D sees the order of frames; empty if nothing."""
    found = []
    for run in runs:
        videos = run.result.videos
        needed, bound = required(videos), sampling_bound(videos)
        for measure in ("clip_top1", "video_top1"):
            score, name = getattr(run.result, measure), measure.replace("_top", "@")
            if run.label == "R(2+1)D" and score < needed:
                found.append(f"{run.label}'s {name} is {score:.1%}, below {needed:.1%}")
            elif run.label == "f-R2D" and score > bound:
                found.append(f"{run.label}'s {name} is {score:.1%}, above {bound:.1%}")
    return found


def required(videos: int) -> float:
    """What counts as far above one half: half of the way to perfect, and never sampling error."""
    return max(REQUIRED, sampling_bound(videos))


def sampling_bound(videos: int) -> float:
    """Share of ``videos`` that a bag of frames, right half of the time, gets right at most.

    The smallest share which a binomial with p = 1/2 exceeds with probability at most
    1 - ``CONFIDENCE``.
    """
    ways = itertools.accumulate(math.comb(videos, hits) for hits in range(videos + 1))
    needed = CONFIDENCE * 2**videos
    return next(hits for hits, total in enumerate(ways) if total >= needed) / videos


def _fused(model: VideoModel) -> str:
    rows = r21d_ops.fuse_report(model)
    if not rows:
        return "no (2+1)D convolutions (the control: it sees each frame by itself)"
    backend = next(row.name for row in r21d_ops.backends() if row.available)
    fused = sum(row.fused for row in rows)
    return f"{fused} of {len(rows)} (2+1)D convolutions run fused, by the {backend} backend"
