"""``r21d doctor``: what is installed, what this machine has, and what can run on it."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from typing import Any

from r21d.cli import doctor_plan
from r21d.cli.arguments import Subcommands, positive, sizes
from r21d.cli.errors import UserError, one_line
from r21d.cli.tables import print_table
from r21d.machine import cpu_features, cpu_model, installed_version

# Distribution -> extra that brings it.
_EXTRAS = {
    "av": "video",
    "opencv-python-headless": "video",
    "numpy": "video",
    "safetensors": "train",
    "rich": "train",
    "matplotlib": "train",
    "scikit-image": "demo",
}
# What the table of backends is about: the problems of the benchmarks on a GPU.
_BATCH, _FRAMES = 32, 16
_CLIP = (3, _FRAMES, 112, 112)

# Values of its input, at most, so that a layer's bytes and operations stay below 64 bits; and
# frames, for the estimate tries each number of chunks of them.
_MOST_VALUES, _MOST_FRAMES = 2**48, 2**16

# What --plan is about where there is no GPU and none is named.
_PLANNED_GPU = "NVIDIA H200"


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``doctor`` to the command line."""
    parser = commands.add_parser(
        "doctor",
        parents=[common],
        help="what is installed here and which backend can run",
        description="Report versions, CPU and GPU, whether the native library loaded, and for "
        "each backend whether it can run here and, if not, why. With a CUDA GPU, also which "
        "backend serves each layer of R(2+1)D-18 on it. With --plan, how each (2+1)D convolution "
        "of a network would run there.",
        epilog='examples: r21d doctor --json > report.json; r21d doctor --gpu "NVIDIA H200"; '
        "r21d doctor --plan r2plus1d_18 --clip 3x16x112x112 --batch 32 --gpu h200",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="say what would serve each layer of R(2+1)D-18 on this GPU, which need not be here; "
        'a name as nvidia-smi gives it, such as "NVIDIA H200", or a part of one that is known',
    )
    parser.add_argument(
        "--plan",
        metavar="NETWORK",
        help="print the CUDA kernels' plan for each (2+1)D convolution of this network, as "
        "estimated: tile, shared memory, grid, time; on this machine's GPU, or --gpu's, or an H200",
    )
    parser.add_argument(
        "--clip",
        type=sizes(4, "3x16x112x112"),
        metavar="CxTxHxW",
        help=f"size of the clips of --plan (default: {'x'.join(map(str, _CLIP))})",
    )
    parser.add_argument("--batch", type=positive, help=f"clips of --plan (default: {_BATCH})")
    parser.add_argument(
        "--clear-cache",
        action="store_true",
        help="remove what the autotuner of the Triton kernels has kept, instead of reporting",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report or a network's plan, or clear the autotuner's cache."""
    if args.plan is None and (args.clip or args.batch):
        raise UserError("--clip and --batch are for --plan: name a network")
    if args.plan is not None and args.clear_cache:
        raise UserError("--plan and --clear-cache are two commands: give one of them")
    if args.clear_cache:
        return _clear_cache(args.json)
    if args.plan is not None:
        return _plan(args)
    report = examine(args.gpu)
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    print_table(("", ""), _rows(report))
    print()
    print_table(
        ("backend", "available", "reason"),
        [(b["name"], "yes" if b["available"] else "no", b["reason"]) for b in report["backends"]],
    )
    if report["dispatch"] is not None:
        _print_dispatch(report["dispatch"], report["environment"])
    return 0


def examine(gpu: str | None = None) -> dict[str, Any]:
    """The report as JSON values; ``gpu`` names one that need not be here."""
    import torch

    import r21d
    import r21d_ops
    from r21d_ops.backends.triton import triton_version

    return {
        "r21d": r21d.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "extras": {name: installed_version(name) for name in _EXTRAS},
        "cpu": {
            "model": cpu_model(),
            "features": cpu_features(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "torch_built_with": torch.version.cuda,
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "environment": _environment(),
        "native": _native(),
        "triton": triton_version(),
        "backends": [row._asdict() for row in r21d_ops.backends()],
        "dispatch": _dispatch(gpu),
    }


def _dispatch(gpu: str | None) -> dict[str, Any] | None:
    """How each layer is served on ``gpu``, else on this machine's; None without either."""
    import torch

    from r21d.models.layers import LAYERS
    from r21d_ops.dispatch import gpu_name
    from r21d_ops.dispatch.estimate import ASSUMPTIONS

    name = gpu_name() if gpu is None else _known_gpu(gpu)
    if not name:
        return None
    elsewhere = name != gpu_name()
    rows = [
        {"layer": layer.name, "training": training}
        | doctor_plan.route(
            layer.problem(_BATCH, _FRAMES, torch.bfloat16), training, name, elsewhere
        )._asdict()
        for layer in LAYERS.values()
        for training in (False, True)
    ]
    return {
        "gpu": name,
        "elsewhere": elsewhere,
        "clips": [_BATCH, _FRAMES],
        "assumptions": ASSUMPTIONS,
        "layers": rows,
    }


def _plan(args: argparse.Namespace) -> int:
    from r21d_ops.dispatch import gpu_name

    gpu = _known_gpu(args.gpu) if args.gpu is not None else gpu_name() or _PLANNED_GPU
    clip, batch = args.clip or _CLIP, args.batch or _BATCH
    if batch * math.prod(clip) > _MOST_VALUES:
        raise UserError(
            f"--batch {batch} with --clip {'x'.join(map(str, clip))} is {batch * math.prod(clip)} "
            f"values; at most {_MOST_VALUES} are planned"
        )
    if clip[1] > _MOST_FRAMES:
        raise UserError(f"--clip has {clip[1]} frames; at most {_MOST_FRAMES} are planned")
    report = doctor_plan.examine(args.plan, clip, batch, gpu, elsewhere=gpu != gpu_name())
    doctor_plan.show(report, args.json)
    return 0


def _known_gpu(asked: str) -> str:
    """The one GPU that has rates, has been measured or is here, and whose name holds ``asked``."""
    from r21d_ops.dispatch import gpu_name, measurements
    from r21d_ops.dispatch.estimate import GPUS

    known = sorted({*GPUS, *measurements.gpus(), *filter(None, [gpu_name()])})
    found = [name for name in known if asked.lower() in name.lower()]
    exact = [name for name in found if asked.lower() == name.lower()]
    if asked and len(exact or found) == 1:
        return (exact or found)[0]
    wrong = "is part of several names" if asked and found else "is no GPU that is known"
    listed = ", ".join(found if asked and found else known)
    raise UserError(f"--gpu {asked!r} {wrong}; give one of: {listed}")


def _environment() -> list[dict[str, str]]:
    """The variables that force a choice, where they are set, and what is wrong with them."""
    from r21d_ops.backends import BACKEND_VARIABLE, forced_name, get_backend
    from r21d_ops.dispatch import INFERENCE_VARIABLE, forced_kernels

    rows = []
    for variable, check in (
        (BACKEND_VARIABLE, lambda: get_backend(forced_name(None) or "")),
        (INFERENCE_VARIABLE, forced_kernels),
    ):
        value = os.environ.get(variable)
        if not value:
            continue
        reason = ""
        try:
            check()
        except ValueError as error:
            reason = one_line(error)
        rows.append({"name": variable, "value": value, "reason": reason})
    return rows


def _print_dispatch(found: dict[str, Any], environment: list[dict[str, str]]) -> None:
    batch, frames = found["clips"]
    there = "; a backend that is not installed here is taken for installed there"
    forced = "".join(f", with {row['name']}={row['value']}" for row in environment)
    print(
        f"\nR(2+1)D-18 on {found['gpu']}, {batch} clips of {frames}x112x112, bfloat16{forced}"
        f"{there if found['elsewhere'] else ''}:"
    )
    rows = [
        (
            row["layer"],
            "training" if row["training"] else "inference",
            row["backend"],
            row["kernels"],
            row["source"],
            row["detail"],
        )
        for row in found["layers"]
    ]
    print_table(("layer", "", "backend", "kernels", "source", "why"), rows)
    if any(row["source"] == "estimated" for row in found["layers"]):
        print(f"Estimates are no measurements. Assumed: {found['assumptions']}.")


def _clear_cache(as_json: bool) -> int:
    from r21d_ops.triton import cache, tuning

    try:
        folder = cache.folder()
        removed = [str(path) for path in tuning.clear_cache()]
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
        raise UserError(f"the autotuner's cache cannot be cleared: {reason}") from None
    if as_json:
        print(json.dumps({"folder": str(folder), "removed": removed}, indent=2))
    else:
        print("\n".join(f"removed {path}" for path in removed) or f"nothing was kept in {folder}")
    return 0


def _native() -> dict[str, Any]:
    from r21d_ops import native

    reason, built = native.load_error or "", {}
    try:
        built = native.build_info()
    except RuntimeError as error:
        # R21D_CPU_ISA asks for what this build or this CPU does not have.
        reason = one_line(error)
    return {"loaded": native.load_error is None, "reason": reason} | built


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, cuda, native = report["cpu"], report["cuda"], report["native"]
    forced = report["environment"]
    built = {key: native[key] for key in native if key not in ("loaded", "reason")}
    loaded = "loaded" if native["loaded"] else "not loaded"
    rows = [
        ("r21d", report["r21d"]),
        ("python", report["python"]),
        ("torch", report["torch"]),
        ("platform", report["platform"]),
        ("cpu", cpu["model"]),
        ("cpu features", " ".join(cpu["features"]) or "not known on this system"),
        ("torch on this cpu", f"{cpu['torch_capability']}, {cpu['threads']} threads"),
        ("gpu", ", ".join(cuda["devices"]) or _why_no_gpu(cuda["torch_built_with"])),
        *((row["name"], ": ".join(filter(None, (row["value"], row["reason"])))) for row in forced),
        ("triton", report["triton"] or "missing: pip install 'r21d[triton]'"),
        ("native library", ": ".join(filter(None, (loaded, native["reason"])))),
    ]
    rows += [(f"  {key}", _flat(value)) for key, value in built.items()]
    for name, version in report["extras"].items():
        missing = f"missing: pip install 'r21d[{_EXTRAS[name]}]'"
        rows.append((name, version or missing))
    return rows


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _why_no_gpu(built_with: str | None) -> str:
    if built_with is None:
        return "none: this torch is built without CUDA"
    return f"none found (torch is built for CUDA {built_with})"
