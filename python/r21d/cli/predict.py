"""``r21d predict``: what is in a video."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r21d.cli.arguments import Subcommands, add_device, positive, resolve_device
from r21d.cli.checkpoint import add_weights, load_model
from r21d.cli.clips import add_clips, clip_sampling, input_spec
from r21d.cli.errors import SOME_FAILED_EXIT, UserError, print_error, printable
from r21d.cli.outputs import PICTURE, check_replaced
from r21d.cli.tables import print_table
from r21d.evaluation.progress import progress_bar

if TYPE_CHECKING:
    from r21d.evaluation.predict import Prediction
    from r21d.models import VideoModel
    from r21d.video import InputSpec


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``predict`` to the command line."""
    parser = commands.add_parser(
        "predict",
        parents=[common],
        help="classify videos with a trained network",
        description="Classify each video by the mean softmax score of its clips. A file that "
        "cannot be decoded, or whose picture cannot be drawn, is reported and the others are "
        "still classified; the exit code is 1 then.",
        epilog="example: r21d predict a.mp4 b.mov --weights runs/mine/best.safetensors "
        "--filmstrip strips/",
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    add_weights(parser)
    add_clips(parser)
    parser.add_argument("--topk", type=positive, default=5, help="classes shown (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument(
        "--filmstrip",
        metavar="PATH",
        help="draw frames and scores: a PNG file for a single video, else a folder for NAME.png",
    )
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Classify every video; 1 where some failed."""
    clip_sampling(args)
    pictures = _picture_paths(args.filmstrip, args.videos)
    for picture in pictures:
        if picture is not None:
            check_replaced("--filmstrip", picture, PICTURE, [args.weights, *args.videos])
    model = load_model(args.weights, resolve_device(args.device))
    spec = input_spec(args, model)
    results: list[dict[str, Any]] = []
    with progress_bar("videos", len(args.videos)) as advance:
        for path, picture in zip(args.videos, pictures, strict=True):
            results.append(_serve(model, spec, path, picture, args))
            advance(1)
    if args.json:
        print(json.dumps(results, indent=2))
    return SOME_FAILED_EXIT if any("error" in result for result in results) else 0


def _serve(
    model: VideoModel, spec: InputSpec, path: str, picture: Path | None, args: argparse.Namespace
) -> dict[str, Any]:
    """One video's prediction, reported, as JSON values; ``error`` tells what failed."""
    from r21d.evaluation.predict import predict
    from r21d.video import VideoError

    if Path(path).is_dir():
        error = IsADirectoryError(f"{path} is a folder; predict takes files")
        return {"path": path, "error": _report(path, error)}
    sampling = clip_sampling(args)
    failures = (VideoError, OSError, FloatingPointError)
    try:
        prediction = predict(
            model,
            path,
            sampling.clips,
            args.topk,
            sampling.mode,
            sampling.crops,
            seed=sampling.seed,
            spec=spec,
        )
    except failures as error:
        return {"path": path, "error": _report(path, error)}
    result = prediction.to_dict()
    if picture is not None:
        try:
            draw(model, prediction, picture, spec)
        except failures as error:
            result["error"] = _report(path, error)
            picture = None
    if not args.json:
        _print(prediction, picture)
    return result


def _report(path: str, error: Exception) -> str:
    """Tell an error in one line that names the video; returns the line."""
    name = printable(path)
    # Before the line breaks go: some may be the name's.
    message = str(error).replace(path, name) or type(error).__name__
    if name not in message:
        message = f"{name}: {message}"
    message = printable(" ".join(message.split()))
    print_error(message)
    return message


def draw(
    model: VideoModel, prediction: Prediction, picture: Path, spec: InputSpec | None = None
) -> None:
    """Write the filmstrip of the middle clip.

    The clip is decoded again, in full resolution: the network saw it scaled down.
    """
    from r21d.plots import filmstrip
    from r21d.video import InputSpec, read_clip

    spec = spec or model.input_spec or InputSpec()
    start = prediction.starts[len(prediction.starts) // 2]
    frames = read_clip(
        prediction.path,
        spec.clip_len,
        spec.frame_rate,
        start,
        frame_stride=spec.frame_stride,
        short=spec.short,
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    title = "/".join(Path(prediction.path).parts[-2:])
    filmstrip(frames, title, prediction.top, picture)


def _picture_paths(option: str | None, videos: Sequence[str]) -> list[Path | None]:
    """Where each video's filmstrip goes; no two videos share a file."""
    if option is None:
        return [None] * len(videos)
    if option.lower().endswith(".png"):
        if len(videos) > 1:
            raise UserError(
                f"--filmstrip {option} is one file for {len(videos)} videos; name a folder"
            )
        return [Path(option)]
    if Path(option).exists() and not Path(option).is_dir():
        raise UserError(f"--filmstrip {option} is neither a folder nor a .png file")
    taken: set[str] = set()
    pictures: list[Path | None] = []
    for video in videos:
        stem = Path(video).stem
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        pictures.append(Path(option) / f"{name}.png")
    return pictures


def _print(prediction: Prediction, picture: Path | None) -> None:
    print(f"\n{printable(prediction.path)}")
    rows = [(printable(label), f"{score:.1%}") for label, score in prediction.top]
    print_table(("class", "score"), rows, right=(1,))
    if picture is not None:
        print(f"filmstrip: {printable(picture)}")
