"""``r21d demo``: the operator beside stock PyTorch, then from video files to a trained network."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r21d.cli.arguments import Subcommands, count
from r21d.cli.errors import UserError, print_error

if TYPE_CHECKING:
    from r21d.cli.demo_motion import Run

FAILED_EXIT = 1


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``demo`` to the command line."""
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="see it work, in about four minutes",
        description="Compare a stock R(2+1)D-18 with fuse(model); write H.264 videos of motions "
        "that only the order of frames tells apart; train R(2+1)D and, as the control, f-R2D on "
        "them; classify a held-out file. Nothing is downloaded. The exit code is 1 when a result "
        "is not what it should be.",
        epilog="example: r21d demo --out /tmp/demo --seed 1",
    )
    parser.add_argument("--out", default="demo", help="folder to write (default: demo)")
    parser.add_argument("--seed", type=count, default=0, help="(default: 0)")
    parser.add_argument(
        "--quick", action="store_true", help="only check that everything runs; judges no accuracy"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 where a result is not what it should be."""
    started = time.perf_counter()
    out = Path(args.out)
    _check_extras()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"seed": args.seed, "quick": args.quick, **_versions()}

    print("1. The product: a stock network, and fuse(model)\n")
    failed = _product(args.seed, args.quick, results)
    print("\n2. Training: eight motions in four time-reversed pairs")
    runs = _train(out, args.seed, args.quick, results)
    if not args.quick:
        from r21d.cli.demo_motion import failures

        failed += failures(runs)
    print("\n3. A prediction, on a file it has not seen")
    _predict(out, runs, results)
    results["failures"] = failed
    results["seconds"] = round(time.perf_counter() - started, 1)
    _write_results(out, results)
    print("\n4. Yours")
    print(_next_steps())
    print(f"\neverything is in {out}/, the figures in {out / 'results.json'}")
    for failure in failed:
        print_error(f"the demo failed: {failure}")
    return FAILED_EXIT if failed else 0


def _check_extras() -> None:
    try:
        import av  # noqa: F401
        import cv2  # noqa: F401
        import matplotlib  # noqa: F401
        import safetensors  # noqa: F401
        import skimage  # noqa: F401
    except ImportError as error:
        raise UserError(f"the demo needs more ({error}): pip install 'r21d[demo]'") from error


def _versions() -> dict[str, Any]:
    import torch

    import r21d

    return {
        "r21d": r21d.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def _product(seed: int, quick: bool, results: dict[str, Any]) -> list[str]:
    from r21d.cli.demo_product import compare, differences, show

    rows, source = compare(seed, quick)
    show(rows, source)
    results["product"] = {"source": source, "rows": [dataclasses.asdict(row) for row in rows]}
    return differences(rows)


def _train(out: Path, seed: int, quick: bool, results: dict[str, Any]) -> list[Run]:
    from r21d.cli import demo_motion
    from r21d.plots import training_curves

    scale = demo_motion.QUICK if quick else demo_motion.Scale()
    videos = out / "motion"
    photographs = demo_motion.write_videos(videos, scale, seed)
    files = len(list(videos.rglob("*.mp4")))
    print(f"{files} H.264 files in {videos}/; held out: {', '.join(photographs['val'])}")
    runs = []
    for label, name in demo_motion.NETWORKS.items():
        started = time.perf_counter()
        runs.append(demo_motion.train_and_test(label, videos, out / name, scale, seed))
        print(f"{time.perf_counter() - started:.0f} s")
    demo_motion.show(runs, judged=not quick)
    curves = out / "curves.png"
    training_curves(
        {run.label: run.history for run in runs},
        curves,
        chance=demo_motion.CHANCE,
        bound=("any bag of frames", demo_motion.FRAME_BAG_BOUND),
    )
    print(f"curves: {curves}")
    results["photographs"] = photographs
    results["training"] = {
        run.label: {"history": run.history, "test": run.result.to_dict()} for run in runs
    }
    return runs


def _predict(out: Path, runs: list[Run], results: dict[str, Any]) -> None:
    from r21d.cli.checkpoint import load_model
    from r21d.cli.predict import draw
    from r21d.cli.tables import print_table
    from r21d.evaluation import predict

    video = out / "motion" / "val" / "zoom_in" / "0000.mp4"
    picture = out / "prediction.png"
    model = load_model(runs[0].checkpoint)
    prediction = predict(model, video)
    draw(model, prediction, picture)
    print(f"\n{video}, by {runs[0].checkpoint}\n")
    print_table(("class", "score"), [(n, f"{s:.1%}") for n, s in prediction.top], right=(1,))
    print(f"filmstrip: {picture}")
    results["prediction"] = prediction.to_dict()


def _write_results(out: Path, results: dict[str, Any]) -> None:
    from r21d.atomic import write_atomically

    write_atomically(out / "results.json", json.dumps(results, indent=2).encode())


def _next_steps() -> str:
    command = _command()
    return f"""
your own folder of videos (videos/<class>/<files>):
    {command} train videos --out runs/mine --clip-len 8 --resize 64x85 --crop 56x56
    {command} predict new.mp4 --checkpoint runs/mine/best.safetensors --filmstrip new.png

your own model:
    import r21d_ops
    model = r21d_ops.fuse(model)
    print(*r21d_ops.fuse_report(model), sep="\\n")"""


def _command() -> str:
    """How to call this program from the current folder."""
    installed = Path(sys.executable).with_name("r21d")
    found = shutil.which("r21d")
    if found is not None and installed.exists() and os.path.samefile(found, installed):
        return "r21d"
    if installed.exists():
        return shlex.quote(os.path.relpath(installed))
    return f"{shlex.quote(sys.executable)} -m r21d"
