#!/usr/bin/env bash
# compute-sanitizer over the small cases of tests/gpu: our kernels and Triton's, not stock PyTorch's.
#
#   PYTHON=.venv/bin/python tests/gpu/sanitize.sh memcheck racecheck
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

PYTHON=${PYTHON:-python3}
if ! command -v compute-sanitizer >/dev/null; then
  echo "compute-sanitizer is not on PATH; it is part of the CUDA toolkit" >&2
  exit 1
fi
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "compute-sanitizer needs a CUDA device, and this torch sees none" >&2
  exit 1
fi

# Without torch's cache of blocks, so that a step beyond one of them is seen.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
status=0
for tool in "$@"; do
  compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider \
    -k "probes or (primes and (inference or output) and not eager)" || status=1
done
exit $status
