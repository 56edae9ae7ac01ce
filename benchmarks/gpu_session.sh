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
# write their file anew after every case, so that what was measured is kept. The probes (each
# instruction alone, in seconds) and what stock PyTorch does come first: they are worth having
# whatever becomes of the rest. The exit status is 1 if any part failed.
# $OUT holds at most eight files: one JSON file for each of six benchmark parts, session.log, and
# more.tar with what the autotuner chose (tuning-*.json; no benchmark results), what the probes
# gave (to be committed as tests/gpu/golden), and losses.json: a hundred training steps beside stock
# PyTorch's (benchmarks/results/h200/training).
#
# The native library is the one in r21d_ops, brought from elsewhere, if it runs on this GPU; it is
# built here for this GPU alone otherwise. Tests run side by side where pytest-xdist is there.
#
# Never run on hardware so far, so do not trust it before it has:
#   - this script itself, tests/gpu, and the CUDA halves of benchmarks/ (events, graphs, peaks);
#   - the native library beside a CUDA build of torch (it loads beside a CPU build), and its build
#     with nvcc on such a machine;
#   - the peers on CUDA: Inductor with freezing and with max-autotune, M padded to 8, graph capture
#     of a training step, the float64 references at full size;
#   - every CUDA kernel of csrc/cuda (so far simulated on a CPU, and compiled without being run): its
#     values, its times, under CUDA graphs, on several streams and devices, the planner's estimates;
#   - every tile that the planner may choose, forced one by one (tests/gpu/test_cuda_tiles.py and
#     test_cuda_training_tiles.py); the training kernels altogether: sums in parts, merged statistics,
#     their time beside Triton's, cuDNN's and torch.compile's, a step's memory;
#   - the library's own CUDA calls: the current stream, the device's limits, how launches fail;
#   - what the simulator takes the instructions to do. No output of hardware is in tests/gpu/golden
#     for the probes
#       indices shared_widths global_widths static_shared cp_async sync_threads sync_warp
#       sync_named shuffle shuffle_xor shuffle_down ballot atomic_shared atomic_global
#       ldmatrix_x4 ldmatrix_x2 ldmatrix_x4_transposed mma_bfloat16 mma_float16
#       pack_bfloat16 pack_float16 unpack_bfloat16 unpack_float16
#   - every Triton kernel (so far interpreted on a CPU, and compiled without being run), its
#     variants that use TMA, the autotuner and its cache, its times under CUDA graphs;
#   - uint8 clips normalised on the GPU in evaluation (tests/gpu/test_evaluation.py), and evaluation
#     on several GPUs by torchrun;
#   - training by r21d train (tests/gpu/test_training.py): bfloat16, float16 and its loss scaler, uint8
#     clips normalised on the GPU, compiled steps, resuming, recalibration, how a run ends that finds
#     no GPU memory; NCCL (there with one process alone), DistributedDataParallel and
#     nn.SyncBatchNorm on several GPUs, torchrun's restarts there, a process that hangs in NCCL;
#   - the choice of a backend: measured tables made of GPU results, and how far the estimate is off;
#   - compute-sanitizer over the CUDA kernels (tests/gpu/sanitize.sh);
#   - tests in several processes that share one GPU.
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
  [build]=50 [environment]=10 [probes]=15 [stock]=65 [kernels]=45 [compiled]=45 [searched]=25 [losses]=25
  [tests]=55 [triton_tests]=80 [memcheck]=40 [racecheck]=35 [untuned]=45 [tuned]=35
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

# Whether the native library serves this machine; it says why not.
serves() {
  "$PYTHON" -c '
import sys, torch
from r21d_ops import native
if native.load_error is not None:
    sys.exit(native.load_error)
if torch.cuda.is_available():
    cuda = native.cuda_info()
    if cuda is None:
        sys.exit("it is built without CUDA")
    devices = [row for row in cuda["devices"] if row is not None]
    missing = [row["name"] for row in devices if not row["runs"]]
    if missing or not devices:
        sys.exit(f"it has no code for {missing or torch.cuda.get_device_name()}")
'
}

# Machine code for this GPU alone.
build() {
  local folder gpu
  folder=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)') &&
    gpu=$("$PYTHON" -c '
import torch
major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
print(f"{major}{minor}" + ("a" if major > 8 else "") + "-real")
') &&
    cmake -S . -B "$OUT/build" -DR21D_TORCH_DIR="$folder" -DCMAKE_CUDA_ARCHITECTURES="$gpu" &&
    cmake --build "$OUT/build" --parallel && cmake --install "$OUT/build" --prefix r21d_ops
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
  every=$few inferred=$few forward="stem/bf16,conv2_x/bf16" cuda=$stock
  losses=(--device cpu --backend eager --steps 2 --clips 2x16x32x32)
else
  bench=(--device cuda --seconds 0.4)
  losses=(--device cuda --backend cuda)
  few="conv2_x/bf16,stem/bf16,conv2_x/train/bf16,r2plus1d_18/bf16,r2plus1d_18/train/bf16"
  stock="eager,eager channels_last_3d,conv2d views,conv2d views M to 8"
  # Compiling takes seconds a case, and with max-autotune perhaps minutes.
  compiled="conv2d views,inductor" searched="conv2d views,inductor max-autotune"
  ours="r21d cuda,r21d cuda fused,r21d cuda two kernels,r21d cuda recompute"
  ours+=",r21d triton,r21d triton fused,r21d triton two kernels,r21d triton recompute"
  # For dispatch ours and eager must be timed side by side.
  ours+=",r21d eager,eager channels_last_3d,conv2d views"
  # Our kernels in each way beside the best of stock PyTorch, before anything slower.
  forward="r2plus1d_18/bf16,r2plus1d_18/train/bf16,$(layers bf16),$(layers train/bf16)"
  cuda="r21d cuda fused,r21d cuda two kernels,r21d cuda,r21d cuda recompute"
  cuda+=",conv2d views,eager channels_last_3d"
  inferred="r2plus1d_18/bf16,$(layers bf16),conv2_x/train/bf16,r2plus1d_18/train/bf16"
  # What matters most first: bfloat16, inference and training, then the same in float32.
  every="$(layers bf16),r2plus1d_18/bf16,$(layers train/bf16),r2plus1d_18/train/bf16"
  every+=",conv2_x block/bf16,$(layers fp32),r2plus1d_18/fp32,$(layers train/fp32)"
  every+=",r2plus1d_18/train/fp32,conv2_x block/fp32"
fi

say library
if ! reason=$(serves 2>&1); then
  say "the library that was brought does not serve, and is built here: $reason"
  export -f build
  export PYTHON OUT
  part build bash -c build
  reason=$(serves 2>&1) || say "the cpu and cuda backends may be missing: $reason"
fi

part environment "$PYTHON" -c '
import importlib.util, json, shutil, torch, r21d_ops
from benchmarks.results import machine, versions
device = "cuda" if torch.cuda.is_available() else "cpu"
print(json.dumps({**machine(device), **versions(device)}, indent=1))
for row in r21d_ops.backends():
    print(row)
for name in ("numpy", "triton", "pytest", "xdist", "hypothesis"):
    if importlib.util.find_spec(name) is None:
        print(f"MISSING: {name} (bring its wheel)")
if shutil.which("compute-sanitizer") is None:
    print("MISSING: compute-sanitizer (the CUDA toolkit or the wheel nvidia-cuda-sanitizer-api)")
'

# measure NAME CASES PEERS: a benchmark part; no case is begun that would hardly end in time.
measure() {
  part "$1" "$PYTHON" -m benchmarks "${bench[@]}" --within $((LIMIT[$1] * 8 / 10)) \
    --cases "$2" --peers "$3" --results "$OUT/results"
}

tests=("$PYTHON" -m pytest -q -p no:cacheprovider)
part probes env R21D_GOLDEN_DIR="$OUT/golden" "${tests[@]}" tests/gpu/test_probes.py
measure stock "$every" "$stock"
measure kernels "$forward" "$cuda"
part losses "$PYTHON" -m benchmarks.training_losses "${losses[@]}" --out "$OUT/golden/losses.json"
measure compiled "$inferred" "$compiled"
measure searched "${few%%,r2plus1d_18*}" "$searched"

# What a timing would choose is another part's business.
export R21D_AUTOTUNE=0
# One GPU serves several processes: most of a test is Python's time and the compilers'.
"$PYTHON" -c 'import xdist' 2>/dev/null && tests+=(-n auto --maxprocesses 8 --dist worksteal)
part tests "${tests[@]}" tests/gpu --ignore=tests/gpu/test_probes.py -k "not triton"
if [ "$DRY" != 1 ]; then
  part triton_tests "${tests[@]}" tests/gpu --ignore=tests/gpu/test_probes.py -k triton
else
  say "triton_tests: there are none without a GPU"
fi
if [ "$DRY" != 1 ] && command -v compute-sanitizer >/dev/null; then
  export PYTHON
  for tool in memcheck racecheck; do
    part "$tool" tests/gpu/sanitize.sh "$tool"
  done
else
  say "sanitizers: compute-sanitizer is not run here"
fi

# The tuned figures are the newer ones, so that they are those that dispatch is given.
measure untuned "$every" "$ours"
unset R21D_AUTOTUNE
measure tuned "$few" "$ours"

# All files side by side, the small ones in one.
find "$OUT/results" -name '[!.]*.json' -exec mv {} "$OUT/" \; 2>/dev/null
mkdir -p "$OUT/golden"
for file in "$R21D_CACHE_DIR"/triton-tuning/*.json; do
  [ ! -f "$file" ] || mv "$file" "$OUT/golden/tuning-${file##*/}"
done
(cd "$OUT/golden" && tar -cf ../more.tar .)
rm -rf "$OUT/results" "$OUT/golden" "$R21D_CACHE_DIR"
if [ ${#failed[@]} -gt 0 ]; then
  say "failed: ${failed[*]}"
  exit 1
fi
say "all parts passed"
