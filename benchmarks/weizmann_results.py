"""What the runs of a Weizmann study say together: the figures, as one JSON file.

A study's file, ``docs/results/weizmann/<study>.json``::

    study
    arms        by name: label, config, settings, parameters, gmacs, steps, clips, and of video@1
                and clip@1 over all people: by_seed, mean, std (over seeds, null for one seed);
                by_person (mean over seeds of video@1), confusion, classes, seconds (median a run)
    gap         of two arms, in video@1, the first minus the second: by_seed, mean, std_over_seeds,
                by_person, std_over_people, better, equal, worse (people), sign_flip_p
    clip_gap    the same in clip@1
    runs        every run as it was found, but for its settings

The people are the nine of one split each, so a mean over people is one over all videos.
``sign_flip_p`` is exact: the share of all ways to flip the signs of the people's gaps that give a
mean at least as far from zero; people, not runs, are what the data set has nine of.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.weizmann_runs import STUDIES

Runs = Sequence[Mapping[str, Any]]


def summarize(study: str, runs: Runs) -> dict[str, Any]:
    """The file of a study, of the runs that there are.

    Raises:
        ValueError: an arm has no run, or two arms have other people or seeds.
    """
    arms = {}
    for name, arm in STUDIES[study].items():
        own = [run for run in runs if run["arm"] == name]
        if not own:
            raise ValueError(f"{study}: there is no finished run of {name}")
        arms[name] = {"label": arm.label, **_arm(own)}
    compared = compared_arms(study)
    summary = {"study": study, "arms": arms}
    if len(compared) == 2:
        ahead, behind = ([run for run in runs if run["arm"] == name] for name in compared)
        summary["gap"] = _gap(ahead, behind, "video_top1")
        summary["clip_gap"] = _gap(ahead, behind, "clip_top1")
    kept = [{key: value for key, value in run.items() if key != "settings"} for run in runs]
    return {**summary, "runs": kept}


def compared_arms(study: str) -> list[str]:
    """The arms that are compared with each other."""
    return [name for name, arm in STUDIES[study].items() if arm.compared]


def _arm(runs: Runs) -> dict[str, Any]:
    confusion = torch.tensor([run["confusion"] for run in runs]).sum(0)
    first = runs[0]
    shared = ("config", "settings", "parameters", "gmacs", "steps", "clips", "classes")
    settings = {name: value for name, value in first["settings"].items() if name != "seed"}
    return {
        **{name: first[name] for name in shared},
        "settings": settings,
        "video_top1": _over_seeds(runs, "video_top1"),
        "clip_top1": _over_seeds(runs, "clip_top1"),
        "train_clip_top1": _over_seeds(
            [{**run, "train_clip_top1": run["history"][-1]["train_clip_top1"]} for run in runs],
            "train_clip_top1",
        ),
        "by_person": _by_person(runs, "video_top1"),
        "confusion": confusion.tolist(),
        "seconds": statistics.median(run_seconds(run) for run in runs),
    }


def run_seconds(run: Mapping[str, Any]) -> float:
    """How long a run has taken, validations counted."""
    return sum(row["seconds"] for row in run["history"])


def _over_seeds(runs: Runs, figure: str) -> dict[str, Any]:
    """A figure's mean over people, by seed, and over those."""
    by_seed = {
        str(seed): statistics.fmean(run[figure] for run in group)
        for seed, group in _grouped(runs, "seed").items()
    }
    return {"by_seed": by_seed, **_spread(by_seed.values())}


def _by_person(runs: Runs, figure: str) -> dict[str, float]:
    groups = _grouped(runs, "person")
    return {
        person: statistics.fmean(run[figure] for run in group) for person, group in groups.items()
    }


def _grouped(runs: Runs, key: str) -> dict[Any, list[Mapping[str, Any]]]:
    return {
        value: [run for run in runs if run[key] == value]
        for value in dict.fromkeys(run[key] for run in runs)
    }


def _spread(values: Iterable[float]) -> dict[str, float | None]:
    values = list(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std}


def _gap(ahead: Runs, behind: Runs, figure: str) -> dict[str, Any]:
    """Of a figure, run by run: the same person and seed."""
    others = {(run["person"], run["seed"]): run[figure] for run in behind}
    if {(run["person"], run["seed"]) for run in ahead} != set(others):
        raise ValueError("the arms have other people or seeds; finish the study first")
    pairs = [{**run, figure: run[figure] - others[run["person"], run["seed"]]} for run in ahead]
    seeds, people = _over_seeds(pairs, figure), _by_person(pairs, figure)
    gaps = list(people.values())
    return {
        "by_seed": seeds["by_seed"],
        "mean": seeds["mean"],
        "std_over_seeds": seeds["std"],
        "by_person": people,
        "std_over_people": _spread(gaps)["std"],
        "better": sum(gap > _EQUAL for gap in gaps),
        "equal": sum(abs(gap) <= _EQUAL for gap in gaps),
        "worse": sum(gap < -_EQUAL for gap in gaps),
        "sign_flip_p": sign_flip_p(gaps),
    }


# Means of tenths differ in their last bits.
_EQUAL = 1e-9


def sign_flip_p(gaps: Sequence[float]) -> float:
    """Of all ways to give ``gaps`` signs, the share whose sum is at least as far from zero."""
    found = abs(sum(gaps)) - _EQUAL
    flips = itertools.product((1, -1), repeat=len(gaps))
    sums = [sum(sign * gap for sign, gap in zip(signs, gaps, strict=True)) for signs in flips]
    return sum(abs(total) >= found for total in sums) / len(sums)
