#!/usr/bin/env bash
# One call on a machine with a CUDA GPU: checks, tests, sanitizers, benchmarks. No network needed.
#
#   OUT=/some/folder benchmarks/gpu_session.sh       # results and logs go to $OUT (default: ./gpu)
#   R21D_COMMIT=<hash> ...                           # what is measured, where there is no .git
#   R21D_PARTS="tests tuned" ...                     # these parts alone
#   R21D_DRY_RUN=1 benchmarks/gpu_session.sh         # the same steps, tiny, on a CPU
#
# Every part has its own time limit; they add up to R21D_SESSION_SECONDS (570), so that none takes
# another's time. A part that fails or runs out of time is reported and the next one runs; benchmarks
# write their file anew after every case, so that what was measured is kept. What stock PyTorch does
# comes first: it is worth having whatever becomes of the rest. The exit status is 1 if any part
# failed.
# $OUT holds at most eight files: one JSON file for each of five benchmark parts, tuning-*.json (what
# the autotuner chose; no benchmark results), session.log, cmake.log.
#
# Never run on hardware so far, so do not trust it before it has:
#   - this script itself, tests/gpu, and the CUDA halves of benchmarks/ (events, graphs, peaks);
#   - the native library beside a CUDA build of torch (it loads beside a CPU build), and its build
#     with nvcc on such a machine;
#   - the peers on CUDA: Inductor with freezing and with max-autotune, M padded to 8, graph capture
#     of a training step, the float64 references at full size;
#   - every Triton kernel (so far interpreted on a CPU, and compiled without being run), its
#     variants that use TMA, the autotuner and its cache, its times under CUDA graphs;
#   - the choice of a backend: measured tables made of GPU results, and how far the estimate is off;
#   - compute-sanitizer over tests/gpu, Triton's kernels included.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
DRY=${R21D_DRY_RUN:-0}
OUT=${OUT:-$PWD/gpu}
LOG=$OUT/session.log
mkdir -p "$OUT" && : >"$LOG" || exit 1
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
# What the autotuner finds is found anew, and kept beside the results.
export R21D_CACHE_DIR=$OUT/cache
failed=()
DEADLINE=${R21D_SESSION_SECONDS:-570}

declare -A LIMIT=(
  [build]=60 [environment]=15 [stock]=95 [compiled]=70 [searched]=45
  [tests]=85 [memcheck]=25 [racecheck]=25 [untuned]=90 [tuned]=60
)

say() { echo "== $*" | tee -a "$LOG"; }

# part NAME COMMAND...: runs it within its limit; its output goes to the screen and to the log.
# An interrupt, so that pytest tells what failed until then.
part() {
  local name=$1 seconds=${LIMIT[$1]} left=$((DEADLINE - SECONDS)) status
  shift
  [[ -z ${R21D_PARTS:-} || " $R21D_PARTS " == *" $name "* ]] || return 0
  if [ "$left" -lt 5 ]; then
    say "$name: not started, $DEADLINE s are over"
    failed+=("$name")
    return
  fi
  [ "$seconds" -le "$left" ] || seconds=$left
  say "$name (at most $seconds s)"
  timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$LOG"
  status=${PIPESTATUS[0]}
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    say "$name: out of time after $seconds s"
  elif [ "$status" -ne 0 ]; then
    say "$name: failed with status $status"
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

# Cases named after each layer, with a suffix: inference or training in one dtype.
layers() {
  local suffix=$1 name names=()
  for name in stem conv2_x conv3_1a conv3_x conv4_1a conv4_x conv5_1a conv5_x; do
    names+=("$name/$suffix")
  done
  (IFS=,; echo "${names[*]}")
}

if [ "$DRY" = 1 ]; then
  bench=(--device cpu --batch 2 --shrink 8 --seconds 0.1 --threads 1)
  few="conv2_x/fp32,stem/bf16,conv2_x/train/fp32"
  stock="eager,conv2d views" compiled="conv2d views" searched=$compiled
  ours="r21d cpu,r21d eager,eager,conv2d views"
  every=$few inferred=$few
else
  bench=(--device cuda --seconds 0.4)
  few="conv2_x/bf16,stem/bf16,conv2_x/train/bf16,r2plus1d_18/bf16,r2plus1d_18/train/bf16"
  stock="eager,eager channels_last_3d,conv2d views,conv2d views M to 8"
  # Compiling takes seconds a case, and with max-autotune perhaps minutes.
  compiled="conv2d views,inductor" searched="conv2d views,inductor max-autotune"
  ours="r21d cuda,r21d triton,r21d triton fused,r21d triton two kernels,r21d triton recompute"
  # For dispatch ours and eager must be timed side by side.
  ours+=",r21d eager,eager channels_last_3d,conv2d views"
  inferred="r2plus1d_18/bf16,$(layers bf16),conv2_x/train/bf16,r2plus1d_18/train/bf16"
  # What matters most first: bfloat16, inference and training, then the same in float32.
  every="$(layers bf16),r2plus1d_18/bf16,$(layers train/bf16),r2plus1d_18/train/bf16"
  every+=",conv2_x block/bf16,$(layers fp32),r2plus1d_18/fp32,$(layers train/fp32)"
  every+=",r2plus1d_18/train/fp32,conv2_x block/fp32"
fi

say library
if ! reason=$(loads 2>&1); then
  say "the library that was brought does not load, and is built here: $reason"
  export -f build
  export PYTHON OUT
  part build bash -c build
  loads || say "no native library: the cpu backend is missing, which triton and eager do not need"
fi

part environment "$PYTHON" -c '
import importlib.util, json, shutil, torch, r21d_ops
from benchmarks.results import machine, versions
device = "cuda" if torch.cuda.is_available() else "cpu"
print(json.dumps({**machine(device), **versions(device)}, indent=1))
for row in r21d_ops.backends():
    print(row)
for name in ("numpy", "triton", "pytest", "hypothesis"):
    if importlib.util.find_spec(name) is None:
        print(f"MISSING: {name} (bring its wheel)")
if shutil.which("compute-sanitizer") is None:
    print("MISSING: compute-sanitizer (part of the CUDA toolkit)")
'

# measure NAME CASES PEERS: a benchmark part; no case is begun that would hardly end in time.
measure() {
  part "$1" "$PYTHON" -m benchmarks "${bench[@]}" --within $((LIMIT[$1] * 8 / 10)) \
    --cases "$2" --peers "$3" --results "$OUT/results"
}

measure stock "$every" "$stock"
measure compiled "$inferred" "$compiled"
measure searched "${few%%,r2plus1d_18*}" "$searched"

# What a timing would choose is another part's business.
export R21D_AUTOTUNE=0
tests=("$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider)
part tests "${tests[@]}"
if [ "$DRY" != 1 ] && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # Without torch's cache of blocks, so that a step beyond one of them is seen.
    part "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "${tests[@]}" -k "primes and (inference or output) and not eager"
  done
else
  say "sanitizers: compute-sanitizer is not run here"
fi

# The tuned figures are the newer ones, so that they are those that dispatch is given.
measure untuned "$every" "$ours"
unset R21D_AUTOTUNE
measure tuned "$few" "$ours"

# All files side by side.
find "$OUT/results" -name '[!.]*.json' -exec mv {} "$OUT/" \; 2>/dev/null
for file in "$R21D_CACHE_DIR"/triton-tuning/*.json; do
  [ ! -f "$file" ] || mv "$file" "$OUT/tuning-${file##*/}"
done
rm -rf "$OUT/results" "$R21D_CACHE_DIR"
if [ ${#failed[@]} -gt 0 ]; then
  say "failed: ${failed[*]}"
  exit 1
fi
say "all parts passed"
