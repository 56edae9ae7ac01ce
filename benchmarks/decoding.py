"""Decoding and transforming training clips: clips a second on one core, beside what others do.

    python -m benchmarks.decoding                        # generated files, about two minutes
    python -m benchmarks.decoding --data FOLDER          # and the videos below FOLDER
    python -m benchmarks.decoding --report FILE          # the table of an earlier run

A sample is one training clip: 16 frames at 15 a second from a random moment of a file, scaled to
128x171, cropped to 112x112 at random, uint8. All peers read the same moments in interleaved rounds,
in one process that is held to one core, decoders with one thread each. The generated files are like
Kinetics' usual copies (340x256, 10 s, 30 frames a second, H.264, a keyframe at least every 250
frames), the same with a keyframe every 12 frames, and 1280x720.

The last lines compute how many such cores would feed one H200, were R(2+1)D-18 to run at the
ceiling of ``H200_FLOPS``: no figure of a GPU is measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoding_peers import PEERS, Reader
from benchmarks.measure import Rounds, host_sampler, interleave, quartiles
from benchmarks.results import RESULTS, provenance, write_run
from r21d.video import ClipTransform, InputSpec, probe
from r21d.video.lists import is_video
from r21d.video.sampling import clip_span

KIND = "decoding"
SPEC = InputSpec()
#: DESIGN's dense bfloat16 rate of an H200, FLOP/s, and what a 16x112x112 clip costs, FLOP.
H200_FLOPS = 788e12
CLIP_FLOPS = 2 * 41.50e9
#: A training step is the forward pass and two products of its size.
STEPS = {"inference": 1, "training": 3}
_SHARES = (1.0, 0.5)


@dataclass(frozen=True)
class Case:
    """Files of one kind; the clips of round i come from ``paths[i % len(paths)]``."""

    name: str
    paths: list[Path]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a peer failed or gave other frames."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of videos to measure, too")
    parser.add_argument("--rounds", type=int, default=40, help="clips a peer and kind of file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--report", type=Path, help="print this file and measure nothing")
    options = parser.parse_args(arguments)
    if options.report is not None:
        print(render(json.loads(options.report.read_text(encoding="utf-8"))))
        return 0
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    run = measure(options.data, options.rounds)
    path = write_run(run, options.results, KIND)
    print(f"{render(run)}\n\nwritten: {path}")
    rows = [row for case in run["cases"] for row in case["peers"]]
    return 1 if any(row["status"] in ("failed", "wrong") for row in rows) else 0


def measure(data: Path | None, rounds: int) -> dict[str, Any]:
    """Every kind of file with every peer, as JSON values."""
    load = os.getloadavg()[0]
    started = datetime.now(timezone.utc)
    threads = torch.get_num_threads()
    cpus = os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        with tempfile.TemporaryDirectory() as folder:
            cases = [*generated(Path(folder)), *([] if data is None else found(data))]
            results = [_measure_case(case, rounds) for case in cases]
    finally:
        os.sched_setaffinity(0, cpus)
        torch.set_num_threads(threads)
    run = {
        "schema": 1,
        "kind": KIND,
        **provenance("cpu", started, load),
        "settings": {"rounds": rounds, "spec": SPEC.to_dict(), "threads": 1, "cores": 1},
        "cases": results,
    }
    run["versions"] |= {name: reader.version() for name, reader in PEERS.items()}
    return run


def generated(folder: Path) -> list[Case]:
    """Files like those that data sets hold, written into ``folder``."""
    kinds = {
        "340x256, keyframes up to 250 apart": ((256, 340), 250),
        "340x256, keyframes 12 apart": ((256, 340), 12),
        "1280x720, keyframes up to 250 apart": ((720, 1280), 250),
    }
    cases = []
    for name, (size, spacing) in kinds.items():
        path = folder / f"{size[1]}x{size[0]}-{spacing}.mp4"
        write_moving_picture(path, size, spacing)
        cases.append(Case(f"{name}, 10 s", [path]))
    return cases


def write_moving_picture(
    path: Path, size: tuple[int, int], keyframes: int, seconds: float = 10.0
) -> None:
    """A textured picture in smooth motion with noise, H.264 as libx264 makes it by default."""
    import av

    height, width = size
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.uniform(0, 255, (1, 3, 40, 60)).astype(np.float32))
    picture = torch.nn.functional.interpolate(small, (2 * height, 2 * width), mode="bicubic")
    canvas = picture[0].permute(1, 2, 0).numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"g": str(keyframes)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(30 * seconds)):
            top = round((1 + np.sin(number / 25)) * height / 2)
            left = round((1 + np.cos(number / 40)) * width / 2)
            view = canvas[top : top + height, left : left + width]
            noisy = view + rng.normal(0, 3, view.shape)
            pixels = np.clip(noisy, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def found(folder: Path) -> list[Case]:
    """The videos below ``folder`` that can be decoded, by their folder's name."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if is_video(path)):
        groups.setdefault(path.parent.name, []).append(path)
    return [Case(f"{name}/", paths) for name, paths in groups.items()]


def _measure_case(case: Case, rounds: int) -> dict[str, Any]:
    moments = _moments(case.paths, rounds)
    rows, calls = [], {}
    for name, reader in PEERS.items():
        row: dict[str, Any] = {"peer": name, "status": "timed", "reason": "", "samples": []}
        rows.append(row)
        reason = reader.missing()
        if reason is not None:
            row |= {"status": "unavailable", "reason": reason}
            continue
        try:
            row["difference"] = max(_difference(reader, *moment) for moment in set(moments))
        except Exception as error:
            row |= {"status": "failed", "reason": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        if row["difference"] > _LIMIT:
            row |= {
                "status": "wrong",
                "reason": f"other frames: {row['difference']:.1f} grey levels",
            }
            continue
        calls[name] = _call(reader)
    samplers = {name: host_sampler(call, moments) for name, call in calls.items()}
    samples = interleave(samplers, Rounds(rounds, rounds, 0.0), warmup=1)
    for row in rows:
        row["samples"] = samples.get(row["peer"], [])
    info = probe(case.paths[0])
    return {
        "name": case.name,
        "files": len(case.paths),
        "first": {"codec": info.codec, "size": [info.width, info.height], "seconds": info.duration},
        "moments": [[path.name, start] for path, start in moments],
        "peers": rows,
    }


_OURS = PEERS["r21d"]
_BRIGHTNESS = torch.tensor((0.299, 0.587, 0.114), dtype=torch.float64)
#: Mean absolute difference, in grey levels, that other filters and colour conversions may make;
#: one frame further is more in anything that moves.
_LIMIT = 4.0


def _moments(paths: Sequence[Path], rounds: int) -> list[tuple[Path, float]]:
    """A file and a random start within it for each round."""
    rng = np.random.default_rng(0)
    moments = []
    for number in range(rounds):
        info = probe(paths[number % len(paths)])
        slack = max(0.0, info.duration - clip_span(SPEC.clip_len, SPEC.frame_rate or 1.0))
        moments.append((info.path, float(rng.uniform(0, slack))))
    return moments


def _difference(reader: Reader, path: Path, start: float) -> float:
    """Mean absolute difference of a whole clip's brightness to r21d's, in grey levels.

    Colour is left out: what scales while it converts filters the half-sized colour planes alone.
    """
    ours, theirs = (peer.read(path, start, SPEC).double() @ _BRIGHTNESS for peer in (_OURS, reader))
    return float((ours - theirs).abs().mean())


def _call(reader: Reader) -> Callable[[tuple[Path, float]], Tensor]:
    transform = ClipTransform(SPEC, train=True, normalize=False)

    def call(moment: tuple[Path, float]) -> Tensor:
        return transform(reader.read(*moment, SPEC))

    return call


def needed_rates() -> dict[str, float]:
    """Clips a second that one H200 would take at its ceiling, computed."""
    return {name: H200_FLOPS / (CLIP_FLOPS * steps) for name, steps in STEPS.items()}


def render(run: dict[str, Any]) -> str:
    """Tables of a run."""
    lines = [
        f"{run['machine']['cpu']}, one core; {(run['commit'] or 'no commit')[:10]}"
        f"{' and changes' if run['dirty'] else ''}; {run['created']}",
        ", ".join(f"{name} {value}" for name, value in run["versions"].items() if name in PEERS),
    ]
    for case in run["cases"]:
        lines += ["", f"{case['name']} ({case['files']} file(s), {case['first']['codec']})"]
        ours = next(row for row in case["peers"] if row["peer"] == "r21d")
        for row in case["peers"]:
            lines.append(_line(row, ours))
    lines += [
        "",
        f"cores to feed one H200 with R(2+1)D-18, ceiling {H200_FLOPS / 1e12:.0f} TFLOP/s "
        "(computed: no GPU was measured)",
    ]
    for case in run["cases"]:
        ours = next(row for row in case["peers"] if row["peer"] == "r21d")
        if ours["samples"]:
            rate = 1 / float(np.mean(ours["samples"]))
            cells = [
                f"{name} at {share:.0%} of the ceiling {needed * share / rate:.0f}"
                for name, needed in needed_rates().items()
                for share in _SHARES
            ]
            lines.append(f"  {case['name']}: {rate:.1f} clips/s a core; " + "; ".join(cells))
    return "\n".join(lines)


def _line(row: dict[str, Any], ours: dict[str, Any]) -> str:
    if not row["samples"]:
        return f"  {row['peer']:<34} {row['status']}: {row['reason']}"
    low, median, high = quartiles(row["samples"])
    ratios = [theirs / own for theirs, own in zip(row["samples"], ours["samples"], strict=True)]
    first, middle, last = quartiles(ratios)
    mean = float(np.mean(row["samples"]))
    return (
        f"  {row['peer']:<34} {1 / mean:8.1f} clips/s   {median * 1e3:7.1f} ms"
        f" ({low * 1e3:.1f}-{high * 1e3:.1f})   ours is x {middle:.2f} ({first:.2f}-{last:.2f})"
    )


if __name__ == "__main__":
    sys.exit(main())
