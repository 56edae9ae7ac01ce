"""One JSON file a run: the machine, the versions, the ceilings and every raw sample.

Layout of ``benchmarks/results/<machine>/<UTC time>-<commit>.json`` (schema 1)::

    schema      1
    created     UTC, ISO 8601
    commit      of the repository, null where there is none;  dirty: files differ from it
    machine     slug, cpu, cores, threads, cpu_mhz, gpu (or null), gpu_clocks (or null), platform
    load_before the load average of the minute before the run, null where unknown
    versions    python, torch, cuda, cudnn, triton, driver, numpy, onnx, onnxruntime, openvino,
                native (r21d_ops' build_info); null where absent
    environment the R21D_ and TRITON_ variables of the run
    settings    what the run was asked for; shrink other than 1 means that nothing was measured
    memory      how peak memory was measured
    ceilings    flops (by dtype, per second), bytes_per_second
    cases       name, dtype, shape, training, problem (of a case of one layer: batch, channels,
                size, kernel, stride, padding; else null), arithmetic (the dtype, or tf32 where
                cuDNN may use it), flops, fused_bytes, eager_bytes, output_bytes, floor_s,
                peers: [peer, ours, status, reason, accuracy, timing, samples (seconds,
                one a round, in round order), peak_bytes, note]
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.suite import Suite
from r21d_ops import native

SCHEMA = 1
_ROOT = Path(__file__).resolve().parent.parent
#: Where results go unless told otherwise.
RESULTS = _ROOT / "benchmarks" / "results"


def _output(*command: str) -> str | None:
    """What ``command`` prints; None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip()


def _proc_cpuinfo(key: str) -> list[str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return []
    rows = (line.partition(":") for line in path.read_text().splitlines())
    return [value.strip() for name, _, value in rows if name.strip() == key]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi(fields: str) -> str | None:
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0")


def machine(device: str) -> dict[str, Any]:
    """The machine that ``device`` is on; ``slug`` names its folder of results."""
    models = _proc_cpuinfo("model name")
    cpu = models[0] if models else platform.processor() or platform.machine()
    cores = os.cpu_count() or 1
    gpu = torch.cuda.get_device_name(0) if device == "cuda" else None
    name = f"{gpu}" if gpu is not None else f"{cpu}-{cores}-cores"
    return {
        "slug": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "cpu": cpu,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "cpu_mhz": [float(mhz) for mhz in _proc_cpuinfo("cpu MHz")],
        "gpu": gpu,
        "gpu_clocks": _nvidia_smi("clocks.sm,clocks.mem,clocks.max.sm") if gpu else None,
        "platform": platform.platform(),
    }


def versions(device: str) -> dict[str, Any]:
    """Versions of everything that the figures depend on; None where absent."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
        "triton": _version("triton"),
        "driver": _nvidia_smi("driver_version") if device == "cuda" else None,
        **{name: _version(name) for name in ("numpy", "onnx", "onnxruntime", "openvino")},
        "native": native.build_info() or native.load_error,
    }


def provenance(device: str, started: datetime, load_before: float | None) -> dict[str, Any]:
    """When, of which commit, where and with which versions a run was made, as JSON values."""
    commit = os.environ.get("R21D_COMMIT") or _output("git", "rev-parse", "HEAD")
    # Results of earlier runs, and what git does not know, change no figure.
    status = _output("git", "status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")
    return {
        "created": started.isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "machine": machine(device),
        "load_before": load_before,
        "versions": versions(device),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("R21D_", "TRITON_"))
        },
    }


def document(suite: Suite) -> dict[str, Any]:
    """The whole run as plain JSON values."""
    device = suite.settings.device
    return {
        "schema": SCHEMA,
        **provenance(device, suite.started, suite.load_before),
        "settings": {**asdict(suite.settings), "clips": suite.settings.clips},
        "memory": memory.DEVICE_METHOD if device == "cuda" else memory.HOST_METHOD,
        "ceilings": {
            "flops": dict(suite.ceilings.flops),
            "bytes_per_second": suite.ceilings.bytes_per_second,
        },
        "cases": [result.as_dict() for result in suite.results.values()],
    }


def write_results(suite: Suite, folder: Path | None = None) -> Path:
    """Writes the run as one JSON file, whole or not at all; returns its path.

    Written again with more cases, a run replaces its own file.
    ``folder`` stands for :data:`RESULTS`; the file goes into its subfolder for the machine.
    """
    return write_run(document(suite), RESULTS if folder is None else folder)


def write_run(run: dict[str, Any], folder: Path, kind: str = "") -> Path:
    """Writes ``run`` into ``folder/<machine>/<kind>/``, named by its time and commit."""
    target = folder / str(run["machine"]["slug"]) / kind
    target.mkdir(parents=True, exist_ok=True)
    moment = datetime.fromisoformat(run["created"]).strftime("%Y%m%dT%H%M%SZ")
    path = target / f"{moment}-{(run['commit'] or 'no-commit')[:10]}.json"
    handle, temporary = tempfile.mkstemp(dir=target, prefix=".", suffix=".json")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(run, file, indent=1)
            file.write("\n")
        # mkstemp's files are for their owner alone.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
