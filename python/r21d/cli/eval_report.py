"""What ``r21d eval`` says: the protocol, tables of accuracies, the files left out, JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r21d.cli.errors import printable
from r21d.cli.tables import print_table

if TYPE_CHECKING:
    from r21d.evaluation import EvalResult

_MEASURES = {
    "clip@1": "clip_top1",
    "clip@5": "clip_top5",
    "video@1": "video_top1",
    "video@5": "video_top5",
}
_ALL_CLASSES = 20
_WORST, _BEST = 15, 5
_MOST_FILES = 10


def print_result(result: EvalResult, classes_shown: float | None, *, matrix: bool) -> None:
    """Print one result; ``classes_shown`` as ``--per-class`` gives it."""
    print(f"{describe_protocol(result.protocol)}\n")
    rows = []
    for name, field in _MEASURES.items():
        total = result.clips if name.startswith("clip") else result.videos
        share = getattr(result, field)
        label = name.replace("@", " hit@") if result.multilabel else name
        rows.append((label, f"{share:.1%}", f"{round(share * total)} of {total}"))
    rows.append(("mean of classes", f"{result.mean_class:.1%}", f"{len(result.per_class)} classes"))
    print_table(("measure", "accuracy", ""), rows, right=(1, 2))
    print(f"\n{_counts(result)}\n")
    _print_classes(result, classes_shown)
    if matrix:
        _print_matrix(result)
    _print_files(result)


def print_mean(results: Mapping[str | None, EvalResult]) -> None:
    """Print a row for each split, and their mean."""
    print(f"\nmean of {len(results)} splits\n")
    rows = [
        (
            str(split),
            str(result.videos),
            str(len(result.failed)),
            *(f"{getattr(result, field):.1%}" for field in _MEASURES.values()),
        )
        for split, result in results.items()
    ]
    mean = mean_of_splits(results)
    rows.append(("mean", "", "", *(f"{mean[field]:.1%}" for field in _MEASURES.values())))
    header = ("split", "videos", "left out", *_MEASURES)
    print_table(header, rows, right=range(1, len(header)))


def mean_of_splits(results: Mapping[str | None, EvalResult]) -> dict[str, float]:
    """Means over splits, each counting the same however many videos it has."""
    return {
        field: math.fsum(getattr(result, field) for result in results.values()) / len(results)
        for field in (*_MEASURES.values(), "mean_class", "loss")
    }


def describe_protocol(protocol: Mapping[str, Any]) -> str:
    """How the clips were made and what was averaged, in a sentence."""
    clips = describe_clips(protocol)
    stride, rate = protocol["frame_stride"], protocol["frame_rate"]
    if rate is not None:
        frames = f"{rate / stride:g} a second"
    else:
        frames = "consecutive" if stride == 1 else f"one in {stride} of the video's"
    resize, crop = (_pixels(protocol[name]) for name in ("resize", "crop"))
    crops = f"centre crop {crop}" if protocol["crops"] == 1 else f"3 crops {crop}"
    scores = "clips" if protocol["crops"] == 1 else "clips and crops; clip@k counts each crop"
    return (
        f"{clips}, {protocol['clip_len']} frames, {frames}; scaled to {resize}, {crops}; "
        f"{protocol['averaged']} scores averaged over a video's {scores}"
    )


def describe_clips(protocol: Mapping[str, Any]) -> str:
    """Which clips of a video, in a few words."""
    middle = protocol["sampling"] == "even" and protocol["clips"] == 1
    return {
        "even": "the middle clip of each video"
        if middle
        else "{clips} evenly spaced clips a video",
        "random": "{clips} random clips a video (seed {seed})",
        "dense": "clips end to end over each video",
    }[protocol["sampling"]].format_map(protocol)


def picture_titles(
    args: argparse.Namespace, results: Mapping[str | None, EvalResult]
) -> dict[str, str]:
    """What stands above the confusion matrix: the data, the network, the clips."""
    title = Path(args.data).resolve().name
    if args.dataset not in ("folder", "csv"):
        title += f" ({args.dataset})"
    if splits := [split for split in results if split is not None]:
        title += f", split{'s' * (len(splits) > 1)} {', '.join(splits)}"
    weights = ", ".join(os.path.relpath(w) if os.path.exists(w) else w for w in args.weights)
    protocol = next(iter(results.values())).protocol
    return {"title": title, "subtitle": f"{weights}; {describe_clips(protocol)}"}


def as_json(args: argparse.Namespace, results: Mapping[str | None, EvalResult]) -> str:
    """The results as JSON, a line a key: long matrices stay readable in an editor."""
    sources = args.weights if len(args.weights) > 1 else args.weights * len(results)
    rows = [
        {
            "data": args.data,
            "dataset": args.dataset,
            "split": split,
            "weights": source,
            **result.to_dict(),
        }
        for source, (split, result) in zip(sources, results.items(), strict=True)
    ]
    values = rows[0] if len(rows) == 1 else {"mean": mean_of_splits(results), "splits": rows}
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _pixels(size: int | list[int]) -> str:
    return f"{size} (shorter side)" if isinstance(size, int) else "x".join(map(str, size))


def _counts(result: EvalResult) -> str:
    parts = [f"{result.videos} videos, {result.clips} clips, loss {result.loss:.3f}"]
    listed = result.videos + len(result.failed) + len(result.missing)
    if result.failed:
        parts.append(f"{len(result.failed)} of {listed} left out")
    if result.missing:
        parts.append(f"{len(result.missing)} of {listed} missing")
    return "; ".join(parts)


def _print_classes(result: EvalResult, shown: float | None) -> None:
    """The classes by accuracy, the worst first."""
    totals = result.confusion.sum(1).tolist()
    numbers = {name: number for number, name in enumerate(result.classes)}
    ordered = sorted(result.per_class.items(), key=lambda row: (row[1], row[0]))
    rows = [
        (
            printable(name),
            str(totals[numbers[name]]),
            f"{share:.1%}",
            _taken_for(result, numbers[name]),
        )
        for name, share in ordered
    ]
    if shown is None:
        worst, best = (len(rows), 0) if len(rows) <= _ALL_CLASSES else (_WORST, _BEST)
    else:
        worst, best = int(min(shown, len(rows))), 0
    left_out = len(rows) - worst - best
    if not worst:
        return
    if left_out:
        rows[worst : len(rows) - best] = [("...", "", "", "")]
        print(f"classes, the worst first; --per-class all prints the {left_out} others")
    if not best and left_out:
        rows.pop()
    if result.multilabel:
        rows = [row[:3] for row in rows]  # type: ignore[misc]
    header = ("class", "videos", "video@1", "most often taken for")
    print_table(header[: len(rows[0])], rows, right=(1, 2))


def _taken_for(result: EvalResult, label: int) -> str:
    """The class that most of a class's videos were mistaken for, and how many."""
    row = result.confusion[label].clone()
    row[label] = 0
    count, other = row.max(0)
    return f"{printable(result.classes[int(other)])} ({int(count)})" if count else ""


def _print_matrix(result: EvalResult) -> None:
    print("\nvideos by true class (row) and top class (column)")
    cells = [
        (str(number), printable(name), *map(str, row))
        for number, (name, row) in enumerate(
            zip(result.classes, result.confusion.tolist(), strict=True)
        )
    ]
    columns = tuple(map(str, range(len(result.classes))))
    print_table(("", "class", *columns), cells, right=(0, *range(2, 2 + len(columns))))


def _print_files(result: EvalResult) -> None:
    rows = [("left out", path, reason.removeprefix(f"{path}: ")) for path, reason in result.failed]
    for kind, path, reason in rows[:_MOST_FILES]:
        print(f"{kind}: {printable(path)}: {printable(reason)}")
    for path in result.missing[: max(0, _MOST_FILES - len(rows))]:
        print(f"missing: {printable(path)}")
    more = len(rows) + len(result.missing) - _MOST_FILES
    if more > 0:
        print(f"and {more} more, which --json FILE lists")
