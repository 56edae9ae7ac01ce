"""``r21d eval``: accuracy of a trained network on a set of videos."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from r21d.cli.arguments import Subcommands, add_device, count, positive, rank_device
from r21d.cli.checkpoint import add_weights, load_model
from r21d.cli.clips import add_clips, clip_sampling, input_spec
from r21d.cli.data import add_data, check_index, splits, video_list
from r21d.cli.errors import SOME_FAILED_EXIT, UserError, print_error, printable, user_errors
from r21d.cli.eval_report import as_json, picture_titles, print_mean, print_result
from r21d.cli.outputs import PICTURE, RESULT, SCORES, check_output
from r21d.cli.peers import speak_of_own_files_alone

if TYPE_CHECKING:
    from torch import Tensor

    from r21d.evaluation import EvalResult
    from r21d.evaluation.distributed import Ranks
    from r21d.models import VideoModel
    from r21d.video import VideoDataset

_log = logging.getLogger(__name__)

_STDOUT = "-"


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``eval`` to the command line."""
    parser = commands.add_parser(
        "eval",
        parents=[common],
        usage="r21d eval DATA --weights FILE|URL|NAME [FILE|URL|NAME ...] [option ...]",
        help="clip and video accuracy on a set of videos",
        description="Classify several clips of every video of DATA, whose classes are named like "
        "the checkpoint's, and report clip@1, clip@5, video@1 and video@5 (softmax scores averaged "
        "over a video's clips), the accuracy of each class and the files that could not be "
        "decoded; the exit code is 1 where there are any. Started by torchrun, its processes share "
        "the videos, a GPU each, and the figures stay the same, to the last digit with as many "
        "threads (torchrun sets OMP_NUM_THREADS=1 where it is not set).",
        epilog="examples: r21d eval videos/test --weights runs/mine/best.safetensors; "
        "r21d eval UCF-101 --dataset ucf101 --annotations ucfTrainTestlist --split all --weights "
        "split1.safetensors split2.safetensors split3.safetensors; "
        "torchrun --nproc-per-node 8 -m r21d eval ...",
    )
    add_data(parser)
    add_weights(parser, several=True)
    add_clips(parser)
    _add_output(parser)
    parser.add_argument(
        "--batch-size", type=positive, default=16, help="clips a forward pass (default: 16)"
    )
    parser.add_argument("--workers", type=count, default=0, help="decoding processes (default: 0)")
    add_device(parser)
    parser.set_defaults(run=run)


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--per-class",
        type=_classes_shown,
        metavar="N|all",
        help="print the N worst classes, or all (default: all up to 20, else the worst and best)",
    )
    group.add_argument(
        "--confusion",
        nargs="?",
        const=_STDOUT,
        metavar="FILE.png",
        help="draw the confusion matrix; without a file, or for -, print it",
    )
    group.add_argument(
        "--json",
        nargs="?",
        const=_STDOUT,
        metavar="FILE",
        help="write the result as JSON; without a file, or for -, print it in place of the tables",
    )
    group.add_argument(
        "--scores",
        metavar="FILE",
        help="save every video's scores (safetensors); with several splits a file for each",
    )
    group.add_argument(
        "--clip-scores", action="store_true", help="save every clip's scores there, too"
    )


def _classes_shown(text: str) -> float:
    """An argparse type: a number of classes, or "all"."""
    return float("inf") if text == "all" else count(text)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print; 1 where files had to be left out."""
    from r21d.evaluation.distributed import torchrun_ranks

    with torchrun_ranks() as ranks:
        if ranks.rank == 0:
            return _run(args, ranks)
        # The first process alone speaks and fails, also of what went wrong in another: if this one
        # failed, too, torchrun would end the first, maybe before it has said why.
        speak_of_own_files_alone()
        with contextlib.suppress(*user_errors()):
            _run(args, ranks)
        return 0


def _run(args: argparse.Namespace, ranks: Ranks) -> int:
    with ranks.together():
        check_index(args)
        names = splits(args)
        _check_outputs(args, names)
        clip_sampling(args)
        if len(args.weights) not in (1, len(names)):
            raise UserError(
                f"--weights names {len(args.weights)} checkpoints for {len(names)} splits; give "
                "one for all, or one for each"
            )
        device = rank_device(args.device, ranks)
    if len(names) > len(args.weights) and ranks.rank == 0:
        _log.warning(
            "one checkpoint for %d splits: a network that was trained on one of them has seen test"
            " videos of the others; give one for each",
            len(names),
        )
    results: dict[str | None, EvalResult] = {}
    model: VideoModel | None = None
    for number, split in enumerate(names):
        with ranks.together():
            if model is None or len(args.weights) > 1:
                model = _load(args.weights[number], device)
                _check_classes(args, model, results)
            if ranks.rank == 0 and len(names) == len(args.weights):
                _warn_of_split(args.dataset, split, args.weights[number])
        results[split] = _evaluate(args, ranks, model, split)
        if ranks.rank == 0:
            _report(args, names, split, results[split])
    return _conclude(args, results) if ranks.rank == 0 else 0


def _check_outputs(args: argparse.Namespace, names: list[str | None]) -> None:
    """Refuse before the work what could not be written after it, or would destroy something."""
    from r21d.video.index import INDEX_NAME

    if args.scores == _STDOUT:
        raise UserError("--scores - cannot be printed, scores are no text: name a file")
    outputs = {
        "--json": (RESULT, [args.json]),
        "--confusion": (PICTURE, [args.confusion]),
        "--scores": (SCORES, _score_files(args.scores, names)),
    }
    index = Path(args.data, INDEX_NAME)
    inputs = [*args.weights, args.data, args.annotations, args.index, index]
    files: dict[str, str] = {}
    for option, (kind, paths) in outputs.items():
        for path in paths:
            if path in (None, _STDOUT):
                continue
            check_output(option, path, kind, [file for file in inputs if file is not None])
            if (other := files.setdefault(os.path.realpath(path), option)) != option:
                raise UserError(f"{other} and {option} name the same file, {printable(path)}")
    if args.clip_scores and args.scores is None:
        raise UserError("--clip-scores needs --scores FILE to save them in")
    if args.confusion not in (None, _STDOUT) and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--confusion FILE.png needs matplotlib: pip install 'r21d[train]'")


def _load(source: str, device: str) -> VideoModel:
    model = load_model(source, device)
    if model.classes is None:
        raise UserError(
            f"{source} does not name its classes, so that those of the videos cannot be matched "
            "with them; r21d convert IN OUT --labels FILE adds the names"
        )
    return model


def _warn_of_split(dataset: str, split: str | None, source: str) -> None:
    """Say so where a network was trained on the other side of ``split`` of the same data set."""
    from r21d.weights.checkpoint import checkpoint_notes

    try:
        trained = json.loads(checkpoint_notes(source)["description"])
        own, other = trained["dataset"], trained["split"]
    except (ImportError, KeyError, TypeError, ValueError):
        return  # it does not tell
    if own == dataset and None not in (split, other) and other != split:
        _log.warning(
            "%s was trained on split %s of %s: it may have seen test videos of split %s",
            source,
            other,
            dataset,
            split,
        )


def _check_classes(
    args: argparse.Namespace, model: VideoModel, results: dict[str | None, EvalResult]
) -> None:
    """Networks of several splits may order their classes differently, not have others."""
    for result in results.values():
        if set(result.classes) != set(model.classes or ()):
            raise UserError(
                f"{args.weights[0]} and {args.weights[len(results)]} have different classes; give "
                "checkpoints of the same data set"
            )


def _evaluate(
    args: argparse.Namespace, ranks: Ranks, model: VideoModel, split: str | None
) -> EvalResult:
    from r21d.evaluation import evaluate
    from r21d.video import VideoDataset

    dataset: VideoDataset | None = None
    with ranks.together():
        # Once: all must have the same videos, and looking at each file takes its time.
        if ranks.rank == 0:
            videos = video_list(args, False, model.classes, split)
            if videos.multilabel and args.confusion is not None:
                raise UserError(
                    "--confusion: these videos may have several labels, and a right class would "
                    "show as an error for the others; leave --confusion out"
                )
            dataset = VideoDataset(
                videos,
                input_spec(args, model),
                train=False,
                sampling=clip_sampling(args),
                normalize=False,
                index=args.index,
                strict=args.strict,
            )
    return evaluate(
        model,
        ranks.from_first(dataset),
        batch_size=args.batch_size,
        workers=args.workers,
        clip_scores=args.clip_scores,
        strict=args.strict,
    )


def _report(
    args: argparse.Namespace, names: list[str | None], split: str | None, result: EvalResult
) -> None:
    """Print a result and save its scores, before the next split can fail."""
    from r21d.evaluation import save_scores

    if args.json != _STDOUT:
        if len(names) > 1:
            print(f"\nsplit {split}\n")
        print_result(result, args.per_class, matrix=args.confusion == _STDOUT)
        sys.stdout.flush()
    if args.scores is not None and result.scores is not None:
        file = _score_files(args.scores, names)[names.index(split)]
        save_scores(file, result.scores)


def _score_files(path: str | None, names: Iterable[str | None]) -> list[Path]:
    """The file of each split's scores: ``path`` with the split in its name, where there are any."""
    if path is None:
        return []
    file = Path(path)
    several = len(names := list(names)) > 1
    return [file.with_stem(f"{file.stem}-{name}") if several else file for name in names]


def _conclude(args: argparse.Namespace, results: dict[str | None, EvalResult]) -> int:
    """What concerns all splits; the exit code."""
    from r21d.atomic import write_atomically
    from r21d.plots import confusion_matrix

    if len(results) > 1 and args.json != _STDOUT:
        print_mean(results)
    if args.json is not None:
        text = as_json(args, results)
        if args.json == _STDOUT:
            print(text)
        else:
            write_atomically(args.json, f"{text}\n".encode())
    if args.confusion not in (None, _STDOUT):
        first = next(iter(results.values()))
        total = sum((_confusion(r, first.classes) for r in results.values()), first.confusion * 0)
        titles = picture_titles(args, results)
        confusion_matrix(total, first.classes, args.confusion, **titles)
    if args.json != _STDOUT:
        _print_written(args, results)
    failed = [path for result in results.values() for path, _ in result.failed]
    if not failed:
        return 0
    total_videos = sum(result.videos for result in results.values()) + len(failed)
    where = "above" if args.json != _STDOUT else "as failed in the JSON"
    print_error(f"left out {len(failed)} of {total_videos} videos, listed {where}")
    return SOME_FAILED_EXIT


def _print_written(args: argparse.Namespace, results: dict[str | None, EvalResult]) -> None:
    written: list[tuple[str, str | Path]] = []
    written += [("scores", file) for file in _score_files(args.scores, results)]
    if args.json is not None:
        written.append(("JSON", args.json))
    if args.confusion not in (None, _STDOUT):
        written.append(("confusion matrix", args.confusion))
    if written:
        print()
    for what, file in written:
        print(f"{what}: {printable(file)}")


def _confusion(result: EvalResult, classes: list[str]) -> Tensor:
    """The matrix in the order of ``classes``, which may be another network's."""
    order = [result.classes.index(name) for name in classes]
    return result.confusion[order][:, order]
