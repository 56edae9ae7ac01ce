"""``r21d eval``: accuracy of a trained network on a folder of videos."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from r21d.cli.arguments import Subcommands, add_device, count, positive, resolve_device
from r21d.cli.checkpoint import add_weights, load_model
from r21d.cli.errors import SOME_FAILED_EXIT, UserError, print_error
from r21d.cli.tables import print_table

if TYPE_CHECKING:
    from r21d.evaluation import EvalResult


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``eval`` to the command line."""
    parser = commands.add_parser(
        "eval",
        parents=[common],
        help="clip and video accuracy on a folder of videos",
        description="Classify FOLDER/<class>/<video files>, whose folders are named like the "
        "checkpoint's classes, and report clip@1, clip@5, video@1 and video@5 (scores averaged "
        "after softmax), the accuracy of each class and the files that could not be decoded; "
        "the exit code is 1 where there are any.",
        epilog="example: r21d eval videos/test --checkpoint runs/mine/best.safetensors --json",
    )
    parser.add_argument("folder", metavar="FOLDER", help="videos, a sub-folder a class")
    add_weights(parser)
    parser.add_argument(
        "--clips", type=positive, default=10, help="clips a video (default: 10, the paper's)"
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="clips a forward pass")
    parser.add_argument("--workers", type=count, default=0, help="decoding processes (default: 0)")
    parser.add_argument("--confusion", action="store_true", help="print the confusion matrix, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print; 1 where files had to be left out."""
    from r21d.evaluation import evaluate
    from r21d.video import InputSpec, VideoFolder

    model = load_model(args.weights, resolve_device(args.device))
    if model.classes is None:
        raise UserError(
            f"{args.weights} does not name its classes, so that folders cannot be matched with "
            "them; r21d convert IN OUT --labels FILE adds the names"
        )
    dataset = VideoFolder(
        args.folder,
        model.input_spec or InputSpec(),
        train=False,
        clips=args.clips,
        labels=model.classes,
    )
    result = evaluate(model, dataset, batch_size=args.batch_size, workers=args.workers)
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result, args.confusion)
    if not result.failed:
        return 0
    total = result.videos + len(result.failed)
    names = ", ".join(path for path, _ in result.failed)
    print_error(f"left out {len(result.failed)} of {total} videos: {names}")
    return SOME_FAILED_EXIT


def _print(result: EvalResult, confusion: bool) -> None:
    print_table(
        ("measure", "accuracy"),
        [
            ("clip@1", f"{result.clip_top1:.1%}"),
            ("clip@5", f"{result.clip_top5:.1%}"),
            ("video@1", f"{result.video_top1:.1%}"),
            ("video@5", f"{result.video_top5:.1%}"),
        ],
        right=(1,),
    )
    print(f"\n{result.videos} videos, {result.clips} clips, loss {result.loss:.3f}\n")
    totals = dict(zip(result.classes, result.confusion.sum(1).tolist(), strict=True))
    rows = [(name, str(totals[name]), f"{acc:.1%}") for name, acc in result.per_class.items()]
    print_table(("class", "videos", "video@1"), rows, right=(1, 2))
    if confusion:
        print("\nvideos by true class (row) and top class (column)")
        cells = [
            (str(number), name, *map(str, row))
            for number, (name, row) in enumerate(
                zip(result.classes, result.confusion.tolist(), strict=True)
            )
        ]
        columns = tuple(map(str, range(len(result.classes))))
        print_table(("", "class", *columns), cells, right=(0, *range(2, 2 + len(columns))))
    for path, reason in result.failed:
        print(f"left out: {path}: {reason}")
