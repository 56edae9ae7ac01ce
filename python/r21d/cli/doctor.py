"""``r21d doctor``: what is installed, what this machine has, and what can run on it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from r21d.cli.arguments import Subcommands
from r21d.cli.errors import one_line
from r21d.cli.tables import print_table

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
# Instruction sets that the CPU backend or torch's own kernels make use of.
_CPU_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "bf16",
)


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``doctor`` to the command line."""
    parser = commands.add_parser(
        "doctor",
        parents=[common],
        help="what is installed here and which backend can run",
        description="Report versions, CPU and GPU, whether the native library loaded, and for "
        "each backend whether it can run here and, if not, why.",
        epilog="example: r21d doctor --json > report.json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    report = examine()
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    print_table(("", ""), _rows(report))
    print()
    print_table(
        ("backend", "available", "reason"),
        [(b["name"], "yes" if b["available"] else "no", b["reason"]) for b in report["backends"]],
    )
    return 0


def examine() -> dict[str, Any]:
    """The report as JSON values."""
    import torch

    import r21d
    import r21d_ops

    return {
        "r21d": r21d.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "extras": {name: _version(name) for name in _EXTRAS},
        "cpu": {
            "model": _cpu_model(),
            "features": _cpu_features(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "torch_built_with": torch.version.cuda,
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "native": _native(),
        "backends": [row._asdict() for row in r21d_ops.backends()],
    }


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


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return [feature for feature in _CPU_FEATURES if feature in flags]


def _cpuinfo(key: str) -> str | None:
    """The first value of ``key`` in Linux's /proc/cpuinfo; None where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)
