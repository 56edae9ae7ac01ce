"""Options that say which clips of a video a network sees, and how they are made."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from r21d.cli.arguments import count, frame_rate, positive
from r21d.cli.errors import UserError

if TYPE_CHECKING:
    from r21d.models import VideoModel
    from r21d.video import ClipSampling, InputSpec

_CLIPS = 10
_MODES = ("even", "random", "dense")


def add_clips(parser: argparse.ArgumentParser) -> None:
    """``--clips`` and the like; what is not given is the checkpoint's."""
    group = parser.add_argument_group("clips")
    group.add_argument(
        "--clips", type=positive, help=f"clips a video (default: {_CLIPS}, the paper's)"
    )
    group.add_argument(
        "--sampling",
        choices=_MODES,
        default="even",
        help="even: from a video's start to its end; random: anywhere, the same ones for one "
        "--seed; dense: end to end over the whole video, --clips unused (default: even)",
    )
    group.add_argument(
        "--crops",
        type=int,
        choices=(1, 3),
        default=1,
        help="1: the centre; 3: left, centre and right of each clip (default: 1)",
    )
    group.add_argument(
        "--seed",
        type=count,
        default=0,
        help="of random clips, which depend on this and on the video's name: for r21d eval the "
        "path below DATA, for r21d predict the file's own name (default: 0)",
    )
    group.add_argument(
        "--clip-len", type=positive, metavar="T", help="frames (default: the checkpoint's)"
    )
    # Absent rather than None, which is the video's own rate.
    group.add_argument(
        "--frame-rate",
        type=frame_rate,
        metavar="FPS",
        default=argparse.SUPPRESS,
        help='frames a second, or "native" for the video\'s own; each of them unless '
        "--frame-stride is given, too (default: the checkpoint's)",
    )
    group.add_argument(
        "--frame-stride",
        type=positive,
        metavar="N",
        help="take every N-th of those frames (default: the checkpoint's)",
    )
    group.add_argument(
        "--size",
        type=positive,
        metavar="S",
        help="crops of SxS pixels, frames scaled in proportion (default: the checkpoint's)",
    )


def clip_sampling(args: argparse.Namespace) -> ClipSampling:
    """The clips that the options name.

    Raises:
        UserError: the options contradict each other.
    """
    from r21d.video import ClipSampling

    if args.sampling == "dense" and args.clips is not None:
        raise UserError(
            "--sampling dense takes as many clips as a video is long; leave --clips out"
        )
    return ClipSampling(args.sampling, args.clips or _CLIPS, args.crops, args.seed)


def input_spec(args: argparse.Namespace, model: VideoModel) -> InputSpec:
    """The input of the model, or the paper's, where no option says otherwise."""
    from r21d.video import InputSpec

    merged = model.config.get("clip_len") if model.config["name"].startswith("r2d_") else None
    if None not in (merged, args.clip_len) and args.clip_len != merged:
        raise UserError(
            f"--clip-len {args.clip_len}: this {model.config['name']} merges exactly {merged} "
            "frames into one image; leave --clip-len out"
        )
    options = ("clip_len", "frame_stride", "size")
    given = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    if hasattr(args, "frame_rate"):
        # A checkpoint's stride belongs to its own rate.
        given = {"frame_rate": args.frame_rate, "frame_stride": 1, **given}
    return (model.input_spec or InputSpec()).replace(**given)
