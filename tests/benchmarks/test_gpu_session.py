"""The script for a machine with a GPU, with a stand-in for Python (8 s, mostly torch's import)."""

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
from r21d_ops import native

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


def _begun(log: str) -> list[str]:
    return re.findall(r"^== (\w+) \(at most", log, re.MULTILINE)


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
    stock = ("stock", "kernels", "losses", "compiled", "searched")
    parts = ["environment", "probes", *stock, "tests", "triton_tests", "untuned", "tuned"]
    assert [part for part in _begun(log) if "check" not in part] == parts
    assert "== tests: failed with status 3" in log and "from benchmarks" in log
    assert log.splitlines()[-1].startswith("== failed: probes tests triton_tests")


def test_what_takes_triton_to_compile_is_a_part_of_its_own(tmp_path: Path) -> None:
    """Between them the two parts select every test but the probes', which have a part too."""
    _, _, calls = _session(tmp_path, R21D_PARTS="probes tests triton_tests")
    probes, tests, triton = (call[5:-1] for call in calls if call[:2] == ["-m", "pytest"])
    assert probes == ["tests/gpu/test_probes.py"]
    every = ["tests/gpu", "--ignore=tests/gpu/test_probes.py"]
    side_by_side = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
    assert tests == [*side_by_side, *every, "-k", "not triton"]
    assert triton == [*side_by_side, *every, "-k", "triton"]


def test_without_xdist_tests_are_run_one_by_one(tmp_path: Path) -> None:
    lacking = 'case "$2" in *xdist) exit 1;; esac\n'
    _, _, calls = _session(tmp_path, lacking, R21D_PARTS="tests")
    (tests,) = (call for call in calls if call[:2] == ["-m", "pytest"])
    assert "tests/gpu" in tests and "-n" not in tests


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
    assert kernels.keys() == inferred | {name.replace("/", "/train/") for name in inferred}
    for name, peers in kernels.items():
        ways = (
            ("cuda", "cuda recompute") if "/train/" in name else ("cuda fused", "cuda two kernels")
        )
        assert {*(f"r21d {way}" for way in ways), "conv2d views"} < set(peers)
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
    begun = _begun((out / "session.log").read_text())
    assert begun == parts.split()
    # Two more ask whether the library loads, and whether tests can run side by side.
    assert len(calls) == len(begun) + 2


@pytest.mark.parametrize("serves", [True, False], ids=["carried", "built"])
def test_a_library_that_serves_is_not_built(serves: bool, tmp_path: Path) -> None:
    """One that was brought is used; any other gives way to one that is built there."""
    refusal = '[ "$1" != -c ] || case "$2" in *native*) echo "no code for it"; exit 1;; esac\n'
    _program(tmp_path / "cmake", 'echo "cmake $*"')
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    first = "" if serves else refusal
    _, out, _ = _session(tmp_path, first, R21D_PARTS="build environment", PATH=path)
    log = (out / "session.log").read_text()
    for line in ("no code for it", "== build (at most", "-DCMAKE_CUDA_ARCH", "--prefix r21d_ops"):
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


@pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))
def test_sanitizers_run_every_way_through_the_kernels(tmp_path: Path) -> None:
    """The cases that the script names are there; pytest only collects them."""
    _program(tmp_path / "compute-sanitizer", 'while [ "$1" != "$PYTHON" ]; do shift; done; "$@"')
    python = tmp_path / "python"
    _program(python, f'[ "$1" = -c ] || exec {shlex.quote(sys.executable)} "$@" --collect-only')
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SANITIZE), "memcheck"],
        env={**os.environ, "PATH": path, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    fused = re.findall(r"test_fused_tile\[(\d)x(\d+)x(\d)-(\w+)-(\w+)\]", done.stdout)
    warps, mids, live, feeds, dtypes = map(set, zip(*fused, strict=True))
    assert (warps, mids, live) == ({"2", "4"}, {"48", "144"}, {"1", "2", "3"})
    assert feeds == {"one_band", "two_bands", "narrow"} and dtypes == {"bfloat16", "float16"}
    assert {"wide", "narrow"} == set(re.findall(r"test_conv_tile\[\w+-(\w+)-", done.stdout))
    assert done.stdout.count("test_probes.py::") == len(PROBES)
