"""The videos of a run: what it trains on and what it validates on."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from r21d.cli.data import splits, video_list
from r21d.cli.errors import UserError
from r21d.cli.train_videos import RunVideos, as_begun
from r21d.training.run_config import RunConfig
from r21d.video.lists import VideoList, has_sides, open_list

if TYPE_CHECKING:
    from r21d.video import InputSpec, VideoDataset
    from r21d.weights import Checkpoint

VAL_FRACTION = 0.2
"""Share of the training videos that is held out where there is nothing else to validate on."""


def data_options(config: RunConfig) -> argparse.Namespace:
    """The data options of a command line that would say what ``config`` says.

    Raises:
        UserError: it names no videos.
    """
    run = config.run
    if run.data is None:
        raise UserError("name DATA, the folder of the videos: r21d train DATA ...")
    if run.val is not None and config.data.val_fraction is not None:
        raise UserError("--val and --val-fraction say two things about validation; leave one out")
    return argparse.Namespace(
        data=run.data,
        dataset=config.data.dataset,
        annotations=run.annotations,
        split=None if run.split is None else run.split.split(),
        index=run.index,
        val=run.val,
        val_fraction=config.data.val_fraction,
    )


def open_datasets(
    config: RunConfig,
    spec: InputSpec,
    begun: RunVideos | None = None,
    allow_changes: bool = False,
) -> tuple[VideoDataset, VideoDataset]:
    """The training and the validation set; of a run that has ``begun`` with some, those.

    Raises:
        UserError: the options do not name both; or as `as_begun`.
        ValueError: a list is bad, or no video can be decoded.
    """
    from r21d.training.split import split_videos
    from r21d.video import ClipSampling, VideoDataset

    options, seed = data_options(config), config.train.seed
    train_list, val_list = _lists(options, None if begun is None else begun.classes)
    shared: dict[str, Any] = {"strict": config.run.strict, "normalize": False}
    train_set = VideoDataset(
        train_list,
        spec,
        # A class may have lost its videos meanwhile.
        train=begun is None,
        flip=config.input.flip,
        seed=seed,
        index=options.index,
        **shared,
    )
    sampling = ClipSampling(config.data.val_sampling, config.data.val_clips, seed=seed)
    val_set = None
    if val_list is not None:
        # --index speaks of DATA; another folder may have an index of its own.
        index = options.index if val_list.root == train_list.root else None
        val_set = VideoDataset(val_list, spec, False, sampling, index=index, **shared)
    if begun is not None:
        return as_begun(train_set, val_set, begun, sampling, allow_changes)
    if val_set is None:
        share = options.val_fraction or VAL_FRACTION
        return split_videos(train_set, share, seed=seed, sampling=sampling)
    return train_set, val_set


def _lists(
    options: argparse.Namespace, classes: Sequence[str] | None = None
) -> tuple[VideoList, VideoList | None]:
    """What to train on and to validate on; None where that is to be held out of the former."""
    chosen = splits(options)
    if len(chosen) > 1:
        raise UserError(f"training takes one --split at a time, got {', '.join(map(str, chosen))}")
    own_side = has_sides(options.dataset, options.annotations)
    if own_side and options.val is not None:
        raise UserError(
            f"--val: --dataset {options.dataset} has its own side to validate on; leave --val out"
        )
    train_list = video_list(options, True, classes, chosen[0])
    if options.val_fraction is not None or (options.val is None and not own_side):
        return train_list, None
    classes = train_list.classes
    if own_side:
        val_list = video_list(options, False, classes, chosen[0])
    elif options.dataset == "folder" or options.annotations is None:
        val_list = open_list(options.dataset, options.val, classes=classes)
    else:
        val_list = open_list(
            options.dataset, options.data, annotations=options.val, classes=classes
        )
    # That no video of one side has several labels does not make its kind another.
    several = train_list.multilabel or val_list.multilabel
    return replace(train_list, multilabel=several), replace(val_list, multilabel=several)


def located(config: RunConfig) -> RunConfig:
    """``config`` with whole paths of its videos, lists and weights, which hold in any folder."""
    paths = {name: getattr(config.run, name) for name in ("data", "annotations", "val", "index")}
    whole = {name: os.path.abspath(path) for name, path in paths.items() if path is not None}
    weights = config.model.weights
    # It may also be a name, or a URL.
    if weights is not None and os.path.exists(weights):
        weights = os.path.abspath(weights)
    return replace(
        config,
        run=replace(config.run, **whole),
        model=replace(config.model, weights=weights),
    )


def describe_run(
    config: RunConfig, start: Checkpoint | None, train_set: VideoDataset, val_set: VideoDataset
) -> dict[str, Any]:
    """What has to be the same when a run goes on, settings of training aside.

    The videos are known by their names, whatever folder they have been moved to, and the weights
    that the run has started from by what is left to them to say, wherever they have lain.
    """
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.values().items()
        if not hasattr(config.train, name) and name != "weights"
    }
    return {
        **settings,
        "start": None if start is None else {"network": start.config, "input": start.input},
        "split": config.run.split,
        "training_videos": _digest(train_set),
        "validation_videos": _digest(val_set),
    }


def described_start(description: Mapping[str, Any] | None) -> Checkpoint | None:
    """The weights of `describe_run` again, without their tensors."""
    from r21d.weights import Checkpoint

    start = (description or {}).get("start")
    return None if start is None else Checkpoint({}, start["network"], [], start["input"])


def _digest(dataset: VideoDataset) -> str:
    """How many videos, and a hash of their names and labels."""
    lines = [f"{name}\0{label}" for name, label in dataset.listed()]
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return f"{len(lines)} ({hashlib.sha256(text).hexdigest()[:12]})"
