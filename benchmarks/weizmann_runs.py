"""The runs of the Weizmann studies: which there are, and training and testing one of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from r21d.atomic import write_atomically
from r21d.evaluation import evaluate
from r21d.evaluation.evaluate import EvalResult
from r21d.models.info import model_info
from r21d.training import train
from r21d.training.environment import describe_environment
from r21d.training.network import build_model
from r21d.training.protocol import load_config
from r21d.training.run_config import RunConfig
from r21d.training.run_folder import LAST_FILE, state_files
from r21d.video import ClipSampling, VideoDataset
from r21d.video.lists import VideoList, open_list

RESULT_FILE = "result.json"
# Every other action of the alphabet. The network learns those first that pilots showed it to learn
# thoroughly, so that there is something to start from.
_FIRST = ("jack", "pjump", "side", "walk", "wave2")
_THEN = ("bend", "jump", "run", "skip", "wave1")
# Where a run may be made matters to none of its figures but the time.
_PLACE = ("device", "workers", "eval_batch_size", "checkpoint_steps", "keep", "log_steps")


@dataclass(frozen=True)
class Arm:
    """What a study compares.

    Attributes:
        label: its name in tables and plots.
        config: its configuration, a name of ``r21d.training.protocol.list_configs`` or a file.
        actions: which of the ten it learns and is tested on; None: all.
        start: the study and arm from whose weights, of the same person and seed, it starts; None:
            from fresh ones.
        compared: False for an arm that only others start from.
        epochs: its budget where it is not the configuration's.
    """

    label: str
    config: str
    actions: tuple[str, ...] | None = None
    start: tuple[str, str] | None = None
    compared: bool = True
    epochs: int | None = None


def _finetuning(epochs: int | None = None) -> dict[str, Arm]:
    """Twice the same training, from weights and from scratch."""
    config, start = "weizmann_finetune", ("finetune", "pretrained")
    return {
        "finetuned": Arm("fine-tuned", config, _THEN, start=start, epochs=epochs),
        "scratch": Arm("from scratch", config, _THEN, epochs=epochs),
    }


STUDIES: dict[str, dict[str, Arm]] = {
    "lopo": {
        "r2plus1d": Arm("R(2+1)D", "weizmann"),
        "fr2d": Arm("f-R2D", "weizmann_fr2d"),
    },
    "full": {"r2plus1d": Arm("R(2+1)D-18, full width", "weizmann_full")},
    "finetune": {
        "pretrained": Arm("pretraining", "weizmann_pretrain", _FIRST, compared=False),
        **_finetuning(),
    },
    # Half and twice the budget: the outcome depends on it, and it was chosen.
    "finetune_10": _finetuning(epochs=1),
    "finetune_40": _finetuning(epochs=4),
}
"""The arms of each study by name. Where two are compared, the first is expected ahead."""


@dataclass(frozen=True)
class StudyRun:
    """One training run: of an arm, tested on the person left out."""

    study: str
    arm: str
    person: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, and in messages."""
        return f"{self.arm}-{self.person}-{self.seed}"

    @property
    def details(self) -> Arm:
        """What its arm is."""
        return STUDIES[self.study][self.arm]

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return out / self.study / self.name

    def start(self) -> StudyRun | None:
        """The run from whose weights it starts."""
        start = self.details.start
        return None if start is None else replace(self, study=start[0], arm=start[1])

    def config(self, device: str = "cpu") -> RunConfig:
        """Its settings."""
        changes: dict[str, Any] = {"seed": self.seed, "device": device}
        if self.details.epochs is not None:
            changes["epochs"] = self.details.epochs
        return load_config(self.details.config, changes)


def plan(study: str, people: Sequence[str], seeds: Sequence[int]) -> list[StudyRun]:
    """The runs of a study in the order they are made: an unfinished study covers all arms alike."""
    return [
        StudyRun(study, arm, person, seed)
        for seed in seeds
        for person in people
        for arm in STUDIES[study]
    ]


def result_of(run: StudyRun, out: Path) -> dict[str, Any] | None:
    """What a finished run found; None where it is not finished.

    Raises:
        ValueError: it was made with other settings than it would be made with now.
    """
    path = run.folder(out) / RESULT_FILE
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = settings(run.config())
    if result["settings"] != now:
        changed = [key for key in now if result["settings"].get(key) != now[key]]
        raise ValueError(
            f"{path} was made with other settings ({', '.join(changed) or 'of older names'}); "
            "remove its folder, or choose another --out"
        )
    return result


def settings(config: RunConfig) -> dict[str, Any]:
    """All of a run's settings that decide its figures, as JSON values."""
    values = {name: value for name, value in config.values().items() if name not in _PLACE}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def perform(run: StudyRun, data: Path, out: Path, device: str = "cpu") -> dict[str, Any]:
    """Train and test ``run``, or go on with it, and write what it found; a finished one is kept.

    Tested are the weights after the last epoch, never those that did best on the test person.
    """
    if (done := result_of(run, out)) is not None:
        return done
    config = run.config(device)
    folder = run.folder(out)
    train_set, test_set = _videos(run, config, data)
    if (start := run.start()) is not None:
        config = config.changed({"weights": str(start.folder(out) / LAST_FILE)}, "the study")
    torch.manual_seed(config.train.seed)
    model = build_model(config, train_set.classes)
    resume = bool(state_files(folder))
    history = train(
        model,
        train_set,
        test_set,
        config.train,
        out=folder,
        resume=resume,
        overwrite=not resume,
        description={"study": run.study, "arm": run.arm, "person": run.person},
    )
    tested = evaluate(model, test_set, batch_size=config.train.eval_batch_size)
    counted = model_info(model, (3, config.input.clip_len, *config.input.crop))
    environment = describe_environment()
    result = {
        "study": run.study,
        "arm": run.arm,
        "person": run.person,
        "seed": run.seed,
        "config": run.details.config,
        "settings": settings(run.config()),
        "parameters": counted.parameters,
        "gmacs": counted.gmacs,
        "train_videos": len(train_set),
        "steps": history[-1]["step"],
        "clips": history[-1]["clips"],
        "history": history,
        **_figures(tested),
        # Paths of whoever ran it are nobody's business.
        "environment": {k: v for k, v in environment.items() if k not in ("command", "variables")},
    }
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(folder / RESULT_FILE, text.encode())
    return result


def _videos(run: StudyRun, config: RunConfig, data: Path) -> tuple[VideoDataset, VideoDataset]:
    """What to train and what to test on, decoded once and kept in memory."""
    sampling = ClipSampling(config.data.val_sampling, clips=config.data.val_clips)
    train_set, test_set = (
        VideoDataset(
            _of_actions(
                open_list("weizmann", data, split=run.person, train=train), run.details.actions
            ),
            config.input.spec(),
            train,
            None if train else sampling,
            flip=config.input.flip,
            seed=config.train.seed,
            normalize=False,
            cache=True,
        )
        for train in (True, False)
    )
    return train_set, test_set


def _of_actions(videos: VideoList, actions: tuple[str, ...] | None) -> VideoList:
    """Those of ``videos`` that show one of ``actions``, which become the classes."""
    if actions is None:
        return videos
    names = [videos.classes[item.labels[0]] for item in videos.items]
    items = [
        replace(item, labels=(actions.index(name),))
        for item, name in zip(videos.items, names, strict=True)
        if name in actions
    ]
    return replace(videos, classes=list(actions), items=items)


def _figures(tested: EvalResult) -> dict[str, Any]:
    """What an evaluation found, video by video."""
    scores = tested.scores
    assert scores is not None
    top = scores.video_scores.argmax(1).tolist()
    return {
        "classes": tested.classes,
        "clip_top1": tested.clip_top1,
        "video_top1": tested.video_top1,
        "test_loss": tested.loss,
        "test_clips": tested.clips,
        "confusion": tested.confusion.tolist(),
        "predictions": [
            {
                "video": name,
                "label": tested.classes[labels[0]],
                "predicted": tested.classes[best],
                "score": round(float(row[best]), 4),
            }
            for name, labels, best, row in zip(
                scores.names, scores.labels, top, scores.video_scores, strict=True
            )
        ],
    }
