"""The Weizmann studies for readers: pictures, and a page of tables made of their JSON files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.weizmann_results import Runs, compared_arms, run_seconds, sign_flip_p
from benchmarks.weizmann_runs import STUDIES
from r21d.atomic import write_atomically
from r21d.plots import confusion_matrix, training_curves

DOCS = Path(__file__).resolve().parent.parent / "docs" / "results"
FOLDER = "weizmann"
PAGE = "weizmann.md"


def write_study(summary: Mapping[str, Any], folder: Path) -> None:
    """Write a study's file and pictures into ``folder/weizmann``, and the page of all studies."""
    study = summary["study"]
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / f"{study}.json", (json.dumps(summary, indent=1) + "\n").encode())
    if study not in _UNPICTURED:
        _draw(summary, target)
    write_atomically(folder / PAGE, render(read_studies(folder)).encode())


def _draw(summary: Mapping[str, Any], target: Path) -> None:
    """Curves, and a confusion matrix for each arm."""
    study = summary["study"]
    names = compared_arms(study)
    curves = {
        summary["arms"][name]["label"]: mean_history(
            [run["history"] for run in summary["runs"] if run["arm"] == name]
        )
        for name in names
    }
    chance = 1 / len(summary["arms"][names[0]]["classes"])
    count = _runs_each(summary)
    runs = "one run" if count == 1 else f"mean of {count} runs each"
    title = f"Weizmann, one person left out: {runs}"
    training_curves(curves, target / f"{study}_curves.png", title=title, chance=chance)
    for name in names:
        arm = summary["arms"][name]
        confusion_matrix(
            torch.tensor(arm["confusion"]),
            arm["classes"],
            target / _confusion_file(study, name),
            title=f"{arm['label']}: Weizmann, one person left out",
            subtitle=f"videos of {'one run' if count == 1 else f'all {count} runs'}; the weights"
            " after the last epoch",
        )


def _runs_each(summary: Mapping[str, Any]) -> int:
    name = compared_arms(summary["study"])[0]
    return sum(run["arm"] == name for run in summary["runs"])


def _confusion_file(study: str, arm: str) -> str:
    return f"{study}_confusion_{arm}.png"


def mean_history(histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The curves' mean over runs of equal length, epoch by epoch."""
    keys = ("train_loss", "train_clip_top1", "val_loss", "clip_top1")
    return [
        {
            "epoch": rows[0]["epoch"],
            **{key: statistics.fmean(row[key] for row in rows) for key in keys if key in rows[0]},
        }
        for rows in zip(*histories, strict=True)
    ]


def read_studies(folder: Path) -> list[dict[str, Any]]:
    """The studies that ``folder`` holds, in their order."""
    paths = (folder / FOLDER / f"{study}.json" for study in STUDIES)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def render(studies: Sequence[Mapping[str, Any]]) -> str:
    """The page of all studies, in Markdown."""
    lines = [
        "# Weizmann, leaving one person out",
        "",
        "Ten actions by nine people, 90 videos. A network learns from the videos of eight people"
        " and is tested on those of the ninth, with the weights after the last epoch, on 10 evenly"
        " spaced clips a video; ± is the standard deviation over seeds of the mean over people."
        " Made by `python -m benchmarks.weizmann --publish` from the JSON files in"
        f" [`{FOLDER}/`]({FOLDER}), which hold every run, its settings, versions, history and"
        " predictions.",
    ]
    for study in studies:
        lines += ["", f"## {_TITLES[study['study']]}", "", *_section(study)]
    return "\n".join(lines) + "\n"


_TITLES = {
    "lopo": "Narrow networks, from scratch, equal budgets",
    "full": "R(2+1)D-18 of full width",
    "finetune": "Fine-tuned against from scratch, 20 steps each",
    "finetune_10": "The same, 10 steps each",
    "finetune_40": "The same, 40 steps each",
}
_UNPICTURED = ("finetune_10", "finetune_40")
"""Studies that only show what another budget makes of one that has pictures."""
_OTHER_BUDGET = (
    "Made after the study with 20 steps, from the same weights and with its settings: nothing but"
    " the number of steps was changed."
)


_PILOTS = {
    "lopo": "The settings were chosen in pilots on denis with seed 1000, which is none of the seeds"
    " here, by the training loss: of learning rates 0.02, 0.05 and 0.1 the one that both networks"
    " learnt best with; every third frame rather than every second, whose losses were no further"
    " apart than those of two seeds; the whole picture rather than a 56x56 crop, which was tried on"
    " f-R2D alone.",
    "full": "The settings are those of the narrow networks; nothing was tuned for this one.",
    "finetune": "Which five actions come first and the learning rates were chosen in"
    " pilots on denis, eli, ira and lena with seed 1000, which is none of the seeds here. The other"
    " way round the network had learnt the first five badly, and learnt the others from scratch as"
    " fast. The budget was 40 steps at first, without recalibration: there the first two people of"
    " the study, daria and ido, came out equal in video@1 with seed 0, and it was halved after more"
    " pilots; with 80 steps the advantage had been left on one of two people (eli and ira)."
    " Learning rates: the fine-tuned were tried with 0.01, 0.02 and 0.05, those from scratch with"
    " 0.02, 0.05 and 0.1, and both reached the lowest training loss, on all and on most of the"
    " four, with 0.05."
    " Generated videos of moving shapes and of stick figures had not been learnt well enough to"
    " start from. So six of the nine people have had a part in the choice.",
    "finetune_10": _OTHER_BUDGET,
    "finetune_40": _OTHER_BUDGET,
}
_FINETUNING_PEOPLE = ("daria", "denis", "eli", "ido", "ira", "lena")
_PILOT_PEOPLE = {
    "lopo": ("denis",),
    **dict.fromkeys(("finetune", "finetune_10", "finetune_40"), _FINETUNING_PEOPLE),
}
"""Whose videos have had a part in the choice of settings."""


def _section(study: Mapping[str, Any]) -> list[str]:
    names = compared_arms(study["study"])
    arms = [study["arms"][name] for name in names]
    seeds = list(arms[0]["video_top1"]["by_seed"])
    people = list(arms[0]["by_person"])
    videos = sum(map(sum, arms[0]["confusion"])) / (len(people) * len(seeds))
    lines = [
        f"{len(people)} {'person' if len(people) == 1 else 'people'}, "
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'};"
        f" {videos:g} tested videos a person, each worth {100 / videos:.0f} points of a run.",
        "",
        "| | parameters | GMAC a clip | steps | clips seen | video@1 | clip@1 | training clip@1 |",
        "|---|---|---|---|---|---|---|---|",
        *map(_arm_row, arms),
        "",
        "| video@1 | " + " | ".join(people) + " |",
        "|---|" + "---|" * len(people),
        *(_person_row(arm["label"], arm["by_person"], people) for arm in arms),
    ]
    if "gap" in study:
        gap = study["gap"]
        lines += [
            _person_row("gap", gap["by_person"], people, "+.1f"),
            "",
            f"{arms[0]['label']} minus {arms[1]['label']}: {_points(gap['mean'])} points of"
            f" video@1, ± {_points(gap['std_over_seeds'])} over seeds and"
            f" ± {_points(gap['std_over_people'])} over people; better on {gap['better']} people,"
            f" equal on {gap['equal']}, worse on {gap['worse']}; exact sign-flip test over people:"
            f" p = {gap['sign_flip_p']:.3f}. In clip@1 it is"
            f" {_mean_and_p(list(study['clip_gap']['by_person'].values()))}.",
        ]
    for name, arm in study["arms"].items():
        if name not in names:
            lines += ["", _pretraining(arm, arms[0]["classes"])]
    pictures: list[tuple[str, str]] = []
    if study["study"] not in _UNPICTURED:
        pictures.append(("curves", f"{study['study']}_curves.png"))
        pictures += [
            (f"confusion, {arm['label']}", _confusion_file(study["study"], name))
            for name, arm in zip(names, arms, strict=True)
        ]
    return [
        *lines,
        "",
        _PILOTS[study["study"]] + _without_pilots(study),
        "",
        "Settings: " + "; ".join(_settings(arm) for arm in study["arms"].values()) + ".",
        "",
        *(f"![{text}]({FOLDER}/{file})" for text, file in pictures),
        *([""] if pictures else []),
        _made(study["runs"]),
    ]


def _without_pilots(study: Mapping[str, Any]) -> str:
    """What the people say who have had no part in the choice of settings."""
    if "gap" not in study:
        return ""
    gaps, pilots = study["gap"]["by_person"], _PILOT_PEOPLE[study["study"]]
    others = [gap for person, gap in gaps.items() if person not in pilots]
    clips = [gap for person, gap in study["clip_gap"]["by_person"].items() if person not in pilots]
    if len(others) == len(gaps):
        return f" Of the people here none is among {', '.join(pilots)}."
    if not others:
        return " All people here have had a part in the choice."
    *first, last = (person for person in pilots if person in gaps)
    left_out = f"{', '.join(first)} and {last}" if first else last
    return f" Without {left_out} the gap is {_mean_and_p(others)}, in clip@1 {_mean_and_p(clips)}."


def _mean_and_p(gaps: Sequence[float]) -> str:
    return f"{_points(statistics.fmean(gaps))} points (p = {sign_flip_p(gaps):.3f})"


def _arm_row(arm: Mapping[str, Any]) -> str:
    cells = [
        arm["label"],
        f"{arm['parameters']:,}",
        f"{arm['gmacs']:.3f}",
        str(arm["steps"]),
        f"{arm['clips']:,}",
        *(_percent(arm[figure]) for figure in ("video_top1", "clip_top1", "train_clip_top1")),
    ]
    return f"| {' | '.join(cells)} |"


def _percent(figure: Mapping[str, Any]) -> str:
    spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.1f}"
    return f"{100 * figure['mean']:.1f} %{spread}"


def _points(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.1f}"


def _person_row(
    label: str, figures: Mapping[str, float], people: Sequence[str], form: str = ".1f"
) -> str:
    # Sums of thirds may be a hair below zero.
    cells = [f"{round(100 * figures[one], 1) + 0.0:{form}}" for one in people]
    return f"| {label} | {' | '.join(cells)} |"


def _pretraining(arm: Mapping[str, Any], learns: Sequence[str]) -> str:
    return (
        f"The weights to start from: {arm['clips']:,} clips ({arm['steps']} steps) of"
        f" {', '.join(arm['classes'])} by the same eight people, for each person left out and each"
        f" seed, which gives {_percent(arm['video_top1'])} of video@1 on these. Then compared, on"
        f" the other five: {', '.join(learns)}. The person left out is in no training set."
    )


def _settings(arm: Mapping[str, Any]) -> str:
    values = arm["settings"]
    height, width = values["crop"]
    return (
        f"{arm['label']} as in `{arm['config']}` (`{values['model']}`, width"
        f" {values['width'] or 64}, clips of {values['clip_len']}x{height}x{width}, batches of"
        f" {values['batch_size']}, lr {values['lr']}, {values['schedule']})"
    )


def _made(runs: Runs) -> str:
    environments = [run["environment"] for run in runs]
    commits = dict.fromkeys(str(one["git"]) for one in environments)
    machines = dict.fromkeys(
        f"{', '.join(one['gpus']) or one['cpu']}, torch {one['torch']}" for one in environments
    )
    hours = sum(run_seconds(run) for run in runs) / 3600
    return (
        f"Made on {'; '.join(machines)}; {len(runs)} run{'s' if len(runs) > 1 else ''},"
        f" {hours:.1f} hours together;"
        f" commit {', '.join(commit[:10] for commit in commits)}."
    )
