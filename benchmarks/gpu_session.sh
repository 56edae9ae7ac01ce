#!/usr/bin/env bash
# One call on a machine with a CUDA GPU: checks, tests, sanitizers, benchmarks. No network needed.
#
#   OUT=/some/folder benchmarks/gpu_session.sh       # results and logs go to $OUT (default: ./gpu)
#   R21D_DRY_RUN=1 benchmarks/gpu_session.sh         # the same steps, tiny, on a CPU
#
# Every part has its own time limit, together under ten minutes; a part that fails or runs out of
# time is reported and the next one runs. The exit status is 1 if any part failed.
#
# Never run on hardware so far, so do not trust it before it has:
#   - this script itself, tests/gpu, and the CUDA halves of benchmarks/ (events, graphs, peaks);
#   - the native library beside a CUDA build of torch (it loads beside a CPU build), and its build
#     with nvcc on such a machine;
#   - the peers on CUDA: Inductor with freezing and with max-autotune, M padded to 8, graph capture
#     of a training step;
#   - compute-sanitizer over tests/gpu.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
DRY=${R21D_DRY_RUN:-0}
OUT=${OUT:-$PWD/gpu}
LOG=$OUT/session.log
mkdir -p "$OUT" && : >"$LOG" || exit 1
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
failed=()

# part NAME SECONDS COMMAND...: runs it with a limit; its output goes to the screen and to the log.
part() {
  local name=$1 seconds=$2 status
  shift 2
  echo "== $name (at most $seconds s)"
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$LOG"
  status=${PIPESTATUS[0]}
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    echo "== $name: out of time after $seconds s"
  elif [ "$status" -ne 0 ]; then
    echo "== $name: failed with status $status"
  fi
  [ "$status" -eq 0 ] || failed+=("$name")
}

loads() { "$PYTHON" -c 'import sys, r21d_ops.native as n; sys.exit(n.load_error)'; }

build() {
  local folder
  folder=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)') &&
    cmake -S . -B "$OUT/build" -DR21D_TORCH_DIR="$folder" >"$OUT/cmake.log" 2>&1 &&
    cmake --build "$OUT/build" --parallel >>"$OUT/cmake.log" 2>&1 &&
    cmake --install "$OUT/build" --prefix r21d_ops >>"$OUT/cmake.log" 2>&1
  local status=$?
  rm -rf "$OUT/build"
  return $status
}

if [ "$DRY" = 1 ]; then
  bench=(--device cpu --shrink 8 --seconds 0.1 --threads 1)
  few=(--cases "conv2_x/fp32,stem/bf16,conv2_x/train/fp32" --peers "r21d cpu,eager,conv2d views")
  all=("${few[@]}")
else
  bench=(--device cuda --seconds 2)
  few=(--cases "conv2_x/bf16,stem/bf16")
  # max-autotune compiles for minutes: the two layers of `few` have it, here every other peer.
  all=(--peers "r21d cuda,r21d triton,eager,eager channels_last_3d,conv2d views,conv2d views M to 8,inductor")
fi

echo "== library"
if ! reason=$(loads 2>&1); then
  echo "the library that was brought does not load: $reason"
  echo "building it here"
  export -f build
  export PYTHON OUT
  part build 90 bash -c build
  loads || echo "no native library; the eager backend serves alone"
fi

part environment 30 "$PYTHON" -c '
import json, torch, r21d_ops
from benchmarks.results import machine, versions
device = "cuda" if torch.cuda.is_available() else "cpu"
print(json.dumps({**machine(device), **versions(device)}, indent=1))
for row in r21d_ops.backends():
    print(row)
'
part tests 100 "$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider
if [ "$DRY" != 1 ] && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    part "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider -k "primes and (inference or output)"
  done
else
  echo "== sanitizers: compute-sanitizer is not run here"
fi
pytest=("$PYTHON" -m pytest benchmarks --benchmark-only -q -p no:cacheprovider)
part autotune 110 "${pytest[@]}" "${bench[@]}" "${few[@]}" --results "$OUT/results"
part bench 170 "${pytest[@]}" "${bench[@]}" "${all[@]}" --results "$OUT/results"

# All files side by side.
find "$OUT/results" -name '*.json' -exec mv {} "$OUT/" \; 2>/dev/null
rm -rf "$OUT/results"
if [ ${#failed[@]} -gt 0 ]; then
  echo "== failed: ${failed[*]}"
  exit 1
fi
echo "== all parts passed"
