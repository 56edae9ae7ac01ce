"""Options that name the videos a command works on."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence

from r21d.cli.errors import UserError
from r21d.video.lists import DATASETS, VideoList, list_splits, open_list

ALL_SPLITS = "all"


def add_data(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """``DATA`` and the options that say what it holds.

    Where they are ``optional``, a configuration may say the same, and what the command line does
    not say is absent, or None.
    """
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?" if optional else None,
        help="folder of the videos (for --dataset csv: or the list itself)",
    )
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        choices=DATASETS,
        default=argparse.SUPPRESS if optional else "folder",
        help="what DATA is (default: folder, a sub-folder a class)",
    )
    group.add_argument(
        "--annotations",
        metavar="PATH",
        help="the data set's lists: a folder (ucf101, hmdb51), a file or a folder (kinetics, "
        "sports1m) or a file (csv)",
    )
    group.add_argument(
        "--split",
        nargs="+",
        metavar="S",
        help="of ucf101 and hmdb51: 1, 2 or 3; of weizmann: the person left out; or all",
    )
    group.add_argument(
        "--index",
        metavar="FILE",
        help="what r21d index --out wrote (default: the index in DATA, where there is one)",
    )
    group.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS if optional else False,
        help="stop at broken videos instead of leaving them out",
    )


def check_index(args: argparse.Namespace) -> None:
    """Refuse an ``--index`` that is not there.

    Raises:
        UserError: there is no such file.
    """
    if args.index is not None and not os.path.isfile(args.index):
        raise UserError(
            f"--index {args.index}: no such file; r21d index {args.data} --out {args.index} makes "
            "one"
        )


def splits(args: argparse.Namespace) -> list[str | None]:
    """The splits that ``--split`` names, ``all`` spelled out; [None] for sets without splits.

    Raises:
        UserError: ``--split`` is lacking, names an unknown split or one twice, or the set has none.
        ValueError: the splits cannot be found out.
    """
    known = list_splits(args.dataset, args.data, args.annotations)
    if not known:
        if args.split:
            raise UserError(f"--dataset {args.dataset} has no splits; leave --split out")
        return [None]
    if repeated := [name for name, times in Counter(args.split or ()).items() if times > 1]:
        raise UserError(f"--split names {repeated[0]} twice")
    choices = f"{', '.join(known)} or {ALL_SPLITS}"
    if not args.split:
        raise UserError(f"--dataset {args.dataset} needs --split: {choices}")
    if unknown := [name for name in args.split if name not in (*known, ALL_SPLITS)]:
        raise UserError(f"--split {unknown[0]} is unknown; expected {choices}")
    return list(known if ALL_SPLITS in args.split else args.split)


def video_list(
    args: argparse.Namespace,
    train: bool,
    classes: Sequence[str] | None = None,
    split: str | None = None,
) -> VideoList:
    """The videos that the options name: the training side, or the other one, of ``split``.

    Labels are indices into ``classes`` where given, a checkpoint's, say.

    Raises:
        ValueError: an option is lacking, or the list is bad.
    """
    return open_list(
        args.dataset,
        args.data,
        annotations=args.annotations,
        split=split,
        train=train,
        classes=classes,
    )
