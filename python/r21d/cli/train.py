"""``r21d train``: a network for the classes of a data set of videos."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r21d.cli.arguments import (
    Subcommands,
    add_device,
    count,
    fraction,
    frame_rate,
    positive,
    resolve_device,
    sizes,
)
from r21d.cli.data import add_data, check_index, splits, video_list
from r21d.cli.errors import UserError, printable
from r21d.training.config import SCHEDULES, TrainConfig
from r21d.video.lists import VideoList, has_sides, open_list

if TYPE_CHECKING:
    from r21d.video import InputSpec, VideoDataset

_DEFAULTS = TrainConfig()
_VAL_FRACTION = 0.2


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``train`` to the command line."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        usage="r21d train DATA [option ...]",
        help="train a network on a folder of videos or a published data set",
        description="Train on DATA/<class>/<video files>, the folders' names being the classes, or "
        "on the data set that --dataset names. Validates on the data set's own test or validation "
        "side where it has one (ucf101, hmdb51 and weizmann, of one --split; kinetics and "
        "sports1m, with a folder of --annotations), else on --val, or on some videos of each "
        "class that are held out. Writes last.safetensors, best.safetensors, state.safetensors "
        "(for --resume) and history.jsonl into --out after every epoch, and curves.png at the "
        "end.",
        epilog="example, small enough for a CPU: r21d train videos --clip-len 8 --resize 64x85 "
        "--crop 56x56 --epochs 10 --batch-size 8 --out runs/mine",
    )
    add_data(parser)
    held = parser.add_mutually_exclusive_group()
    held.add_argument(
        "--val",
        metavar="PATH",
        help="what to validate on, same classes: a folder like DATA or, of the other data sets, a "
        "list like DATA's",
    )
    held.add_argument(
        "--val-fraction",
        type=fraction,
        help=f"share of each class's training videos to hold out (default: {_VAL_FRACTION}, where "
        "there is nothing else to validate on)",
    )
    parser.add_argument("--out", default="runs/r21d", help="folder to write (default: runs/r21d)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    _add_network(parser)
    _add_input(parser)
    _add_optimisation(parser)
    parser.set_defaults(run=run)


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--model", default="r2plus1d_18", help="(default: %(default)s)")
    group.add_argument("--midplanes", choices=("paper", "torchvision"), help="(default: paper)")
    group.add_argument(
        "--dropout", type=float, help="before the classifier (default: the network's own)"
    )


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument("--clip-len", type=positive, default=16, help="frames a clip (default: 16)")
    group.add_argument(
        "--frame-rate",
        type=frame_rate,
        default=15.0,
        help="frames a second, or 'native' for consecutive frames (default: 15)",
    )
    group.add_argument(
        "--resize",
        type=sizes(2, "128x171"),
        default=(128, 171),
        metavar="HxW",
        help="frames are scaled to this (default: 128x171)",
    )
    group.add_argument(
        "--crop",
        type=sizes(2, "112x112"),
        default=(112, 112),
        metavar="HxW",
        help="and cropped to this (default: 112x112)",
    )
    group.add_argument(
        "--no-flip",
        action="store_true",
        help="do not mirror clips: for classes in which left and right matter",
    )
    group.add_argument(
        "--val-clips", type=positive, default=5, help="clips a validation video (default: 5)"
    )
    group.add_argument("--workers", type=count, default=0, help="decoding processes (default: 0)")


def _add_optimisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--epochs", type=int, default=_DEFAULTS.epochs, help="(default: %(default)s)"
    )
    group.add_argument(
        "--batch-size", type=int, default=_DEFAULTS.batch_size, help="clips (default: %(default)s)"
    )
    group.add_argument("--lr", type=float, default=_DEFAULTS.lr, help="(default: %(default)s)")
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default=_DEFAULTS.schedule,
        help="step: a tenth every 10 epochs, the paper's; cosine: to zero (default: %(default)s)",
    )
    group.add_argument("--warmup-epochs", type=float, default=0.0, help="(default: 0)")
    group.add_argument(
        "--weight-decay", type=float, default=_DEFAULTS.weight_decay, help="(default: %(default)s)"
    )
    group.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    group.add_argument("--seed", type=count, default=0, help="(default: 0)")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Train, print a line an epoch, draw the curves."""
    import torch

    from r21d.models import create_model
    from r21d.training import train

    config = _config(args)
    check_index(args)
    _check_out(args)
    train_set, val_set = _datasets(args, _spec(args))
    torch.manual_seed(config.seed)
    options = {"clip_len": args.clip_len, "midplanes": args.midplanes, "dropout": args.dropout}
    given = {name: value for name, value in options.items() if value is not None}
    if args.model == "i3d":
        # Its authors' statistics take thousands of steps to follow.
        given["momentum"] = 0.1
    model = create_model(args.model, num_classes=len(train_set.classes), **given)
    print(
        f"{args.model}: {len(train_set)} videos to train on, {len(val_set)} to validate on, "
        f"{len(train_set.classes)} classes"
    )
    history = train(
        model,
        train_set,
        val_set,
        config,
        out=args.out,
        resume=args.resume,
        overwrite=args.overwrite,
        on_epoch=lambda row: print(epoch_line(row, config.epochs), flush=True),
    )
    _draw(history, Path(args.out) / "curves.png", len(train_set.classes))
    best = Path(args.out) / "best.safetensors"
    print(f"best checkpoint: {best}\nnext: r21d predict VIDEO --checkpoint {best}")
    return 0


def _check_out(args: argparse.Namespace) -> None:
    """Refuse before the work what training would refuse when it has looked every video up."""
    from r21d.training.loop import held_run

    if not args.resume and not args.overwrite and (held := held_run(args.out)):
        raise UserError(
            f"--out {printable(args.out)} already holds a run ({held[0].name}): --resume goes on "
            "with it, --overwrite replaces it; or choose another folder"
        )


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch's row of the history as a line of text."""
    line = (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {row['train_loss']:.3f}  "
        f"clip@1 {row['train_clip_top1']:6.1%}"
    )
    if "val_loss" in row:
        line += (
            f"  |  held out: loss {row['val_loss']:.3f}  clip@1 {row['clip_top1']:6.1%}  "
            f"video@1 {row['video_top1']:6.1%}"
        )
    return line


def _config(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        warmup_epochs=args.warmup_epochs,
        dtype="bfloat16" if args.bf16 else "float32",
        device=resolve_device(args.device),
        workers=args.workers,
        eval_batch_size=args.batch_size,
        seed=args.seed,
    )


def _spec(args: argparse.Namespace) -> InputSpec:
    from r21d.video import InputSpec

    return InputSpec(
        clip_len=args.clip_len, frame_rate=args.frame_rate, resize=args.resize, crop=args.crop
    )


def _datasets(args: argparse.Namespace, spec: InputSpec) -> tuple[VideoDataset, VideoDataset]:
    from r21d.training.split import split_videos
    from r21d.video import ClipSampling, VideoDataset

    train_list, val_list = _lists(args)
    shared = {"strict": args.strict, "normalize": False}
    train_set = VideoDataset(
        train_list,
        spec,
        train=True,
        flip=not args.no_flip,
        seed=args.seed,
        index=args.index,
        **shared,
    )
    if val_list is None:
        share = args.val_fraction or _VAL_FRACTION
        return split_videos(train_set, share, clips=args.val_clips, seed=args.seed)
    even = ClipSampling(clips=args.val_clips)
    # --index speaks of DATA; another folder may have an index of its own.
    index = args.index if val_list.root == train_list.root else None
    return train_set, VideoDataset(val_list, spec, False, even, index=index, **shared)


def _lists(args: argparse.Namespace) -> tuple[VideoList, VideoList | None]:
    """What to train on and to validate on; None where that is to be held out of the former."""
    chosen = splits(args)
    if len(chosen) > 1:
        raise UserError(f"training takes one --split at a time, got {', '.join(map(str, chosen))}")
    own_side = has_sides(args.dataset, args.annotations)
    if own_side and args.val is not None:
        raise UserError(
            f"--val: --dataset {args.dataset} has its own side to validate on; leave --val out"
        )
    train_list = video_list(args, True, split=chosen[0])
    if args.val_fraction is not None or (args.val is None and not own_side):
        return train_list, None
    if own_side:
        val_list = video_list(args, False, train_list.classes, chosen[0])
    elif args.dataset == "folder" or args.annotations is None:
        val_list = open_list(args.dataset, args.val, classes=train_list.classes)
    else:
        val_list = open_list(
            args.dataset, args.data, annotations=args.val, classes=train_list.classes
        )
    # That no video of one side has several labels does not make its kind another.
    several = train_list.multilabel or val_list.multilabel
    return replace(train_list, multilabel=several), replace(val_list, multilabel=several)


def _draw(history: list[dict[str, Any]], path: Path, classes: int) -> None:
    from r21d.plots import training_curves

    training_curves(history, path, chance=1 / classes)
