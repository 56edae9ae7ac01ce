"""The script for a machine with a GPU, with a stand-in for Python (4 s, mostly torch's import)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from instruction_probes import PROBES, golden

from benchmarks.cases import DTYPES, Settings, list_cases
from benchmarks.layers import LAYERS

_ROOT = Path(__file__).resolve().parents[2]
SCRIPT = _ROOT / "benchmarks" / "gpu_session.sh"
SANITIZE = _ROOT / "tests" / "gpu" / "sanitize.sh"

# Leaves what a benchmark and the autotuner would, notes how it was called; pytest fails.
_PYTHON = """
printf '%q ' "$@" >>"$CALLS"; echo "autotune=${R21D_AUTOTUNE:-}" >>"$CALLS"
if [ "$2" = benchmarks ]; then
  number=$(wc -l <"$CALLS")
  mkdir -p "$OUT/results/a-gpu" "$R21D_CACHE_DIR/triton-tuning"
  echo "{}" >"$OUT/results/a-gpu/$number.json"
  echo "{}" >"$R21D_CACHE_DIR/triton-tuning/a-gpu.json"
fi
echo "from $2"
[ -z "${R21D_GOLDEN_DIR:-}" ] || mkdir -p "$R21D_GOLDEN_DIR"
[ -z "${R21D_GOLDEN_DIR:-}" ] || echo "{}" >"$R21D_GOLDEN_DIR/ballot.json"
[ "$2" != pytest ] || exit 3
"""

Session = tuple["subprocess.CompletedProcess[str]", Path, list[list[str]]]


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def _session(folder: Path, first: str = "", **environment: str) -> Session:
    """The finished script, its $OUT, and the arguments that Python got; ``first`` runs in it."""
    python, calls = folder / "python", folder / "calls"
    _program(python, first + _PYTHON)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("R21D_")}
    own = {"OUT": str(folder / "out"), "PYTHON": str(python), "CALLS": str(calls)}
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        env=inherited | own | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, folder / "out", [shlex.split(line) for line in calls.read_text().splitlines()]


def test_the_limits_of_all_parts_fit_into_the_session() -> None:
    text = SCRIPT.read_text()
    limits = {name: int(s) for name, s in re.findall(r"\[(\w+)\]=(\d+)", text)}
    parts = set(re.findall(r"^ *(?:part|measure) (\w+) ", text, re.MULTILINE))
    assert {"build", "stock", "tuned"} <= parts <= set(limits)
    (session,) = re.findall(r"R21D_SESSION_SECONDS:-(\d+)", text)
    assert sum(limits.values()) <= int(session) <= 570


def test_the_script_names_the_probes_that_have_not_run_on_hardware() -> None:
    (listed,) = re.findall(r"for the probes\n((?:#       .*\n)+)", SCRIPT.read_text())
    unproven = {probe.name for probe in PROBES if golden(probe) is None}
    assert set(re.findall(r"\w+", listed)) == unproven


def test_a_session_keeps_its_results_and_tells_what_failed(tmp_path: Path) -> None:
    done, out, _ = _session(tmp_path)
    assert done.returncode == 1
    names = sorted(path.name for path in out.iterdir())
    assert len(names) <= 8 and {"session.log", "more.tar"} < set(names)
    assert len([name for name in names if re.fullmatch(r"\d+\.json", name)]) == 6
    with tarfile.open(out / "more.tar") as more:
        assert {"./tuning-a-gpu.json", "./ballot.json"} <= set(more.getnames())
    log = (out / "session.log").read_text()
    parts = ("probes", "stock", "kernels", "compiled", "searched", "tests", "untuned", "tuned")
    for part in parts:
        assert f"== {part} (at most " in log
    assert "== tests: failed with status 3" in log and "from benchmarks" in log
    assert log.splitlines()[-1] == "== failed: probes tests"


def test_a_session_asks_for_cases_and_peers_that_there_are(tmp_path: Path) -> None:
    _, _, calls = _session(tmp_path)
    runs = {}
    for number, call in enumerate(calls):
        if call[:2] == ["-m", "benchmarks"]:
            given = {name: call[call.index(name) + 1].split(",") for name in ("--cases", "--peers")}
            settings = Settings(
                device="cuda", cases=tuple(given["--cases"]), peers=tuple(given["--peers"])
            )
            runs[number] = {case.name: case.peers for case in list_cases(settings)}
            asked = set().union(*runs[number].values())
            assert asked == set(given["--peers"])
    stock, kernels, compiled, searched, untuned, tuned = runs.values()
    everything = {f"{name}{t}/{d}" for name in LAYERS for t in ("", "/train") for d in DTYPES}
    assert everything < stock.keys() and stock.keys() == untuned.keys()
    inferred = {f"{name}/bf16" for name in [*LAYERS, "r2plus1d_18"]}
    assert kernels.keys() == inferred
    for peers in kernels.values():
        assert {"r21d cuda fused", "r21d cuda two kernels", "conv2d views"} < set(peers)
    assert all("inductor" in compiled[name] for name in inferred)
    assert 0 < len(searched) <= 3
    # What decides on a GPU is timed in one run: ours and eager.
    for run in (untuned, tuned):
        for name, peers in run.items():
            eager = "r21d eager" if "/train/" in name else "conv2d views"
            assert {"r21d triton", eager} <= set(peers)
    switches = [call[-1] for call in calls if call[:2] == ["-m", "benchmarks"]]
    assert switches == [f"autotune={value}" for value in ("", "", "", "", "0", "")]


@pytest.mark.parametrize(("parts", "status"), [("tuned", 0), ("tests", 1), ("stock tuned", 0)])
def test_parts_are_run_alone(parts: str, status: int, tmp_path: Path) -> None:
    done, out, calls = _session(tmp_path, R21D_PARTS=parts)
    assert done.returncode == status
    begun = re.findall(r"^== (\w+) \(at most", (out / "session.log").read_text(), re.MULTILINE)
    assert begun == parts.split()
    # One more asks whether the library loads.
    assert len(calls) == len(begun) + 1


@pytest.mark.parametrize("serves", [True, False], ids=["carried", "built"])
def test_a_library_that_serves_is_not_built(serves: bool, tmp_path: Path) -> None:
    """One that was brought is used; any other gives way to one that is built there."""
    refusal = '[ "$1" != -c ] || case "$2" in *native*) echo "no code for it"; exit 1;; esac\n'
    _program(tmp_path / "cmake", 'echo "cmake $*"')
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    first = "" if serves else refusal
    _, out, _ = _session(tmp_path, first, R21D_PARTS="build environment", PATH=path)
    log = (out / "session.log").read_text()
    for line in ("is built here: no code for it", "== build (at most", "--prefix r21d_ops"):
        assert (line in log) is not serves
    assert "== environment (at most" in log


@pytest.mark.parametrize("there", [True, False], ids=["no GPU", "no tool"])
def test_sanitizers_say_what_they_need(there: bool, tmp_path: Path) -> None:
    if there:
        _program(tmp_path / "compute-sanitizer", "exit 0")
    elif shutil.which("compute-sanitizer"):
        pytest.skip("this machine has compute-sanitizer")
    if there and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SANITIZE), "memcheck"],
        env={**os.environ, "PATH": path, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = "needs a CUDA device" if there else "compute-sanitizer is not on PATH"
    assert done.returncode == 1 and wanted in done.stderr
