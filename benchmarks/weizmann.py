"""Studies on the Weizmann actions, each a command that anybody with the videos can run again.

    python -m benchmarks.weizmann DATA --study lopo --jobs 2 --out runs/weizmann
    python -m benchmarks.weizmann DATA --study full --people daria --threads 2 --out runs/weizmann
    python -m benchmarks.weizmann DATA --study finetune --jobs 2 --out runs/weizmann
    python -m benchmarks.weizmann DATA --study finetune_10 --jobs 2 --out runs/weizmann
    python -m benchmarks.weizmann DATA --study finetune_40 --jobs 2 --out runs/weizmann
    python -m benchmarks.weizmann --publish runs/weizmann

``lopo``: R(2+1)D-18 and f-R2D-18 of width 16 from scratch, equal budgets, each person left out in
turn, three seeds. ``full``: R(2+1)D-18 of full width. ``finetune``: a narrow R(2+1)D-18 that has
learnt five of the actions learns the other five in 20 steps, against one from scratch with the same
budget; the person left out is in no training set of either. ``finetune_10``, ``finetune_40``: the
same in 10 and 40 steps, from the weights of ``finetune``. The settings are r21d's configurations
``weizmann*``.

Every run is a process of its own, ``r21d.training.train`` in OUT/<study>/<arm>-<person>-<seed>.
Finished runs are kept and one that was interrupted goes on where it was, so the same command
again finishes a study. --publish makes the files of docs/results of all runs that OUT holds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.weizmann_page import DOCS, PAGE, write_study
from benchmarks.weizmann_results import summarize
from benchmarks.weizmann_runs import (
    STUDIES,
    StudyRun,
    perform,
    plan,
    result_of,
)
from r21d.training.run_folder import state_files
from r21d.video.lists.weizmann import weizmann_people

_ROOT = Path(__file__).resolve().parent.parent
_SEEDS = (0, 1, 2)
_PATIENCE = 0.5
"""Seconds between two looks at the processes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.weizmann",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, nargs="?", help="the folder of the Weizmann videos")
    parser.add_argument("--study", choices=STUDIES)
    parser.add_argument("--people", nargs="+", help="left out in turn (default: everybody)")
    parser.add_argument("--seeds", nargs="+", type=int, default=_SEEDS, help="(default: 0 1 2)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("runs/weizmann"), help="for the runs")
    parser.add_argument("--publish", type=Path, metavar="OUT", help="tables and plots of its runs")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where --publish writes them")
    parser.add_argument("--only", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.publish is not None:
        return _publish(options.publish, options.docs, parser)
    if options.data is None or options.study is None:
        parser.error("DATA and --study are needed, or --publish OUT")
    if min(options.jobs, options.threads) < 1:
        parser.error("--jobs and --threads must be at least 1")
    runs = plan(options.study, _people(options, parser), options.seeds)
    if options.only is not None:
        torch.set_num_threads(options.threads)
        perform(runs[options.only], options.data, options.out, options.device)
        return 0
    return _perform_all(runs, options)


def _people(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    try:
        known = weizmann_people(options.data)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    people: list[str] = options.people or known
    for person in people:
        if person not in known:
            parser.error(f"--people: {person} is none of {', '.join(known)}")
    return people


def _perform_all(runs: Sequence[StudyRun], options: argparse.Namespace) -> int:
    """Each run that is not finished in a process of its own, ``--jobs`` at a time."""
    options.out.mkdir(parents=True, exist_ok=True)
    waiting = [n for n, run in enumerate(runs) if result_of(run, options.out) is None]
    print(f"{options.study}: {len(runs)} runs, {len(runs) - len(waiting)} finished already")
    under_way: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    failed: list[str] = []
    # Several processes with a thread for each core each would wait for one another.
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while waiting or under_way:
            while len(under_way) < options.jobs and not failed:
                if (number := _startable(waiting, runs, options.out)) is None:
                    break
                waiting.remove(number)
                process = subprocess.Popen(_command(number, options), cwd=_ROOT, env=environment)
                under_way[number] = process, time.monotonic()
            if failed and not under_way:
                break
            time.sleep(_PATIENCE)
            for number in [
                n for n, (process, _) in under_way.items() if process.poll() is not None
            ]:
                process, start = under_way.pop(number)
                if process.returncode:
                    failed.append(runs[number].name)
                    continue
                _tell(runs[number], options.out, time.monotonic() - start)
    finally:
        # Each saves its state and ends; the same command goes on with it.
        for process, _ in under_way.values():
            process.terminate()
        for process, _ in under_way.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)
    if failed:
        print(f"failed: {', '.join(failed)}; the same command goes on", file=sys.stderr)
        return 1
    print(f"next: python -m benchmarks.weizmann --publish {options.out}")
    return 0


def _startable(waiting: Sequence[int], runs: Sequence[StudyRun], out: Path) -> int | None:
    """The first whose start, the weights of another run, is there."""
    for number in waiting:
        start = runs[number].start()
        if start is None or result_of(start, out) is not None:
            return number
    return None


def _command(number: int, options: argparse.Namespace) -> list[str]:
    people = ["--people", *options.people] if options.people else []
    return [
        *(sys.executable, "-m", "benchmarks.weizmann", str(options.data.resolve())),
        *("--study", options.study, "--out", str(options.out.resolve()), *people),
        *("--seeds", *map(str, options.seeds), "--threads", str(options.threads)),
        *("--device", options.device, "--only", str(number)),
    ]


def _tell(run: StudyRun, out: Path, seconds: float) -> None:
    result = result_of(run, out)
    assert result is not None
    print(
        f"{run.name}: video@1 {result['video_top1']:.0%}, clip@1 {result['clip_top1']:.0%}, "
        f"training clip@1 {result['history'][-1]['train_clip_top1']:.0%}, {seconds:.0f} s",
        flush=True,
    )


def _publish(out: Path, docs: Path, parser: argparse.ArgumentParser) -> int:
    written = 0
    for study in STUDIES:
        found: list[dict[str, Any]] = []
        for run in _found(study, out):
            result = result_of(run, out)
            if result is None:
                state = "interrupted" if state_files(run.folder(out)) else "not finished"
                parser.error(f"{run.folder(out)} is {state}: finish the study first")
            found.append(result)
        if found:
            write_study(summarize(study, found), docs)
            written += 1
    if not written:
        parser.error(f"{out} holds no runs of {', '.join(STUDIES)}")
    print(f"written: {docs / PAGE}")
    return 0


def _found(study: str, out: Path) -> list[StudyRun]:
    """The runs that ``out`` has folders of, by arm, person and seed."""
    runs = []
    for arm in STUDIES[study]:
        for folder in (out / study).glob(f"{arm}-*-*"):
            person, _, seed = folder.name.removeprefix(f"{arm}-").rpartition("-")
            if seed.isdecimal():
                runs.append(StudyRun(study, arm, person, int(seed)))
    return sorted(runs, key=lambda run: (run.arm, run.seed, run.person))


if __name__ == "__main__":
    sys.exit(main())
